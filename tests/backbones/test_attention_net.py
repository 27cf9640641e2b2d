"""Mirrors attention_net.py; the contract of all backbones is in test_base.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.attention import Gate
from backbones.attention_net import AttentionNet, CifarAttentionNet, SoftMask
from backbones.classifier import Classifier
from backbones.norm import NormKind, make_norm
from backbones.registry import build_backbone
from backbones.residual import BlockDesign, make_activation
from backbones.summary import count_multiply_adds

DESIGN = BlockDesign("B", make_norm("bn", 1e-5), make_activation("relu"))


@cache
def meta_classifier(name: str) -> Classifier:
    with torch.device("meta"):
        return Classifier(build_backbone(name, norm="bn"), 10 if name.startswith("cifar") else 1000)


def millions(network: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> float:
    layers = (module for module in network.modules() if isinstance(module, kinds))
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False)) / 1e6


def test_attention_56_has_the_published_parameters() -> None:
    network = meta_classifier("attention56")
    statistics = sum(buffer.numel() for buffer in network.buffers() if buffer.ndim > 0)  # which Caffe's layers hold too
    assert round(millions(network) + statistics / 1e6, 1) == 31.9


def test_sizes_that_are_not_quite_the_published_ones() -> None:
    # The paper has 6.2 G multiply-adds, and 51.3 M and 10.4 G for 92 layers; the authors' prototxt has a little more.
    assert count_multiply_adds(meta_classifier("attention56"), (224, 224)) / 1e9 == pytest.approx(6.2, rel=0.02)
    assert millions(meta_classifier("attention92")) == pytest.approx(51.3, rel=0.03)
    assert count_multiply_adds(meta_classifier("attention92"), (224, 224)) / 1e9 == pytest.approx(10.4, rel=0.02)


@pytest.mark.parametrize(("depth", "published"), [(92, 1.9), (236, 5.1)])
def test_cifar_networks_have_the_published_weights(depth: int, published: float) -> None:
    layers = (nn.Conv2d, nn.Linear)  # the paper's figures leave out normalisation
    assert round(millions(meta_classifier(f"cifar_attention{depth}"), layers), 1) == published


@pytest.mark.parametrize(
    ("name", "depth"),
    [("attention56", 56), ("attention92", 92), ("cifar_attention56", 56), ("cifar_attention164", 164)],
)
def test_depth_counts_the_layers_of_the_trunk(name: str, depth: int) -> None:
    names = [
        layer
        for layer, module in meta_classifier(name).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and ".mask." not in layer and "downsample" not in layer
    ]
    assert len(names) == depth


@pytest.mark.parametrize(("network", "pools"), [("attention56", (3, 2, 1)), ("cifar_attention56", (3, 2, 1))])
def test_masks_go_down_to_the_same_size_in_all_stages(network: str, pools: tuple[int, ...]) -> None:
    masks = [module for module in meta_classifier(network).modules() if isinstance(module, SoftMask)]
    assert tuple(len(mask.down) for mask in masks) == pools


def test_masks_are_between_0_and_1_at_every_size() -> None:
    torch.manual_seed(0)
    mask = SoftMask(16, 2, design=DESIGN).eval()
    for size in ((8, 8), (7, 5), (1, 3)):
        values = mask(torch.randn(2, 16, *size))
        assert values.shape == (2, 16, *size)
        assert ((values > 0) & (values < 1)).all()


@pytest.mark.parametrize(("attention", "residual"), [("residual", True), ("naive", False)])
def test_learning_decides_how_masks_are_applied(attention: Any, residual: bool) -> None:
    with torch.device("meta"):
        backbone = AttentionNet(56, attention=attention)
    gates = [module for module in backbone.modules() if isinstance(module, Gate)]
    assert [gate.residual for gate in gates] == [residual] * 3
    with pytest.raises(ValueError, match="attention must be one of 'residual', 'naive', got 'both'"):
        CifarAttentionNet(56, attention="both")  # pyright: ignore[reportArgumentType]


def test_trunk_of_a_mask_of_zeros_survives_residual_learning_alone() -> None:
    torch.manual_seed(0)
    outputs: dict[str, Tensor] = {}
    for attention in ("residual", "naive"):
        module = CifarAttentionNet(56, norm="bn", attention=attention).get_submodule("layer1.1").eval()
        module.register_module("mask", _Zeros())
        for name in ("before", "trunk", "after"):
            module.register_module(name, nn.Identity())
        outputs[attention] = module(torch.ones(1, 64, 4, 4))
    assert outputs["residual"].eq(1).all()
    assert outputs["naive"].eq(0).all()


@pytest.mark.parametrize(("kind", "depth", "nearest"), [(CifarAttentionNet, 100, "92"), (AttentionNet, 57, "56, 92")])
def test_depths_that_there_are_not(kind: type[AttentionNet], depth: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"depth must be .*{nearest}"):
        kind(depth)


@pytest.mark.parametrize(
    ("kind", "norm", "attention", "rate"),
    [
        (CifarAttentionNet, "bn", "residual", 0.05),
        (CifarAttentionNet, "bn", "naive", 0.05),
        # a map of one cell has no statistics
        pytest.param(AttentionNet, "gn", "residual", 0.003, marks=pytest.mark.slow),
    ],
)
def test_trains(
    kind: type[AttentionNet], norm: NormKind, attention: Any, rate: float, assert_trains: Callable[..., None]
) -> None:
    torch.manual_seed(0)
    network = Classifier(kind(56, norm=norm, attention=attention), 4)
    assert_trains(network, rate=rate, steps=14, last=3)


class _Zeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
