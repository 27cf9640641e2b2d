"""PASCAL VOC average precision, by the definition of VOC2007 (11 points) and by that of VOC2010 and later (area).

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and the
evaluation code of the VOC2007 and VOC2012 development kits.  ImageNet's rule of matching: the ILSVRC2015 development
kit, section 2.3.

Shapes: N images, G ground-truth boxes and D detections of one image, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.overlaps import HIT_IOU, box_iou
from detection.evaluation.record import Record, check_records

__all__ = ["VocResult", "evaluate_voc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VocResult:
    """AP of each class as a fraction 0..1; NaN for a class that has no ground truth to find."""

    ap_11point: NDArray[np.float64]  # (K,) mean of the best precision at recall 0, 0.1, ..., 1 (VOC2007)
    ap_area: NDArray[np.float64]  # (K,) area under the monotone precision-recall curve (VOC2010 and later)

    @property
    def mean_ap_11point(self) -> float:
        """Mean over the classes that have a value, NaN if none has."""
        return _mean_of_known(self.ap_11point)

    @property
    def mean_ap_area(self) -> float:
        """Mean over the classes that have a value, NaN if none has."""
        return _mean_of_known(self.ap_area)


def evaluate_voc(
    records: Sequence[Record], class_names: Sequence[str], *, iou_threshold: float = HIT_IOU, imagenet: bool = False
) -> VocResult:
    """AP of every class over ``records``, as the VOC development kit defines it.

    Detections of a class are ranked over all images by score; ties keep the order of the images, then of the rows.
    Each is compared with the one object of its class and image that it overlaps most: a hit where IoU >=
    ``iou_threshold`` and no detection ranked above has taken that object, otherwise a miss. A detection whose object
    is ignored ("difficult") is neither, and ignored objects do not count in the recall.

    Boxes have width = x2 - x1. VOC counts pixels from 1 with both ends inside the box, so its readers turn
    (xmin, ymin, xmax, ymax) into (xmin - 1, ymin - 1, xmax, ymax); x2 - x1 is then the kit's xmax - xmin + 1, and the
    IoU is exactly the kit's.

    With ``imagenet``, an object of w x h pixels is found at IoU >= min(``iou_threshold``, w h / ((w + 10) (h + 10))),
    and a detection takes, of the objects not yet taken that it finds, the one that it overlaps most.

    One departure: recall is compared with 0, 0.1, ..., 1 as exact fractions. In the kit's floating point 3 of 10
    objects lie just below recall 0.3.

    Raises:
        ValueError: ``iou_threshold`` outside (0, 1], a label that ``class_names`` lacks, an image that occurs twice.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is a fraction above 0 and at most 1, got {iou_threshold}; VOC uses 0.5")
    check_records(records, len(class_names))
    labels = np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)])
    scores = np.concatenate([np.empty(0, np.float32), *(record.scores for record in records)])
    gt_labels = np.concatenate([np.empty(0, np.int64), *(record.gt_labels for record in records)])
    # One more element than there are objects: row -1, "no object", is not ignored.
    gt_ignore = np.concatenate([*(record.gt_ignore for record in records), np.zeros(1, np.bool_)])
    matches = _match(records, _match_imagenet if imagenet else _match_voc, iou_threshold)

    ap = np.empty((len(class_names), 2))
    for label in range(len(class_names)):
        num_objects = int(np.count_nonzero((gt_labels == label) & ~gt_ignore[:-1]))
        rows = np.flatnonzero(labels == label)
        ranked = matches[rows[np.argsort(-scores[rows], kind="stable")]]
        ap[label] = _average_precisions(_hits(ranked[~gt_ignore[ranked]]), num_objects)
    return VocResult(ap_11point=ap[:, 0], ap_area=ap[:, 1])


def _match(
    records: Sequence[Record], rule: Callable[[Record, float], NDArray[np.int64]], iou_threshold: float
) -> NDArray[np.int64]:
    """The object that each detection is compared with, -1 for none: rows of all ground truth, joined in order."""
    matches, num_gt = [np.empty(0, np.int64)], 0
    for record in records:
        rows = rule(record, iou_threshold)
        matches.append(np.where(rows < 0, -1, rows + num_gt))
        num_gt += len(record.gt_boxes)
    return np.concatenate(matches)


def _match_voc(record: Record, iou_threshold: float) -> NDArray[np.int64]:
    """The row (D,) of the object of its class that each detection overlaps most, -1 below the threshold.

    Equal IoUs go to the first object.
    """
    if len(record.gt_boxes) == 0:  # argmax has no answer for no columns
        return np.full(len(record.boxes), -1)
    iou = _iou(record)
    rows = iou.argmax(axis=1)
    return np.where(iou[np.arange(len(iou)), rows] >= iou_threshold, rows, -1)


def _match_imagenet(record: Record, iou_threshold: float) -> NDArray[np.int64]:
    """The row (D,) of the object that each detection takes, -1 for none."""
    matches = np.full(len(record.boxes), -1)
    if len(record.gt_boxes) == 0:
        return matches
    corners = record.gt_boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    loosened = sides.prod(axis=1) / (sides + 10).prod(axis=1)
    iou = _iou(record)
    iou[iou < np.minimum(iou_threshold, loosened)] = 0
    for row in np.argsort(-record.scores, kind="stable"):
        best = int(iou[row].argmax())
        if iou[row, best] > 0:
            matches[row] = best
            iou[:, best] = 0
    return matches


def _iou(record: Record) -> NDArray[np.float64]:
    """IoU (D, G) of detections and objects, 0 for those of other classes."""
    iou = box_iou(record.boxes, record.gt_boxes)
    iou[record.labels[:, None] != record.gt_labels] = 0
    return iou


def _hits(matches: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the ranked ``matches`` are the first to name their object; -1 names none."""
    hits = np.zeros(len(matches), np.bool_)
    hits[np.unique(matches, return_index=True)[1]] = True
    return hits & (matches >= 0)


def _average_precisions(hits: NDArray[np.bool_], num_objects: int) -> tuple[float, float]:
    """The 11-point AP and the area AP of one class from its ranked detections, (NaN, NaN) without objects."""
    if num_objects == 0:
        return math.nan, math.nan
    num_found = np.cumsum(hits)
    precision = num_found / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or a higher one
    # Integers, because recall >= 0.1 * i in floating point can miss by one bit.
    first_reaching = np.searchsorted(10 * num_found, num_objects * np.arange(11))
    ap_11point = np.append(best_from_here, 0.0)[first_reaching].mean()  # 0 where the recall is never reached
    ap_area = best_from_here[hits].sum() / num_objects  # recall grows by 1 / num_objects at each hit
    return float(ap_11point), float(ap_area)


def _mean_of_known(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
