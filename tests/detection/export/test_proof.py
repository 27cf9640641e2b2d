"""What an export finds is matched with what PyTorch finds."""

from __future__ import annotations

import pytest
import torch

from detection.export.proof import agreement
from detection.structures import Detections


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Squares of side 10: (x, score, label)."""
    boxes = torch.tensor([[x, 0, x + 10, 10] for x, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    scores, labels = torch.tensor([score for _, score, _ in rows]), torch.tensor([label for _, _, label in rows])
    return Detections(boxes=boxes, scores=scores, labels=labels.long())


def test_pairs_are_of_one_class_and_overlap_whatever_their_order() -> None:
    own = detections((0, 0.9, 0), (50, 0.8, 1), (90, 0.5, 0))
    other = detections((50.5, 0.7, 1), (0, 0.9, 0), (90, 0.5, 2))
    found = agreement([own], [other])
    assert (found.detections, found.exported, found.matched) == (3, 3, 2)
    assert found.box == pytest.approx(0.5)
    assert found.score == pytest.approx(0.1)
    assert found.unmatched == pytest.approx(1 / 3)
    assert found.mask is None


def test_equal_boxes_are_paired_by_score() -> None:
    own = detections((0, 0.9, 0), (0, 0.3, 0))
    assert agreement([own], [own[torch.tensor([1, 0])]]).score == pytest.approx(0)


def test_nothing_on_either_side() -> None:
    none, one = detections(), detections((0, 0.9, 0))
    assert agreement([none], [none]).unmatched == 0
    assert agreement([one], [none]).unmatched == 1
