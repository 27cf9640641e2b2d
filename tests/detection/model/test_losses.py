"""Mirrors detection/model/losses.py."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from detection.model.losses import focal, giou, smooth_l1


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.5 * 0.25 + 1.5), (0.5, 0.25 + 1.75), (0.0, 0.5 + 2.0)])
def test_smooth_l1_by_hand(beta: float, expected: float) -> None:
    # Differences 0.5 and 2. Beta 1: 0.125 and 2 - 0.5; beta 0.5: 0.5 - 0.25 and 2 - 0.25; beta 0 is L1.
    loss = smooth_l1(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 2), beta, weight=torch.ones(1))
    assert loss.item() == pytest.approx(expected)


def test_giou_by_hand() -> None:
    # Apart: IoU 0, hull 30 x 10 = 300, of it 100 empty: 1 - (0 - 1/3). Equal: 0. Half covered: IoU and hull agree, 1/2.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    goals = torch.tensor([[20.0, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 5]])
    assert giou(boxes, goals, weight=torch.ones(3)).item() == pytest.approx(4 / 3 + 0 + 1 / 2, rel=1e-5)


def test_giou_and_its_gradient_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 50 * torch.rand(2, 40, 2, generator=generator)
    boxes, goals = torch.cat([corners, corners + 5 + 30 * torch.rand(2, 40, 2, generator=generator)], dim=2)
    weight = torch.rand(40, generator=generator)
    expected = (generalized_box_iou_loss(boxes.requires_grad_(), goals) * weight).sum()
    found = giou(boxes, goals, weight)
    torch.testing.assert_close(found, expected)
    (gradient,), (wanted,) = torch.autograd.grad(found, boxes), torch.autograd.grad(expected, boxes)
    torch.testing.assert_close(gradient, wanted)


def test_giou_pulls_boxes_together_that_do_not_touch() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    giou(boxes, torch.tensor([[20.0, 0, 30, 10]]), weight=torch.ones(1)).backward()
    assert boxes.grad is not None
    assert boxes.grad[0, 2] < 0  # a larger x2 lowers the loss


def test_nothing_is_zero_with_a_gradient() -> None:
    deltas, none = torch.zeros(0, 4, requires_grad=True), torch.zeros(0)
    (smooth_l1(deltas, torch.zeros(0, 4), 1.0, none) + giou(deltas, torch.zeros(0, 4), none)).backward()
    assert deltas.grad is not None


def test_weights_are_those_of_rows_and_zero_leaves_a_row_out() -> None:
    rows = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]], [[0, 0, 10, 10], [5, 5, 9, 9]]], requires_grad=True)
    goals = torch.tensor([[[20.0, 0, 30, 10], [0, 0, 10, 5]], [[1, 2, 3, 4], [1e6, 0, 2e6, 1]]])
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    l1, generalised = smooth_l1(rows, goals, 0.0, weight), giou(rows, goals, weight)
    assert l1.item() == 20 + 20 + 2 * 5
    assert generalised.item() == pytest.approx(4 / 3 + 2 * 1 / 2, rel=1e-5)
    (l1 + generalised).backward()
    assert rows.grad is not None
    assert rows.grad[0].any(dim=1).all()
    assert not rows.grad[1].any()
    assert rows.grad.isfinite().all()


def test_a_mask_is_a_weight() -> None:
    deltas, goals = torch.tensor([[3.0, 0, 0, 0], [9, 9, 9, 9]]), torch.zeros(2, 4)
    assert smooth_l1(deltas, goals, 0.0, torch.tensor([True, False])).item() == 3


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_focal_loss_is_torchvisions(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 5, 4, generator=generator)).requires_grad_()
    labels, positive = torch.randint(0, 4, (2, 5), generator=generator), torch.rand(2, 5, generator=generator) < 0.5
    weight = torch.rand(2, 5, generator=generator)
    targets = torch.nn.functional.one_hot(labels, 4) * positive[..., None]
    expected = (sigmoid_focal_loss(logits, targets.float(), alpha, gamma) * weight[..., None]).sum()
    found = focal(logits, labels, positive, weight, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(found, expected)
    (gradient,), (wanted,) = torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)


def test_focal_loss_of_sure_logits_is_finite_and_zero_leaves_a_row_out() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    labels, positive, weight = torch.tensor([1, 0]), torch.tensor([True, True]), torch.tensor([1.0, 0.0])
    loss = focal(logits, labels, positive, weight, alpha=0.25, gamma=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 200 + 0.25 * 200)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()
