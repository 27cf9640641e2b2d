"""Errors at one score threshold: confusion matrix, ranking of images, and the objects that a detector finds.

Shapes: K classes; D detections and G objects of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.overlaps import HIT_IOU, box_iou, covered_share
from detection.evaluation.record import Record

__all__ = ["ImageScore", "Pairs", "confusion_matrix", "found_objects", "pair", "rank_images"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Detections of one image above a score threshold, best first, and the object matched to each."""

    rows: NDArray[np.int64]  # (D,) row among the record's detections
    objects: NDArray[np.int64]  # (D,) row of an object, of any class; -1 for the background


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """Hits, misses and false positives of one image."""

    row: int  # of the records
    hits: int
    misses: int
    false: int

    @property
    def f1(self) -> float:
        """2 hits / (detections + objects)."""
        return 2 * self.hits / (2 * self.hits + self.misses + self.false)


def pair(record: Record, *, min_score: float) -> Pairs:
    """Returns the detections with a score of at least ``min_score``, and the objects matched to them.

    In order of score, each detection is matched to the free object of its class with the largest IoU, at least 0.5.
    Then the remaining detections are matched, in the same order, to free objects of other classes.  An unmatched
    detection of which at least half is inside an ignored object is left out.
    """
    kept = np.flatnonzero(record.scores >= record.scores.dtype.type(min_score))
    kept = kept[np.argsort(-record.scores[kept], kind="stable")]
    boxes = record.boxes[kept]
    overlaps = np.where(record.gt_ignore, 0, box_iou(boxes, record.gt_boxes))
    same = record.labels[kept, None] == record.gt_labels
    objects = _take(np.where(same, overlaps, 0), np.full(len(kept), -1))
    objects = _take(overlaps, objects)
    inside = covered_share(boxes, record.gt_boxes[record.gt_ignore]).max(axis=1, initial=0)
    counted = (objects >= 0) | (inside < HIT_IOU)
    return Pairs(rows=kept[counted], objects=objects[counted])


def confusion_matrix(records: Sequence[Record], num_classes: int, *, min_score: float) -> NDArray[np.int64]:
    """Returns counts (K + 1, K + 1) with a row per class of objects and a column per class of detections.

    The last row counts detections on the background, the last column missed objects.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for record in records:
        pairs = pair(record, min_score=min_score)
        truth = np.append(record.gt_labels, num_classes)[pairs.objects]
        np.add.at(matrix, (truth, record.labels[pairs.rows]), 1)
        unseen = ~record.gt_ignore
        unseen[pairs.objects[pairs.objects >= 0]] = False
        matrix[:-1, -1] += np.bincount(record.gt_labels[unseen], minlength=num_classes)
    return matrix


def found_objects(record: Record, *, min_score: float) -> NDArray[np.bool_]:
    """Returns whether each object (G,) is found by a detection of its class with at least ``min_score``.

    Ignored objects are never found.
    """
    pairs = pair(record, min_score=min_score)
    taken = pairs.objects >= 0
    rows, objects = pairs.rows[taken], pairs.objects[taken]
    found = np.zeros(len(record.gt_boxes), np.bool_)
    found[objects[record.labels[rows] == record.gt_labels[objects]]] = True
    return found


def rank_images(records: Sequence[Record], *, min_score: float) -> list[ImageScore]:
    """Ranks all images with an object or a detection by F1, then by more hits, then by fewer errors."""
    scores = []
    for row, record in enumerate(records):
        hits = int(np.count_nonzero(found_objects(record, min_score=min_score)))
        shown = len(pair(record, min_score=min_score).rows)
        wanted = int(np.count_nonzero(~record.gt_ignore))
        if shown or wanted:
            scores.append(ImageScore(row=row, hits=hits, misses=wanted - hits, false=shown - hits))
    return sorted(scores, key=lambda s: (-s.f1, -s.hits, s.misses + s.false))


def _take(overlaps: NDArray[np.float64], objects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns ``objects`` (D,) with -1 replaced by free objects; rows of ``overlaps`` (D, G) are sorted by score."""
    objects, free = objects.copy(), overlaps.copy()
    free[:, objects[objects >= 0]] = 0
    for row in np.flatnonzero((objects < 0) & (free >= HIT_IOU).any(axis=1)):
        best = int(free[row].argmax())
        if free[row, best] >= HIT_IOU:
            objects[row] = best
            free[:, best] = 0
    return objects
