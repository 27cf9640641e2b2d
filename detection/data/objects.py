"""Checks that both annotation readers share, and the way from their lists to an AnnotationIndex.

Shapes: N images, M objects of all images together.
"""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex, PackedStrings
from detection.data.problems import Problem, Severity, listed
from detection.fields.table import FIELDS

__all__ = ["IMAGE_SUFFIXES", "ImageRows", "ObjectRows", "build_index", "files_in", "nearest_class"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Rounding in annotation tools; a box that sticks out by no more is cut without a word.
ROUNDING = 1.0  # pixels

MAX_NAME = 100  # characters of a class name in a message; a message per object repeats it


@dataclass(slots=True)
class ImageRows:
    """One entry per image, in the order of the split."""

    paths: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)
    apply_exif: list[bool] = field(default_factory=list)  # whether it is turned as its EXIF tag says


@dataclass(slots=True)
class ObjectRows:
    """One entry per object, in any order."""

    images: list[int] = field(default_factory=list)  # rows of ImageRows
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # x1, y1, x2, y2
    labels: list[int] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    areas: list[float | None] = field(default_factory=list)  # None: of the box, after it was cut at the border
    names: list[str] = field(default_factory=list)  # for messages, such as "annotation 17"
    # By the field's name: what FIELDS packs, None for an object without it; empty: the field is not read.
    fields: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))


def build_index(
    images: ImageRows,
    objects: ObjectRows,
    *,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    files: Sequence[str],
    drop: bool,
) -> tuple[AnnotationIndex, list[Problem]]:
    """The index of ``images`` and ``objects``, without the boxes that can't be used, and a Problem for each of them.

    Args:
        images: what the reader found.
        objects: what the reader found.
        class_names: of the K classes.
        category_ids: of the K classes in the data set's own files.
        files: the annotation file of every image.
        drop: whether a bad box is left out (True) or is an error.
    """
    rows = np.array(objects.images, dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    rows, boxes = rows[order], np.array(objects.boxes, dtype=np.float64).reshape(-1, 4)[order]
    sizes = np.array(images.sizes, dtype=np.int64).reshape(-1, 2)
    clipped = _clip(boxes, sizes[rows])
    usable = np.asarray(np.isfinite(boxes).all(axis=1) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    cut = np.asarray((np.abs(clipped - boxes) > ROUNDING).any(axis=1))
    problems = []
    for row in np.flatnonzero(~usable | cut).tolist():
        image, name = int(rows[row]), objects.names[int(order[row])]
        height, width = images.sizes[image]
        box = tuple(boxes[row].tolist())
        detail = f"{name}, box (x1, y1, x2, y2) = {box}, image {width}x{height}"
        kind = "box cut at the image border" if usable[row] else "box outside the image or without area"
        mild: Severity = "note" if usable[row] else "dropped"
        severity = mild if drop else "error"
        problems.append(Problem(severity, kind, files[image], detail, images=(images.paths[image],), boxes=(box,)))
    kept = order[usable]
    fields, without = _pack_fields(images, objects, kept.tolist(), files)
    areas, oversized = _areas(images, objects, kept, clipped[usable], files)
    index = AnnotationIndex(
        class_names=class_names,
        category_ids=category_ids,
        paths=PackedStrings.pack(images.paths),
        image_ids=torch.tensor(images.ids, dtype=torch.int64),
        sizes=torch.from_numpy(sizes.astype(np.int32)),
        apply_exif=torch.tensor(images.apply_exif, dtype=torch.bool),
        ends=torch.from_numpy(np.searchsorted(rows[usable], np.arange(len(sizes)), side="right")),
        boxes=torch.from_numpy(clipped[usable].astype(np.float32)),
        labels=torch.from_numpy(np.array(objects.labels, dtype=np.int64)[kept]),
        ignore=torch.from_numpy(np.array(objects.ignore, dtype=np.bool_)[kept]),
        areas=torch.from_numpy(areas.astype(np.float32)),
        fields=fields,
    )
    return index, problems + oversized + without


def _areas(
    images: ImageRows, objects: ObjectRows, rows: NDArray[np.int64], boxes: NDArray[np.float64], files: Sequence[str]
) -> tuple[NDArray[np.float64], list[Problem]]:
    """The areas (M,) of the objects ``rows`` (M,), and a Problem for each that is larger than its image.

    These and objects without one get that of their box, of ``boxes`` (M, 4).
    """
    given = np.array(objects.areas, dtype=np.float64)[rows]  # None becomes NaN
    limits = np.array(images.sizes, dtype=np.float64).reshape(-1, 2).prod(axis=1)
    larger, problems = given > limits[np.array(objects.images, dtype=np.int64)[rows]], list[Problem]()
    for row in map(int, rows[larger]):
        image = objects.images[row]
        height, width = images.sizes[image]
        detail = f"{objects.names[row]}, area {objects.areas[row]}, image {width}x{height}"
        kind, where = "area larger than the image; that of the box is taken", (objects.boxes[row],)
        problems.append(Problem("note", kind, files[image], detail, images=(images.paths[image],), boxes=where))
    return np.where(np.isnan(given) | larger, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), given), problems


def _pack_fields(
    images: ImageRows, objects: ObjectRows, rows: list[int], files: Sequence[str]
) -> tuple[dict[str, PackedStrings], list[Problem]]:
    """The fields of the objects ``rows``; unknown, and with a Problem, where there is no value that can be used.

    A field that no object has is left out, without a Problem.
    """
    packed, problems = dict[str, PackedStrings](), list[Problem]()
    for name, operations in FIELDS.items():
        values = objects.fields.get(name, [])
        if not any(values):
            continue
        kept = list[bytes]()
        for row in rows:
            image = objects.images[row]
            try:
                kept.append(operations.pack(values[row], images.sizes[image]))
            except ValueError as error:
                detail, where = f"{objects.names[row]}: {error}", (objects.boxes[row],)
                shown = (images.paths[image],)
                problems.append(
                    Problem("dropped", operations.unusable, files[image], detail, images=shown, boxes=where)
                )
                kept.append(operations.unknown(images.sizes[image]))
        packed[name] = PackedStrings.pack(kept)
    return packed, problems


def files_in(folder: Path) -> set[str]:
    """Names of the files in ``folder``; empty where it is missing, or where no folder can have its name."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set()


@lru_cache(maxsize=1024)  # every object of a class that the card lacks asks again, a millisecond each
def nearest_class(name: str, class_names: tuple[str, ...]) -> str:
    """The end of a message about a class name that the card lacks."""
    nearest = difflib.get_close_matches(name, class_names, n=1)
    name = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
    return f"{name!r}; did you mean {nearest[0]!r}?" if nearest else f"{name!r}; the card has {listed(class_names)}"


def _clip(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    return np.clip(boxes, 0, limits)
