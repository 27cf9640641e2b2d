"""Mirrors detection/model/postprocess.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detection.model.box_stage import ScoredBoxes
from detection.model.postprocess import Postprocessor, rescale
from detection.structures import Detections

SQUARE, SHIFTED, FAR = (0.0, 0, 10, 10), (0.0, 0, 10, 8), (50.0, 50, 60, 60)  # IoU of the first two: 0.8


def scored(scores: list[list[float]], boxes: list[tuple[float, ...]]) -> ScoredBoxes:
    """Every class of a region has the same box."""
    rows = torch.tensor(boxes).reshape(-1, 1, 4)
    return ScoredBoxes(torch.tensor(scores), rows.expand(-1, len(scores[0]), -1))


def rows_of(detections: Detections) -> list[tuple[float, int]]:
    return [
        (round(s, 4), label) for s, label in zip(detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ]


def test_nms_works_within_a_class_only() -> None:
    found = Postprocessor(nms_iou=0.5)(scored([[0.6, 0.7], [0.9, 0.3], [0.8, 0.0]], [SQUARE, SHIFTED, FAR]))
    assert rows_of(found) == [(0.9, 0), (0.8, 0), (0.7, 1)]
    torch.testing.assert_close(found.boxes, torch.tensor([SHIFTED, FAR, SQUARE]))


def test_boxes_at_most_as_near_as_the_threshold_stay() -> None:
    boxes = scored([[0.6], [0.9]], [SQUARE, SHIFTED])
    assert len(Postprocessor(nms_iou=0.79)(boxes)) == 1
    assert len(Postprocessor(nms_iou=0.81)(boxes)) == 2


def test_score_must_exceed_the_threshold() -> None:
    found = Postprocessor(score_threshold=0.5)(scored([[0.5, 0.5001], [0.4999, 0.0]], [SQUARE, FAR]))
    assert rows_of(found) == [(0.5001, 1)]


def test_best_detections_of_all_classes_are_kept() -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(3)]
    found = Postprocessor(max_detections=4)(scored([[0.1, 0.9], [0.8, 0.2], [0.7, 0.6]], boxes))
    assert rows_of(found) == [(0.9, 1), (0.8, 0), (0.7, 0), (0.6, 1)]


def test_every_class_has_its_own_box() -> None:
    boxes = torch.tensor([[SQUARE, FAR]])
    found = Postprocessor()(ScoredBoxes(torch.tensor([[0.3, 0.6]]), boxes))
    assert rows_of(found) == [(0.6, 1), (0.3, 0)]
    torch.testing.assert_close(found.boxes, torch.tensor([FAR, SQUARE]))


def test_empty_boxes_are_no_detections() -> None:
    found = Postprocessor()(scored([[0.9], [0.8], [0.7]], [(5.0, 0, 5, 10), (0.0, 7, 10, 7), SQUARE]))
    assert rows_of(found) == [(0.7, 0)]


@pytest.mark.parametrize("regions", [0, 3])
def test_nothing_found(regions: int) -> None:
    found = Postprocessor(score_threshold=1.0)(ScoredBoxes(torch.ones(regions, 4), torch.zeros(regions, 4, 4)))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == torch.int64


def detections(boxes: Tensor) -> Detections:
    return Detections(boxes=boxes, scores=torch.rand(len(boxes)), labels=torch.arange(len(boxes)))


def test_rescale_by_hand() -> None:
    found = detections(torch.tensor([[10.0, 20, 30, 40]]))
    moved = rescale(found, (100, 200), (50, 600))  # half as high, three times as wide
    torch.testing.assert_close(moved.boxes, torch.tensor([[30.0, 10, 90, 20]]))
    assert moved.scores is found.scores
    assert moved.labels is found.labels
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 20, 30, 40]]))


def test_rescale_keeps_the_whole_image_whole() -> None:
    moved = rescale(detections(torch.tensor([[0.0, 0, 1000, 750]])), (750, 1000), (333, 499))
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 0, 499, 333]]))


def test_rescale_nothing() -> None:
    assert rescale(detections(torch.zeros(0, 4)), (10, 10), (20, 20)).boxes.shape == (0, 4)
