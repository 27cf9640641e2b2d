"""Mirrors shake_shake.py; the contract of all backbones is in test_base.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from backbones.classifier import Classifier
from backbones.registry import build_backbone
from backbones.shake_shake import ShakeBlock, ShakeShake, shake


@pytest.mark.parametrize(("width", "millions"), [(32, 2.9), (64, 11.7), (96, 26.2)])
def test_networks_have_the_published_parameters(width: int, millions: float) -> None:
    with torch.device("meta"):
        network = Classifier(build_backbone(f"cifar_shake_shake26_2x{width}d", norm="bn"), 10)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_gradient_is_shared_otherwise_than_the_values() -> None:
    torch.manual_seed(0)
    one, other = torch.ones(64, 2, 3, 3, requires_grad=True), torch.zeros(64, 2, 3, 3, requires_grad=True)
    mixed = shake(one, other)  # the share of ``one``, image by image
    mixed.sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad + other.grad, torch.ones_like(one))
    forward, backward = mixed[:, 0, 0, 0], one.grad[:, 0, 0, 0]
    assert mixed.eq(forward.view(-1, 1, 1, 1)).all()  # one share an image
    for shares in (forward, backward):
        assert (shares >= 0).all()
        assert (shares <= 1).all()
        assert shares.mean().item() == pytest.approx(0.5, abs=0.15)
    assert (forward - backward).abs().min() > 0
    assert torch.stack([forward, backward]).corrcoef()[0, 1].abs() < 0.4


def test_a_test_takes_half_of_each_branch() -> None:
    torch.manual_seed(0)
    block = ShakeBlock(8, 8, stride=1, norm=nn.BatchNorm2d).eval()
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x + 0.5 * block.branch1(x) + 0.5 * block.branch2(x))
    assert not torch.equal(block.train()(x), block(x))


def test_trains(assert_trains: Callable[..., None]) -> None:
    torch.manual_seed(0)
    network = Classifier(ShakeShake(8, norm="bn"), 4)
    assert_trains(network, rate=0.05, steps=20, last=5)
