"""Mirrors detection/evaluation/overlaps.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detection.evaluation.overlaps import box_iou, covered_share, record_iou
from detection.evaluation.record import Record


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 500, (count, 2))
    sides = rng.uniform(0, 200, (count, 2)) * (rng.random((count, 1)) > 0.1)  # some without area
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def boxes_xywh(boxes: np.ndarray) -> Any:
    exact = boxes.astype(np.float64)
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1)


def test_by_hand() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array([[0, 0, 10, 5], [5, 5, 15, 15], [10, 0, 20, 10], [3, 3, 3, 3]], np.float32)
    np.testing.assert_array_equal(box_iou(box, others), [[0.5, 25 / 175, 0, 0]])
    np.testing.assert_array_equal(covered_share(others, box), [[1.0], [0.25], [0.0], [0.0]])
    third = np.array([[0, 0, 3, 1], [0, 0, 1, 1]], np.float32)
    assert box_iou(third[:1], third[1:])[0, 0] == 1 / 3  # in float64


def test_records_get_pycocotools_overlaps_to_the_bit(record: Callable[..., Record]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes, gt_boxes, ignore = random_boxes(rng, 30), random_boxes(rng, 12), rng.random(12) < 0.4
        gt_boxes[:4] = boxes[:4]
        image = replace(record(gt_boxes, [(box, 1) for box in boxes]), gt_ignore=ignore)
        expected = coco_mask.iou(boxes_xywh(boxes), boxes_xywh(gt_boxes), ignore.tolist())
        np.testing.assert_array_equal(record_iou(image), expected)
    box = [0, 0, 1, 1]
    assert record_iou(record([box], ignore=[0])).shape == (0, 1)
    assert record_iou(record([], [(box, 1)])).shape == (1, 0)
