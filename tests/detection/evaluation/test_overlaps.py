"""Mirrors detection/evaluation/overlaps.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detection.evaluation.overlaps import box_iou, covered_share, record_iou
from detection.evaluation.record import Record


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 500, (count, 2))
    sides = rng.uniform(0, 200, (count, 2)) * (rng.random((count, 1)) > 0.1)  # some without area
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def make_record(boxes: np.ndarray, gt_boxes: np.ndarray, ignore: np.ndarray) -> Record:
    return Record(
        image_id=1,
        file_name="a.jpg",
        size=(1000, 1000),
        gt_boxes=gt_boxes,
        gt_labels=np.zeros(len(gt_boxes), np.int64),
        gt_ignore=ignore,
        gt_areas=np.ones(len(gt_boxes), np.float32),
        boxes=boxes,
        scores=np.ones(len(boxes), np.float32),
        labels=np.zeros(len(boxes), np.int64),
    )


def boxes_xywh(boxes: np.ndarray) -> Any:
    exact = boxes.astype(np.float64)
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1)


def test_by_hand() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array([[0, 0, 10, 5], [5, 5, 15, 15], [10, 0, 20, 10], [3, 3, 3, 3]], np.float32)
    np.testing.assert_array_equal(box_iou(box, others), [[0.5, 25 / 175, 0, 0]])
    np.testing.assert_array_equal(covered_share(others, box), [[1.0], [0.25], [0.0], [0.0]])


def test_float32_boxes_are_compared_in_float64() -> None:
    box, other = np.array([[0, 0, 3, 1]], np.float32), np.array([[0, 0, 1, 1]], np.float32)
    assert box_iou(box, other)[0, 0] == 1 / 3


def test_records_get_pycocotools_overlaps_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes, gt_boxes = random_boxes(rng, 30), random_boxes(rng, 12)
        gt_boxes[:4] = boxes[:4]
        ignore = rng.random(12) < 0.4
        expected = coco_mask.iou(boxes_xywh(boxes), boxes_xywh(gt_boxes), ignore.tolist())
        np.testing.assert_array_equal(record_iou(make_record(boxes, gt_boxes, ignore)), expected)


def test_no_boxes() -> None:
    nothing, box = np.zeros((0, 4), np.float32), np.array([[0, 0, 1, 1]], np.float32)
    crowd = np.ones(1, np.bool_)
    assert record_iou(make_record(nothing, box, crowd)).shape == (0, 1)
    assert record_iou(make_record(box, nothing, crowd[:0])).shape == (1, 0)
