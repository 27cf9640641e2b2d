"""Mirrors detection/model/losses.py."""

from __future__ import annotations

import pytest
import torch

from detection.model.losses import giou, smooth_l1


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.5 * 0.25 + 1.5), (0.5, 0.25 + 1.75), (0.0, 0.5 + 2.0)])
def test_smooth_l1_by_hand(beta: float, expected: float) -> None:
    # Differences 0.5 and 2. Beta 1: 0.125 and 2 - 0.5; beta 0.5: 0.5 - 0.25 and 2 - 0.25; beta 0 is L1.
    loss = smooth_l1(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 2), beta)
    assert loss.item() == pytest.approx(expected)


def test_giou_by_hand() -> None:
    # Apart: IoU 0, hull 30 x 10 = 300, of it 100 empty: 1 - (0 - 1/3). Equal: 0. Half covered: IoU and hull agree, 1/2.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    goals = torch.tensor([[20.0, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 5]])
    assert giou(boxes, goals).item() == pytest.approx(4 / 3 + 0 + 1 / 2, rel=1e-5)


def test_giou_pulls_boxes_together_that_do_not_touch() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    giou(boxes, torch.tensor([[20.0, 0, 30, 10]])).backward()
    assert boxes.grad is not None
    assert boxes.grad[0, 2] < 0  # a larger x2 lowers the loss


def test_nothing_is_zero_with_a_gradient() -> None:
    deltas = torch.zeros(0, 4, requires_grad=True)
    (smooth_l1(deltas, torch.zeros(0, 4), 1.0) + giou(deltas, torch.zeros(0, 4))).backward()
    assert deltas.grad is not None
