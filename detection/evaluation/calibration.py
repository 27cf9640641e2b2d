"""Calibration of scores: the precision by score, and the score threshold for a given precision or recall.

A detection is correct if it is a hit at IoU 0.5 by COCO's matching; detections of ignored objects are left out.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (expected calibration error); Kueppers et al.,
"Multivariate Confidence Calibration for Object Detection", CVPRW 2020, who take precision for a detector's accuracy.

Shapes: D detections; B bins of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.curves import ClassCurve

__all__ = [
    "BINS",
    "Calibration",
    "OperatingPoint",
    "calibrate",
    "joined_curve",
    "point_of_precision",
    "point_of_recall",
]

BINS = np.linspace(0, 1, 11)  # (B + 1,) edges; a score on an edge belongs to the lower bin


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Reliability of scores by bin; fractions 0..1, NaN for an empty bin."""

    error: float  # mean difference between score and precision, weighted by the detections of each bin
    score: NDArray[np.float64]  # (B,) mean score
    precision: NDArray[np.float64]  # (B,) fraction of hits
    count: NDArray[np.int64]  # (B,) number of detections


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Precision and recall at one score threshold."""

    score: float
    precision: float
    recall: float


def joined_curve(curves: Sequence[ClassCurve]) -> ClassCurve:
    """Returns the curve of all classes together, in which each detection and object counts once."""
    scores = np.concatenate([np.empty(0, np.float32), *(curve.scores for curve in curves)])
    hits = np.concatenate([np.empty(0, np.bool_), *(curve.hits for curve in curves)])
    order = np.argsort(-scores, kind="stable")
    return ClassCurve(scores=scores[order], hits=hits[order], num_objects=sum(curve.num_objects for curve in curves))


def calibrate(curve: ClassCurve) -> Calibration:
    """Returns the calibration of the detections of ``curve``; the error is NaN without detections.

    Scores outside 0..1 are no probabilities; they count in the first or the last bin.
    """
    bins = np.searchsorted(BINS[1:-1], curve.scores)
    count = np.bincount(bins, minlength=len(BINS) - 1)
    known = np.where(count, count, np.nan)
    score = np.bincount(bins, weights=curve.scores, minlength=len(count)) / known
    precision = np.bincount(bins, weights=curve.hits, minlength=len(count)) / known
    error = float(np.nansum(count * np.abs(score - precision)) / count.sum()) if count.any() else float("nan")
    return Calibration(error=error, score=score, precision=precision, count=count)


def point_of_precision(curve: ClassCurve, wanted: float) -> OperatingPoint | None:
    """Returns the point at the lowest score threshold whose precision is at least ``wanted`` (0..1); None if none."""
    return _point(curve, np.flatnonzero(_ends(curve) & (curve.precision >= wanted))[-1:])


def point_of_recall(curve: ClassCurve, wanted: float) -> OperatingPoint | None:
    """Returns the point at the highest score threshold whose recall is at least ``wanted`` (0..1); None if none."""
    return _point(curve, np.flatnonzero(_ends(curve) & (curve.recall >= wanted))[:1])


def _ends(curve: ClassCurve) -> NDArray[np.bool_]:
    """Returns whether each detection (D,) is the last with its score: a threshold keeps equal scores together."""
    return np.append(curve.scores[1:] < curve.scores[:-1], np.ones(min(len(curve.scores), 1), np.bool_))


def _point(curve: ClassCurve, rows: NDArray[np.int64]) -> OperatingPoint | None:
    if not len(rows) or not curve.num_objects:
        return None
    row = int(rows[0])
    return OperatingPoint(
        score=float(curve.scores[row]), precision=float(curve.precision[row]), recall=float(curve.recall[row])
    )
