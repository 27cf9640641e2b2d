"""Reads a data set as training would and reports what is wrong in it, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from detection.boxes import iou
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem

__all__ = ["Summary", "check_images", "check_objects", "summarize_index"]

SMALL, MEDIUM = 32**2, 96**2  # square pixels, COCO's limits
TINY = 2.0  # pixels; a box this thin has hardly an object in it
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
    path = index.paths[row]
    try:
        pixels = index.image(row)
    except ValueError as error:
        return [Problem("error", "image", path, str(error))]
    if np.ptp(pixels, axis=(0, 1)).max() == 0:
        return [Problem("note", "image of one colour", path, str(tuple(pixels[0, 0].tolist())))]
    return []


def _rounded(box: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in box)
