"""IoU of numpy boxes by ``detection.boxes``, in float64: float32 rounding could lift an IoU over a threshold."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from detection.boxes import intersection_over_area, iou
from detection.evaluation.record import Record

__all__ = ["COCO_IOUS", "HIT_IOU", "box_areas", "box_iou", "covered_share", "intersections", "record_iou"]

COCO_IOUS = np.linspace(0.5, 0.95, 10)  # thresholds of COCO's AP and AR
HIT_IOU = 0.5  # IoU from which a detection is a hit, by VOC's and ImageNet's rules

Boxes = NDArray[np.floating]


def box_iou(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """Returns the IoU (N, M) of every box (N, 4) with every other (M, 4)."""
    return iou(_exact(boxes), _exact(others)).numpy()


def covered_share(boxes: Boxes, regions: Boxes) -> NDArray[np.float64]:
    """Returns the fraction (N, M) of each box (N, 4) inside each region (M, 4)."""
    return intersection_over_area(_exact(boxes), _exact(regions)).numpy()


def record_iou(record: Record) -> NDArray[np.float64]:
    """Returns COCO's IoU (D, G) of all detections and objects; for ignored objects the covered fraction."""
    overlaps = box_iou(record.boxes, record.gt_boxes)
    ignored = record.gt_ignore
    if ignored.any():
        overlaps[:, ignored] = covered_share(record.boxes, record.gt_boxes[ignored])
    return overlaps


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the areas (N,) of ``boxes`` (N, 4) in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersections(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the area (N,) of the intersection of each box (N, 4) with the other box (N, 4) of its row."""
    first, last = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    width, height = (last - first).clip(min=0).T
    return width * height


def _exact(boxes: Boxes) -> torch.Tensor:
    return torch.from_numpy(boxes.astype(np.float64))
