"""COCO's matching of detections with objects, done once and packed: AP of any resample of the images is then sums.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.

Shapes: N images, K classes, T IoU thresholds; D detections and G objects, of one image or of a whole set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.overlaps import COCO_IOUS, record_iou
from detection.evaluation.record import Record, check_records

__all__ = [
    "ClassMatches",
    "FlatMatches",
    "ImageMatches",
    "MatchedRecords",
    "check_comparable",
    "join",
    "match",
    "match_image",
    "pack",
]

Table = TypeVar("Table", bound=Any)  # a dataclass of arrays

MAX_DETECTIONS = 100  # of a class in an image


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMatches:
    """Detections of one class in all images, best score first; ties keep the order of image ids, then of rows."""

    images: NDArray[np.int64]  # (D,) index 0..N-1 into MatchedRecords.image_ids
    hits: NDArray[np.bool_]  # (D, T) found an object that no better one had found
    ignored: NDArray[np.bool_]  # (D, T) found ignored objects only: neither hit nor miss
    num_objects: NDArray[np.int64]  # (N,) objects to find, without ignored ones


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedRecords:
    """What AP is made of: detections and counts of objects, class by class."""

    class_names: tuple[str, ...]  # K
    image_ids: NDArray[np.int64]  # (N,) ascending
    classes: tuple[ClassMatches, ...]  # K


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMatches:
    """The detections of one image that COCO's metric looks at, best score first."""

    rows: NDArray[np.int64]  # (D,) of the record
    objects: NDArray[np.int64]  # (D, T) row of the object that each one found, -1 for none
    ignored: NDArray[np.bool_]  # (D, T)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatMatches:
    """Detections of all images and classes, image by image in the order of ids, and the objects to find."""

    images: NDArray[np.int64]  # (D,) index of the image
    labels: NDArray[np.int64]  # (D,)
    scores: NDArray[np.float32]  # (D,)
    hits: NDArray[np.bool_]  # (D, T)
    ignored: NDArray[np.bool_]  # (D, T)
    gt_images: NDArray[np.int64]  # (G,) index of the image
    gt_labels: NDArray[np.int64]  # (G,)


_NO_ROWS = FlatMatches(
    images=np.empty(0, np.int64),
    labels=np.empty(0, np.int64),
    scores=np.empty(0, np.float32),
    hits=np.empty((0, len(COCO_IOUS)), np.bool_),
    ignored=np.empty((0, len(COCO_IOUS)), np.bool_),
    gt_images=np.empty(0, np.int64),
    gt_labels=np.empty(0, np.int64),
)


def match(records: Sequence[Record], class_names: Sequence[str]) -> MatchedRecords:
    """The boxes of ``records`` matched at IoU 0.50, 0.55, ..., 0.95, objects of every area.

    Raises:
        ValueError: a label that ``class_names`` lacks, or an image that occurs twice.
    """
    check_records(records, len(class_names))
    ordered = sorted(records, key=lambda record: record.image_id)
    flat = join([_NO_ROWS, *(_flat(image, record) for image, record in enumerate(ordered))])
    return pack(flat, class_names, [record.image_id for record in ordered])


def match_image(record: Record) -> ImageMatches:
    """COCO's greedy matching of one image, each class by itself, at all of ``COCO_IOUS``.

    From the best score on, a detection takes, of the objects that are free and reach the threshold, the one that it
    overlaps most. Where there is none, but an ignored object reaches the threshold, the detection is ignored.
    """
    rows = _ranked_rows(record)
    iou = record_iou(record)[rows]
    iou[record.labels[rows, None] != record.gt_labels] = 0
    found = iou[:, None, :] >= np.minimum(COCO_IOUS, 1 - 1e-10)[:, None]  # (D, T, G); COCO's limit for IoU 1
    objects = np.full((len(rows), len(COCO_IOUS)), -1)
    free = np.tile(~record.gt_ignore, (len(COCO_IOUS), 1))  # (T, G)
    for i in np.flatnonzero((found[:, 0] & ~record.gt_ignore).any(axis=1)):
        candidates = np.where(free & found[i], iou[i], 0)
        best = len(record.gt_boxes) - 1 - candidates[:, ::-1].argmax(axis=1)  # of equals the last, as COCO does
        hit = np.flatnonzero(candidates.any(axis=1))
        objects[i, hit] = best[hit]
        free[hit, best[hit]] = False
    return ImageMatches(rows=rows, objects=objects, ignored=(objects < 0) & (found & record.gt_ignore).any(axis=2))


