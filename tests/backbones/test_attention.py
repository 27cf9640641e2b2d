"""Mirrors attention.py; squeeze-and-excitation is in test_residual.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backbones.attention import CBAM, Gate
from backbones.classifier import Classifier
from backbones.registry import build_backbone
from backbones.summary import count_multiply_adds


def test_gate_weighs_by_the_map_or_by_one_more_than_the_map() -> None:
    features, attention = torch.tensor([[[[2.0, -4.0]]]]), torch.tensor([[[[0.5, 0.0]]]])
    assert Gate()(features, attention).flatten().tolist() == [1.0, 0.0]
    assert Gate(residual=True)(features, attention).flatten().tolist() == [3.0, -4.0]


def test_cbam_by_hand() -> None:
    layer = CBAM(16)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    x = torch.ones(1, 16, 1, 2)
    x[0, 0, 0] = torch.tensor([1.0, 5.0])  # average 3, maximum 5
    with torch.no_grad():
        layer.fc1.weight[0, 0] = layer.fc2.weight[1, 0] = 1.0  # channel 1 has 3 + 5 from channel 0, the others 0
        layer.spatial.weight[0, 0, 3, 3] = 2.0  # of the mean over channels
        layer.spatial.weight[0, 1, 3, 3] = -1.0  # of their maximum
    weighed = x * torch.full((16,), 0.0).index_fill(0, torch.tensor([1]), 8.0).sigmoid().view(1, 16, 1, 1)
    cells = 2 * weighed.mean(dim=1, keepdim=True) - weighed.amax(dim=1, keepdim=True)
    torch.testing.assert_close(layer(x), weighed * cells.sigmoid())


def test_a_network_with_cbam_trains(assert_trains: Callable[..., None]) -> None:
    torch.manual_seed(0)
    network = Classifier(build_backbone("cbam_resnet18", norm="gn"), 4)
    assert_trains(network, rate=0.01, steps=6, side=32, last=6)


# Table 4 of the CBAM paper; its ResNets have their stride in the 1x1 convolutions.
@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    [
        ("cbam_resnet18", 11.78, 1.815),
        ("cbam_resnet34", 21.96, 3.665),
        ("cbam_resnet50", 28.09, 3.864),
        ("cbam_resnet101", 49.33, 7.581),
    ],
)
def test_cbam_networks_have_the_published_sizes(name: str, millions: float, billions: float) -> None:
    options: dict[str, Any] = {} if name in ("cbam_resnet18", "cbam_resnet34") else {"stride_in": "1x1"}
    with torch.device("meta"):
        network = Classifier(build_backbone(name, norm="bn", **options), 1000)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.015)
    assert count_multiply_adds(network, (224, 224)) / 1e9 == pytest.approx(billions, rel=0.005)


# Three blocks of C = 16, 32 and 64 each have two layers with biases over C / 16 channels, and CBAM's a 7x7 convolution.
@pytest.mark.parametrize(("name", "more"), [("cifar_seresnet20", 2373), ("cifar_cbam_resnet20", 2373 + 9 * 98)])
def test_attention_in_a_small_network_adds_its_layers_alone(name: str, more: int) -> None:
    sizes = [
        sum(p.numel() for p in build_backbone(other, norm="bn", out_features=("c2",)).parameters())
        for other in (name, "cifar_resnet20")
    ]
    assert sizes[0] - sizes[1] == more
