"""Checks that all annotation readers share, and the conversion of their lists to an AnnotationIndex.

Shapes: N images, M objects of all images together.
"""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.data.packed_strings import PackedStrings
from detection.data.problems import Problem, Severity, listed
from detection.fields.table import Field, fields_of
from detection.keypoints import KeypointSpec

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageArrays",
    "ImageRows",
    "ObjectArrays",
    "ObjectRows",
    "build_index",
    "files_in",
    "nearest_class",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Rounding in annotation tools; a box that exceeds the image by no more is cut without a note.
ROUNDING = 1.0  # pixels

BLOCK = 1 << 18  # objects whose boxes are checked together

MAX_NAME = 100  # characters of a class name in a message, as there may be a message per object


@dataclass(slots=True)
class ImageRows:
    """One entry per image, in the order of the split."""

    paths: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)
    apply_exif: list[bool] = field(default_factory=list)  # whether the orientation tag is applied

    def arrays(self) -> ImageArrays:
        """Returns the images as arrays."""
        return ImageArrays(
            paths=PackedStrings.pack(self.paths),
            ids=np.array(self.ids, dtype=np.int64),
            sizes=np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            apply_exif=np.array(self.apply_exif, dtype=np.bool_),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArrays:
    """``ImageRows`` as arrays, for readers of millions of images."""

    paths: PackedStrings  # (N,)
    ids: NDArray[np.int64]  # (N,)
    sizes: NDArray[np.int64]  # (N, 2)
    apply_exif: NDArray[np.bool_]  # (N,)


@dataclass(slots=True)
class ObjectRows:
    """One entry per object, in any order."""

    images: list[int] = field(default_factory=list)  # rows of ImageRows
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # x1, y1, x2, y2
    labels: list[int] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    areas: list[float | None] = field(default_factory=list)  # None: area of the box, after it was cut at the border
    names: list[str] = field(default_factory=list)  # for messages, such as "annotation 17"
    # By name of the field: values for FIELDS to pack, None for an object without one; empty if the field is not read.
    fields: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def arrays(self) -> ObjectArrays:
        """Returns the objects as arrays."""
        return ObjectArrays(
            images=np.array(self.images, dtype=np.int64),
            boxes=np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(self.labels, dtype=np.int64),
            ignore=np.array(self.ignore, dtype=np.bool_),
            areas=np.array(self.areas, dtype=np.float64),  # None becomes NaN
            names=self.names,
            fields=self.fields,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectArrays:
    """``ObjectRows`` as arrays, for readers of millions of objects."""

    images: NDArray[np.integer]  # (M,) rows of ImageRows
    boxes: NDArray[np.float64]  # (M, 4) x1, y1, x2, y2
    labels: NDArray[np.integer]  # (M,)
    ignore: NDArray[np.bool_]  # (M,)
    areas: NDArray[np.float64]  # (M,) NaN: area of the box
    names: Sequence[str]  # (M,)
    fields: Mapping[str, Sequence[Any]]


def build_index(
    images: ImageRows | ImageArrays,
    objects: ObjectRows | ObjectArrays,
    *,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    files: Sequence[str],
    drop: bool,
    keypoints: KeypointSpec | None = None,
) -> tuple[AnnotationIndex, list[Problem]]:
    """Builds the index of ``images`` and ``objects``, with a Problem for each box that can't be used.

    Args:
        images: images from the reader.
        objects: objects from the reader.
        class_names: names of the K classes.
        category_ids: ids of the K classes in the data set's files.
        files: annotation file of every image.
        drop: whether an unusable box is left out (true) or is an error.
        keypoints: keypoints of the objects; None if they are not read.
    """
    images = images.arrays() if isinstance(images, ImageRows) else images
    objects = objects.arrays() if isinstance(objects, ObjectRows) else objects
    found = _Boxes(images, objects, files, drop)
    fields, without = _pack_fields(fields_of(keypoints), images, objects, found.kept, files)
    labels, ignore = objects.labels, objects.ignore
    del objects  # frees columns that are no longer needed; there may be millions of objects
    found.forget()
    index = AnnotationIndex(
        class_names=class_names,
        category_ids=category_ids,
        paths=images.paths,
        image_ids=torch.from_numpy(images.ids),
        sizes=torch.from_numpy(images.sizes.astype(np.int32)),
        apply_exif=torch.from_numpy(images.apply_exif),
        ends=torch.from_numpy(found.counts.cumsum()),
        boxes=torch.from_numpy(found.boxes),
        labels=torch.from_numpy(labels[found.kept].astype(np.int64)),
        ignore=torch.from_numpy(ignore[found.kept]),
        areas=torch.from_numpy(found.areas),
        fields=fields,
        keypoints=keypoints,
    )
    return index, found.problems + found.oversized + without


class _Boxes:
    """The usable boxes and areas of ``objects``, by image, and a Problem for each that is unusable or changed.

    Attributes:
        kept: (M,) rows of ``objects``, in the order of the images.
        counts: (N,) number of objects of each image.
        boxes: (M, 4) float32, cut at the border.
        areas: (M,) float32; the box's area if none is given, or if the given one is larger than the image.
        problems: problems of boxes.
        oversized: problems of areas larger than their images.
    """

    def __init__(self, images: ImageArrays, objects: ObjectArrays, files: Sequence[str], drop: bool) -> None:
        self._images, self._objects, self._files, self._drop = images, objects, files, drop
        self.problems, self.oversized = list[Problem](), list[Problem]()
        self.counts = np.zeros(len(images.ids), dtype=np.int64)
        order, number = np.argsort(objects.images, kind="stable"), 0
        boxes, areas = np.empty((len(order), 4), dtype=np.float32), np.empty(len(order), dtype=np.float32)
        for start in range(0, len(order), BLOCK):  # copies of all boxes at once would take gigabytes
            rows, clipped = self._usable(order[start : start + BLOCK])
            self.counts += np.bincount(objects.images[rows], minlength=len(images.ids))
            own = slice(number, number := number + len(rows))  # overwrites rows that were left out
            order[own], boxes[own], areas[own] = rows, clipped, self._areas(rows, clipped)
        self.kept, self.boxes, self.areas = order[:number], boxes[:number], areas[:number]

    def forget(self) -> None:
        """Frees the objects, after which no further problems can be reported."""
        del self._objects

    def _usable(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns those of the objects ``rows`` with usable boxes, and their boxes, cut at the border."""
        boxes = self._objects.boxes[rows]
        clipped = _clip(boxes, self._images.sizes[self._objects.images[rows]])
        usable = np.asarray(np.isfinite(boxes).all(axis=1) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1))
        cut = np.asarray((np.abs(clipped - boxes) > ROUNDING).any(axis=1))
        for at in np.flatnonzero(~usable | cut).tolist():
            kind = "box cut at the image border" if usable[at] else "box outside the image or without area"
            mild: Severity = "note" if usable[at] else "dropped"
            box = tuple(boxes[at].tolist())
            self.problems.append(
                self._problem(mild if self._drop else "error", kind, rows[at], f"box (x1, y1, x2, y2) = {box}")
            )
        return rows[usable], clipped[usable]

    def _areas(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the areas of the objects ``rows`` with cut ``boxes``."""
        given = self._objects.areas[rows]
        larger = given > self._images.sizes[self._objects.images[rows]].prod(axis=1)
        kind = "area larger than the image; that of the box is taken"
        self.oversized += [
            self._problem("note", kind, row, f"area {self._objects.areas[row]}") for row in rows[larger].tolist()
        ]
        return np.where(np.isnan(given) | larger, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), given)

    def _problem(self, severity: Severity, kind: str, row: int, value: str) -> Problem:
        image, box = int(self._objects.images[row]), tuple(self._objects.boxes[row].tolist())
        height, width = self._images.sizes[image].tolist()
        detail = f"{self._objects.names[row]}, {value}, image {width}x{height}"
        path = self._images.paths[image]
        return Problem(severity, kind, self._files[image], detail, images=(path,), boxes=(box,))


def _pack_fields(
    table: Mapping[str, Field],
    images: ImageArrays,
    objects: ObjectArrays,
    rows: NDArray[np.int64],
    files: Sequence[str],
) -> tuple[dict[str, PackedStrings], list[Problem]]:
    """Packs the fields of the objects ``rows``; an unusable value becomes unknown and gives a Problem.

    A field that no object has is left out without a Problem.
    """
    packed, problems = dict[str, PackedStrings](), list[Problem]()
    for name, operations in table.items():
        values = objects.fields.get(name, [])
        if not any(values):
            continue
        kept = list[bytes]()
        for row in rows.tolist():
            image = int(objects.images[row])
            height, width = images.sizes[image].tolist()
            try:
                kept.append(operations.pack(values[row], (height, width)))
            except ValueError as error:
                detail, where = f"{objects.names[row]}: {error}", (tuple(objects.boxes[row].tolist()),)
                shown = (images.paths[image],)
                problems.append(
                    Problem("dropped", operations.unusable, files[image], detail, images=shown, boxes=where)
                )
                kept.append(operations.unknown((height, width)))
        packed[name] = PackedStrings.pack(kept)
    return packed, problems


def files_in(folder: Path) -> set[str]:
    """Returns the names of the files in ``folder``; empty if it is missing or its name is impossible."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set()


@lru_cache(maxsize=1024)  # called for every object of a class that the card lacks, at a millisecond each
def nearest_class(name: str, class_names: tuple[str, ...]) -> str:
    """Returns a hint at the most similar class, which ends a message about a class name that the card lacks."""
    nearest = difflib.get_close_matches(name, class_names, n=1)
    name = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
    return f"{name!r}; did you mean {nearest[0]!r}?" if nearest else f"{name!r}; the card has {listed(class_names)}"


def _clip(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    return np.clip(boxes, 0, limits)
