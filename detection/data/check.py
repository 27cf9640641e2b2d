"""Reads a data set as training would, and reports its problems and its contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection.boxes import iou
from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.near_copies import Look, look_at, pairs_alike
from detection.data.problems import Problem, listed

__all__ = ["Summary", "check_copies", "check_images", "check_objects", "summarize_index"]

SMALL, MEDIUM = 32**2, 96**2  # square pixels, COCO's limits
TINY = 2.0  # pixels; a box this thin hardly shows an object
DARK = 16  # of 255: the maximum of 12-bit colours in a 16-bit file, or of 8-bit colours in a 12-bit file
DOUBLED = 0.9  # IoU above which two boxes of one class are probably one object


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of one split.

    Attributes:
        images: number of images.
        empty: number of images without an object to train on.
        classes: counts of objects per class: (name, all, ignored, small, medium, large).
    """

    images: int
    empty: int
    classes: tuple[tuple[str, int, int, int, int, int], ...]


def summarize_index(index: AnnotationIndex) -> Summary:
    """Returns the counts of ``index``; small, medium and large are COCO's areas, without ignored objects."""
    labels, ignore, areas = index.labels.numpy(), index.ignore.numpy(), index.areas.numpy()
    rows = []
    for label, name in enumerate(index.class_names):
        own = labels == label
        wanted = areas[own & ~ignore]
        small, large = int((wanted < SMALL).sum()), int((wanted >= MEDIUM).sum())
        rows.append((name, int(own.sum()), int((own & ignore).sum()), small, len(wanted) - small - large, large))
    return Summary(len(index), int((index.num_wanted() == 0).sum()), tuple(rows))


def check_objects(index: AnnotationIndex) -> list[Problem]:
    """Returns notes on objects that training accepts but a person should check: tiny boxes and probable duplicates."""
    problems = []
    for row in range(len(index)):
        target, path = index.target(row), index.paths[row]
        sides = (target.boxes[:, 2:] - target.boxes[:, :2]).amin(dim=1)
        for number in (sides < TINY).nonzero().flatten().tolist():
            detail = f"{index.class_names[int(target.labels[number])]} {_rounded(target.boxes[number].tolist())}"
            own = (tuple(target.boxes[number].tolist()),)
            problems.append(Problem("note", "box under 2 pixels", path, detail, boxes=own))
        same = target.labels[:, None] == target.labels[None]
        doubled = ((iou(target.boxes, target.boxes) > DOUBLED) & same).triu(diagonal=1)
        for first, second in doubled.nonzero().tolist():
            boxes = tuple(_rounded(target.boxes[number].tolist()) for number in (first, second))
            detail = f"{index.class_names[int(target.labels[first])]} {boxes[0]} and {boxes[1]}"
            problems.append(Problem("note", "object boxed twice", path, detail, boxes=boxes))
    return problems


def check_images(
    index: AnnotationIndex, *, threads: int = 4, track: Callable[[Iterable[list[Problem]]], Iterable[list[Problem]]]
) -> list[Problem]:
    """Decodes every image and returns an error for each that is unreadable or not of its annotated size.

    Args:
        index: the images.
        threads: number of images read at a time.
        track: wraps the results as they come, to show progress.
    """
    with ThreadPoolExecutor(threads) as pool:
        results = track(pool.map(lambda row: _check_image(index, row), range(len(index))))
        return [problem for found in results for problem in found]


def _check_image(index: AnnotationIndex, row: int) -> list[Problem]:
    path, (height, width) = index.paths[row], index.sizes[row].tolist()
    try:
        pixels = read_image(path, size=(height, width), apply_exif=bool(index.apply_exif[row]), thorough=True)
    except ValueError as error:
        return [Problem("error", "image", path, str(error))]
    if np.ptp(pixels, axis=(0, 1)).max() == 0:
        return [Problem("note", "image of one colour", path, str(tuple(pixels[0, 0].tolist())))]
    if pixels.max() < DARK:
        detail = f"its brightest value is {pixels.max()} of 255; was it made of more than 8 bits a colour?"
        return [Problem("note", "image that is nearly black", path, detail)]
    return []


def check_copies(splits: Mapping[str, AnnotationIndex]) -> list[Problem]:
    """Returns notes on duplicate and near-duplicate images (data/near_copies.py), within and across ``splits``.

    Identical files in two splits give one note per pair of splits, all other duplicates one note each.
    """
    owners = [(split, index.paths[row]) for split, index in splits.items() for row in range(len(index))]
    paths = dict.fromkeys(path for _, path in owners)
    looks = dict(zip(paths, look_at([*paths]), strict=True))
    shared, problems = dict[tuple[str, str], list[str]](), list[Problem]()
    known = dict[tuple[bytes, str], str]()  # (content, split) -> the first file that has it
    for split, path in owners:
        content = looks[path].content
        if content is None:  # check_images reports it
            continue
        for other in splits:
            if other != split and (content, other) in known:
                shared.setdefault((other, split), []).append(path)
        if (content, split) in known:
            detail = f"it has the content of {known[content, split]}"
            problems.append(Problem("note", "same image twice", path, detail, images=(known[content, split], path)))
        known.setdefault((content, split), path)
    for (one, other), found in shared.items():
        images = f"{len(found)} image{'s' * (len(found) > 1)}"
        detail = f"{other!r} shares {images} with {one!r}: {listed([Path(path).name for path in found])}"
        problems.append(Problem("note", "image in two splits", found[0], detail, len(found), images=(*found,)))
    return problems + _near_copies(splits, looks)


def _near_copies(splits: Mapping[str, AnnotationIndex], looks: Mapping[str, Look]) -> list[Problem]:
    """Returns a note for each pair of images of different content that look alike."""
    names = dict[str, list[str]]()
    for split, index in splits.items():
        for row in range(len(index)):
            names.setdefault(index.paths[row], []).append(split)
    paths, problems = [*looks], list[Problem]()
    for pair in pairs_alike([*looks.values()]):
        if pair.same:
            continue
        one, other = paths[pair.one], paths[pair.other]
        kind, detail = "nearly the same image", f"as {one} (in {listed(names[one])})"
        if set(names[one]) != set(names[other]):
            kind, detail = f"{kind} in two splits", f"in {listed(names[other])}, {detail}"
        problems.append(Problem("note", kind, other, detail, images=(one, other)))
    return problems


def _rounded(box: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in box)