def join(tables: Sequence[Table]) -> Table:
    """The rows of all ``tables``, which are dataclasses of arrays, in one."""
    columns = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(tables[0])
    }
    return type(tables[0])(**columns)


def pack(flat: FlatMatches, class_names: Sequence[str], image_ids: Sequence[int]) -> MatchedRecords:
    """The rows of ``flat`` class by class and by score; ``image_ids`` ascend."""
    num_images, num_classes = len(image_ids), len(class_names)
    order = np.lexsort((-flat.scores, flat.labels))  # stable
    starts = np.searchsorted(flat.labels[order], np.arange(num_classes))
    cells = flat.gt_labels * num_images + flat.gt_images
    num_objects = np.bincount(cells, minlength=num_classes * num_images).reshape(num_classes, num_images)
    return MatchedRecords(
        class_names=tuple(class_names),
        image_ids=np.array(image_ids, np.int64),
        classes=tuple(
            ClassMatches(images=flat.images[rows], hits=flat.hits[rows], ignored=flat.ignored[rows], num_objects=counts)
            for rows, counts in zip(np.split(order, starts)[1:], num_objects, strict=True)
        ),
    )


def check_comparable(runs: Mapping[str, MatchedRecords]) -> None:
    """Raises unless all ``runs`` were tested with the same classes, images and objects.

    Raises:
        ValueError: naming the first run and the one that differs from it.
    """
    (first, expected), *others = runs.items()
    for name, matches in others:
        mismatch = _mismatch(expected, matches)
        if mismatch is not None:
            raise ValueError(f"{first} and {name} are not comparable: {mismatch}; test both on the same data")


def _mismatch(a: MatchedRecords, b: MatchedRecords) -> str | None:
    """What was tested differently, first ``a`` and then ``b``; None for nothing."""
    for what, ours, theirs in (
        ("classes", list(a.class_names), list(b.class_names)),
        ("images", a.image_ids.tolist(), b.image_ids.tolist()),
    ):
        if len(ours) != len(theirs):
            return f"{len(ours)} and {len(theirs)} {what}"
        if ours != theirs:
            return f"{what} " + next(f"{x!r} and {y!r}" for x, y in zip(ours, theirs, strict=True) if x != y)
    for name, ours, theirs in zip(a.class_names, a.classes, b.classes, strict=True):
        other = np.flatnonzero(ours.num_objects != theirs.num_objects)
        if len(other):
            counts = f"{ours.num_objects[other[0]]} and {theirs.num_objects[other[0]]}"
            return f"{counts} objects of class {name} in image {a.image_ids[other[0]]}"
    return None


def _flat(image: int, record: Record) -> FlatMatches:
    found = match_image(record)
    counted = ~record.gt_ignore
    return FlatMatches(
        images=np.full(len(found.rows), image),
        labels=record.labels[found.rows],
        scores=record.scores[found.rows],
        hits=found.objects >= 0,
        ignored=found.ignored,
        gt_images=np.full(int(counted.sum()), image),
        gt_labels=record.gt_labels[counted],
    )


def _ranked_rows(record: Record) -> NDArray[np.int64]:
    """Rows of the record's detections, best score first, without those after the hundredth of a class."""
    order = np.argsort(-record.scores, kind="stable")
    by_class = order[np.argsort(record.labels[order], kind="stable")]
    labels = record.labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)  # within the class
    kept = np.zeros(len(order), np.bool_)
    kept[by_class[rank < MAX_DETECTIONS]] = True
    return order[kept[order]]
