"""COCO's AP of any resample of the test images, from a single matching.

Shapes: B resamples of N images, K classes, T IoU thresholds; D detections.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.curves import RECALLS
from detection.evaluation.matching import ClassMatches, MatchedRecords
from detection.evaluation.overlaps import COCO_IOUS

__all__ = ["average_precision", "mean_over_classes"]

_CHUNK = 2**19  # detections times resamples computed at once: some megabytes


def average_precision(matches: MatchedRecords, weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns COCO's AP (B, K, T) of resamples in which image i occurs ``weights[:, i]`` times; ``weights`` is (B, N).

    A class without objects has NaN.  The copies of a detection are ranked one after the other.
    """
    num_thresholds = matches.classes[0].hits.shape[1] if matches.classes else len(COCO_IOUS)
    ap = np.empty((len(weights), len(matches.classes), num_thresholds))
    for label, found in enumerate(matches.classes):
        step = max(1, _CHUNK // max(1, len(found.images)))
        for start in range(0, len(weights), step):
            ap[start : start + step, label] = _class_ap(found, weights[start : start + step])
    return ap


def mean_over_classes(ap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over the classes (axis 1) that have a value; NaN if none has."""
    known = ~np.isnan(ap)
    count = known.sum(axis=1)
    return np.where(known, ap, 0).sum(axis=1) / np.where(count, count, np.nan)


def _class_ap(found: ClassMatches, weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns the AP (B, T) of one class."""
    num_objects = weights @ found.num_objects
    copies = np.take(weights, found.images, axis=1)  # (B, D)
    seen = np.cumsum(copies, axis=1, dtype=np.int32)
    ap = np.zeros((len(weights), found.hits.shape[1]))
    for t in np.flatnonzero(found.hits.any(axis=0)).tolist():
        hits, ignored_rows = np.flatnonzero(found.hits[:, t]), np.flatnonzero(found.ignored[:, t])
        true = np.cumsum(np.take(copies, hits, axis=1), axis=1, dtype=np.int32)
        positives = np.take(seen, hits, axis=1)
        if len(ignored_rows):
            skipped = np.cumsum(np.pad(copies[:, ignored_rows], ((0, 0), (1, 0))), axis=1)
            positives -= skipped[:, np.searchsorted(ignored_rows, hits)]  # those above each hit
        ap[:, t] = _area(true, positives, num_objects)
    ap[num_objects == 0] = np.nan
    return ap


def _area(
    true: NDArray[np.integer], positives: NDArray[np.integer], num_objects: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Returns the mean (B,) of interpolated precision at recall 0, 0.01, ..., 1, from counts at the hits (B, hits).

    Between two hits precision falls and recall is constant, so the best precisions are at hits.  A hit with weight w
    counts as w hits in a row.  Precision does not fall among these, so only the last one is needed.
    """
    precision = true / np.maximum(positives, 1)
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # COCO's comparison recall >= 0.01 * i, in its own floating point
    recall = true / np.maximum(num_objects, 1)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")
    return (best_from_here * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
