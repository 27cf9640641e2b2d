"""Precision, recall and F1 at IoU 0.5, by COCO's matching, as functions of the score threshold.

Shapes: D detections of one class in all images, K classes; R recalls and S score thresholds of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.matching import MatchedRecords, match
from detection.evaluation.record import Record

__all__ = [
    "RECALLS",
    "THRESHOLDS",
    "ClassCurve",
    "best_f1",
    "best_threshold",
    "class_curves",
    "f1_by_threshold",
    "matched_curves",
    "mean_precision",
    "score_of_as_many",
]

RECALLS = np.linspace(0, 1, 101)  # (R,) COCO's
THRESHOLDS = np.linspace(0, 1, 101)  # (S,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCurve:
    """Hits and misses of one class, sorted by falling score; detections of ignored objects are left out."""

    scores: NDArray[np.floating]  # (D,)
    hits: NDArray[np.bool_]  # (D,)
    num_objects: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """(D,) precision of the detections up to and including each one."""
        return np.cumsum(self.hits) / np.arange(1, len(self.hits) + 1)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(D,) recall; NaN for a class without objects."""
        return np.cumsum(self.hits) / (self.num_objects or np.nan)


def class_curves(records: Sequence[Record], num_classes: int) -> tuple[ClassCurve, ...]:
    """Returns the curve (K,) of every class.

    Raises:
        ValueError: a label is not in 0..num_classes-1, or an image occurs twice.
    """
    return matched_curves(match(records, [str(label) for label in range(num_classes)]))


def matched_curves(matches: MatchedRecords) -> tuple[ClassCurve, ...]:
    """Returns the curve (K,) of every class of matched records."""
    curves = []
    for found in matches.classes:
        counted = ~found.ignored[:, 0]
        num_objects = int(found.num_objects.sum())
        curves.append(ClassCurve(scores=found.scores[counted], hits=found.hits[counted, 0], num_objects=num_objects))
    return tuple(curves)


def mean_precision(curves: Sequence[ClassCurve]) -> NDArray[np.float64]:
    """Returns precision (R,) at ``RECALLS``, averaged over the classes with objects; its mean is COCO's AP50.

    As in COCO's metric, the precision at a recall is the best at this or a higher recall, and 0 if none is reached.
    NaN if no class has objects.
    """
    known = [_interpolated(curve) for curve in curves if curve.num_objects]
    return np.mean(known, axis=0) if known else np.full(len(RECALLS), np.nan)


def f1_by_threshold(curves: Sequence[ClassCurve]) -> NDArray[np.float64]:
    """Returns F1 (S,) at each of ``THRESHOLDS``, averaged over the classes with objects.

    F1 = 2 hits / (detections + objects).  NaN if no class has objects.
    """
    known = [_f1(curve) for curve in curves if curve.num_objects]
    return np.mean(known, axis=0) if known else np.full(len(THRESHOLDS), np.nan)


def best_threshold(f1: NDArray[np.float64]) -> float:
    """Returns the highest of ``THRESHOLDS`` at which ``f1`` (S,) is maximal; 0.5 if it is NaN."""
    if np.isnan(f1).any():
        return 0.5
    return float(THRESHOLDS[np.flatnonzero(f1 == f1.max())[-1]])


def best_f1(curves: Sequence[ClassCurve]) -> tuple[float, float] | tuple[None, None]:
    """Returns the best threshold and its F1; None and None without an object or a hit."""
    f1 = f1_by_threshold(curves)
    return (best_threshold(f1), float(f1.max())) if f1.max() > 0 else (None, None)  # NaN is not above 0


def score_of_as_many(records: Sequence[Record]) -> float:
    """Returns the score threshold that keeps as many detections as there are objects; 0 with too few detections.

    Two detectors show about the same number of boxes at it, however their scores are distributed.
    """
    objects = sum(int(np.count_nonzero(~record.gt_ignore)) for record in records)
    scores = np.sort(np.concatenate([record.scores for record in records] or [np.zeros(0)]))[::-1]
    return float(scores[objects - 1]) if 0 < objects <= len(scores) else 0.0


def _interpolated(curve: ClassCurve) -> NDArray[np.float64]:
    """Returns interpolated precision (R,) of one class that has objects."""
    best_from_here = np.maximum.accumulate(curve.precision[::-1])[::-1]
    first_reaching = np.searchsorted(curve.recall, RECALLS, side="left")
    return np.append(best_from_here, 0.0)[first_reaching]


def _f1(curve: ClassCurve) -> NDArray[np.float64]:
    """Returns F1 (S,) of one class that has objects."""
    # Thresholds in the scores' own precision: a score of 0.3 is kept at threshold 0.3.
    kept = np.searchsorted(-curve.scores, -THRESHOLDS.astype(curve.scores.dtype), side="right")
    hits = np.concatenate([[0], np.cumsum(curve.hits)])[kept]
    return 2 * hits / (kept + curve.num_objects)
