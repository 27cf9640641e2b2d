"""Panoptic quality (PQ) of the predicted segments of things and stuff.

All figures derive from four sums per class over the images: IoU of hits, hits, false positives and misses.

Source: "Panoptic Segmentation" (Kirillov et al. 2019), section 4, and COCO's panopticapi.
Shapes: K classes, H W height and width of an image; numbers of a class in the order of ``COUNTS``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detection.segments import Segment, Segments

__all__ = [
    "COUNTS",
    "PANOPTIC_CLASS_NUMBERS",
    "PANOPTIC_NUMBERS",
    "class_qualities",
    "panoptic_counts",
    "panoptic_figures",
]

COUNTS = ("IoU", "hits", "false_positives", "misses")
PANOPTIC_CLASS_NUMBERS = ("PQ", "SQ", "RQ")
PANOPTIC_NUMBERS = tuple(f"{name}{group}" for group in ("", "_things", "_stuff") for name in PANOPTIC_CLASS_NUMBERS)

HIT_IOU = 0.5  # above it a segment has at most one match
FORGIVEN = 0.5  # a prediction with a larger fraction of void or crowd is no false positive

Floats = NDArray[np.float64]


def panoptic_counts(true: Segments, predicted: Segments, num_classes: int) -> Floats:
    """Returns the counts (K, 4) of one image.

    Segments without a pixel do not count.  Crowds of the ground truth are never missed.  A prediction mostly inside
    void and crowds of its class is no false positive.

    Raises:
        ValueError: the images differ in size, a pixel belongs to a segment that is not listed, a segment is listed
            twice, or a label is outside 0..K-1.
    """
    if true.ids.shape != predicted.ids.shape:
        raise ValueError(f"the prediction is {predicted.ids.shape} pixels, the ground truth {true.ids.shape}")
    true_rows, true_found = _rows(true, num_classes, "ground truth")
    rows, found = _rows(predicted, num_classes, "prediction")
    # Pixels by true (row 0: void) and by predicted segment (column 0: void).
    shape = len(true_found) + 1, len(found) + 1
    shared = np.bincount((true_rows * shape[1] + rows).reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
    true_areas, areas = shared.sum(axis=1), shared.sum(axis=0)
    true_labels = np.array([-1, *(segment.label for segment in true_found)])
    labels = np.array([-2, *(segment.label for segment in found)])
    crowd = np.array([False, *(segment.crowd for segment in true_found)])
    same = true_labels[:, None] == labels

    union = true_areas[:, None] + areas - shared - shared[0]
    iou = np.where(same & ~crowd[:, None], shared / np.maximum(union, 1), 0)
    hit = iou > HIT_IOU
    missed = ~hit.any(axis=1) & ~crowd & (true_areas > 0) & (true_labels >= 0)
    forgiven = shared[0] + (shared * (same & crowd[:, None])).sum(axis=0)
    false = ~hit.any(axis=0) & (areas > 0) & (labels >= 0) & (forgiven <= FORGIVEN * areas)

    counts = np.zeros((num_classes, len(COUNTS)))
    of_hits = true_labels[hit.any(axis=1)]
    np.add.at(counts[:, 0], of_hits, iou[hit])
    for column, of_class in enumerate((of_hits, labels[false], true_labels[missed]), start=1):
        counts[:, column] = np.bincount(of_class, minlength=num_classes)
    return counts


def class_qualities(counts: Floats) -> Floats:
    """Returns PQ, SQ and RQ (..., K, 3) from sums of counts (..., K, 4); NaN for a class without any segment.

    SQ is the mean IoU of hits, 0 without hits.  RQ is hits / (hits + half of false positives and misses).  PQ is their
    product.
    """
    total, hits = counts[..., 0], counts[..., 1]
    segments = hits + counts[..., 2:].sum(axis=-1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        sq = np.where(hits > 0, total / hits, 0)
        pq, rq = total / segments, hits / segments  # 0 / 0 is NaN
    return np.stack([pq, np.where(segments > 0, sq, np.nan), rq], axis=-1)


def panoptic_figures(counts: Floats, num_things: int) -> Floats:
    """Returns the means over classes (..., 9), in the order of ``PANOPTIC_NUMBERS``, from sums of counts (..., K, 4).

    Classes without any segment are left out; NaN if none is left.

    Args:
        counts: counts summed over images.
        num_things: number of classes of things, which come first; the others are stuff.
    """
    qualities = class_qualities(counts)
    groups = qualities, qualities[..., :num_things, :], qualities[..., num_things:, :]
    return np.concatenate([_mean(group) for group in groups], axis=-1)


def _rows(segments: Segments, num_classes: int, what: str) -> tuple[NDArray[np.int64], tuple[Segment, ...]]:
    """Returns the row (H, W) of each pixel's segment, from 1, or 0 for void; and the segments of the rows."""
    ids = np.array([0, *(segment.id for segment in segments.found)], np.int64)
    present, places = np.unique(segments.ids, return_inverse=True)
    unlisted = np.setdiff1d(present, ids)
    if len(unlisted):
        raise ValueError(f"{what}: pixels of segment {unlisted[0]}, which is not listed")
    if len(np.unique(ids)) < len(ids):
        twice = [segment.id for segment in segments.found if segment.id == 0 or (ids == segment.id).sum() > 1]
        raise ValueError(f"{what}: segment {twice[0]} is listed twice or is void's 0")
    outside = [segment for segment in segments.found if not 0 <= segment.label < num_classes]
    if outside:
        raise ValueError(f"{what}: label {outside[0].label}, expected 0..{num_classes - 1}")
    order = np.argsort(ids)
    row_of = order[np.searchsorted(ids[order], present)]
    return row_of[places].reshape(segments.ids.shape), segments.found


def _mean(qualities: Floats) -> Floats:
    """Returns the mean (..., 3) over classes of ``qualities`` (..., K, 3)."""
    known = ~np.isnan(qualities)
    with np.errstate(invalid="ignore"):
        return np.where(known, qualities, 0).sum(axis=-2) / known.sum(axis=-2)
