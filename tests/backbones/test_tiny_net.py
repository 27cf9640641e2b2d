"""Mirrors tiny_net.py; the contract itself is held by test_base.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.classifier import Classifier
from backbones.registry import build_backbone
from backbones.tiny_net import TinyNet


@pytest.mark.parametrize(("depth", "kernel"), [(5, 5), (11, 3)])
def test_depth_counts_the_layers_with_weights_and_parameters_are_those_by_hand(depth: int, kernel: int) -> None:
    with torch.device("meta"):
        classifier = Classifier(TinyNet(depth, kernel), 200)
    layers = [layer for layer in classifier.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth
    per_stage, expected = (depth - 2) // 3, 256 * 64 * 512 + 512 + 512 * 200 + 200
    for first, channels in ((3, 64), (64, 128), (128, 256)):
        expected += kernel**2 * channels * (first + (per_stage - 1) * channels) + per_stage * channels
    assert sum(parameter.numel() for parameter in classifier.parameters()) == expected


def test_prelu_and_dropout_are_where_they_are_asked_for() -> None:
    network = Classifier(build_backbone("tiny_net5_3x3", activation="prelu", dropout=0.5), 7)
    slopes = [layer.num_parameters for layer in network.modules() if isinstance(layer, nn.PReLU)]
    assert slopes == [64, 128, 256, 512]
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5]
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 7)
