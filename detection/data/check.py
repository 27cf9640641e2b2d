"""Reads a data set as training would and reports what is wrong in it, and what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection.boxes import iou
from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem

__all__ = ["Summary", "check_copies", "check_images", "check_objects", "summarize_index"]

SMALL, MEDIUM = 32**2, 96**2  # square pixels, COCO's limits
TINY = 2.0  # pixels; a box this thin has hardly an object in it
DARK = 16  # of 255; 12-bit colours in a 16-bit file, or 8-bit ones in a 12-bit file, end here
DOUBLED = 0.9  # IoU of two boxes of one class that are probably one object


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of one split.

    Attributes:
        images: how many.
        empty: of them without an object to train on.
        classes: objects per class: (name, all, ignored, small, medium, large).
    """

    images: int
    empty: int
    classes: tuple[tuple[str, int, int, int, int, int], ...]


def summarize_index(index: AnnotationIndex) -> Summary:
    """The counts of ``index``; sizes are COCO's, by area, without ignored objects."""
    labels, ignore, areas = index.labels.numpy(), index.ignore.numpy(), index.areas.numpy()
    rows = []
    for label, name in enumerate(index.class_names):
        own = labels == label
        wanted = areas[own & ~ignore]
        small, large = int((wanted < SMALL).sum()), int((wanted >= MEDIUM).sum())
        rows.append((name, int(own.sum()), int((own & ignore).sum()), small, len(wanted) - small - large, large))
    return Summary(len(index), int((index.num_wanted() == 0).sum()), tuple(rows))


def check_objects(index: AnnotationIndex) -> list[Problem]:
    """Notes on objects that training accepts but a person should see: tiny boxes and probable doubles."""
    problems = []
    for row in range(len(index)):
        target, path = index.target(row), index.paths[row]
        sides = (target.boxes[:, 2:] - target.boxes[:, :2]).amin(dim=1)
        for number in (sides < TINY).nonzero().flatten().tolist():
            detail = f"{index.class_names[int(target.labels[number])]} {_rounded(target.boxes[number].tolist())}"
            problems.append(Problem("note", "box under 2 pixels", path, detail))
        same = target.labels[:, None] == target.labels[None]
        doubled = ((iou(target.boxes, target.boxes) > DOUBLED) & same).triu(diagonal=1)
        for first, second in doubled.nonzero().tolist():
            boxes = [_rounded(target.boxes[number].tolist()) for number in (first, second)]
            detail = f"{index.class_names[int(target.labels[first])]} {boxes[0]} and {boxes[1]}"
            problems.append(Problem("note", "object boxed twice", path, detail))
    return problems


def check_images(
    index: AnnotationIndex, *, threads: int = 4, track: Callable[[Iterable[list[Problem]]], Iterable[list[Problem]]]
) -> list[Problem]:
    """Decodes every image; an error for each that can't be read or whose size disagrees with its annotation.

    Args:
        index: the images.
        threads: images read at a time.
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
    """Notes on images that occur twice: in two of ``splits``, one note a pair of them, or in one under two names."""
    sizes = dict[int, list[tuple[str, str]]]()  # files of one content have one size, and few others have
    for split, index in splits.items():
        for row in range(len(index)):
            path = index.paths[row]
            with suppress(OSError, ValueError):  # check_images says what is wrong with it
                sizes.setdefault(Path(path).stat().st_size, []).append((split, path))
    shared, problems = dict[tuple[str, str], list[str]](), list[Problem]()
    for files in sizes.values():
        first = dict[bytes, dict[str, str]]()  # content -> split -> the first file that has it
        for split, path in files if len(files) > 1 else ():
            known = first.setdefault(_content(path), {})
            for other in known.keys() - {split}:
                shared.setdefault((other, split), []).append(path)
            if split in known:
                problems.append(Problem("note", "same image twice", path, f"it has the content of {known[split]}"))
            known.setdefault(split, path)
    for (one, other), paths in shared.items():
        detail = f"{other!r} shares {len(paths)} image{'s' * (len(paths) > 1)} with {one!r}; this one is the first"
        problems.append(Problem("note", "image in two splits", paths[0], detail, len(paths)))
    return problems


def _content(path: str) -> bytes:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _rounded(box: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in box)
