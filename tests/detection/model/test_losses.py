"""Mirrors detection/model/losses.py."""

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from detection.model.losses import focal, giou, smooth_l1


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.5 * 0.25 + 1.5), (0.5, 0.25 + 1.75), (0.0, 0.5 + 2.0)])
def test_smooth_l1_by_hand(beta, expected) -> None:
    # Differences 0.5 and 2. Beta 1: 0.125 and 2 - 0.5; beta 0.5: 0.5 - 0.25 and 2 - 0.25; beta 0 is L1.  A mask is a
    # weight.
    rows, weight = torch.tensor([[0.5, 2.0], [9, 9]]), torch.tensor([True, False])
    assert smooth_l1(rows, torch.zeros(2, 2), beta, weight=weight).item() == pytest.approx(expected)


def test_weights_are_those_of_rows_and_zero_leaves_a_row_out() -> None:
    # GIoU apart: IoU 0, hull 30 x 10 = 300, of it 100 empty: 1 - (0 - 1/3). Half covered: IoU and hull agree, 1/2.
    rows = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]], [[0, 0, 10, 10], [5, 5, 9, 9]]], requires_grad=True)
    goals = torch.tensor([[[20.0, 0, 30, 10], [0, 0, 10, 5]], [[1, 2, 3, 4], [1e6, 0, 2e6, 1]]])
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    l1, generalised = smooth_l1(rows, goals, 0.0, weight), giou(rows, goals, weight)
    assert l1.item() == 20 + 20 + 2 * 5
    assert generalised.item() == pytest.approx(4 / 3 + 2 * 1 / 2, rel=1e-5)
    pull, total = (torch.autograd.grad(loss, rows, retain_graph=True)[0] for loss in (generalised, l1 + generalised))
    assert pull[0, 0, 2] < 0  # boxes that do not touch are pulled together: a larger x2 lowers the loss
    assert total[0].any(dim=1).all()
    assert not total[1].any()
    nothing = smooth_l1(rows[:0], goals[:0], 1.0, weight[:0]) + giou(rows[:0], goals[:0], weight[:0])
    assert not torch.autograd.grad(nothing, rows)[0].any()


def test_giou_and_its_gradient_are_torchvisions(random_boxes) -> None:
    boxes, goals = random_boxes(2, 40)
    weight = torch.rand(40, generator=torch.Generator().manual_seed(0))
    expected = (generalized_box_iou_loss(boxes.requires_grad_(), goals) * weight).sum()
    found = giou(boxes, goals, weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, boxes), torch.autograd.grad(expected, boxes))
    assert giou(goals, goals, weight).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_focal_loss_is_torchvisions(alpha, gamma) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 5, 4, generator=generator)).requires_grad_()
    labels, positive = torch.randint(0, 4, (2, 5), generator=generator), torch.rand(2, 5, generator=generator) < 0.5
    weight = torch.rand(2, 5, generator=generator)
    targets = torch.nn.functional.one_hot(labels, 4) * positive[..., None]
    expected = (sigmoid_focal_loss(logits, targets.float(), alpha, gamma) * weight[..., None]).sum()
    found = focal(logits, labels, positive, weight, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


def test_focal_loss_of_sure_logits_is_finite_and_zero_leaves_a_row_out() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    labels, positive, weight = torch.tensor([1, 0]), torch.tensor([True, True]), torch.tensor([1.0, 0.0])
    loss = focal(logits, labels, positive, weight, alpha=0.25, gamma=2.0)
    assert loss.item() == pytest.approx(0.75 * 200 + 0.25 * 200)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
