"""Mirrors exits.py."""

import pytest
import torch

from backbones.classifier import Classifier
from backbones.extras.branchynet import BranchyNet
from backbones.registry import build_backbone
from backbones.summary import count_multiply_adds
from detection.classification.exits import draw_exits, exit_costs, exit_curve


def test_curve_by_hand() -> None:
    unsure = torch.tensor([[0.1, 0.1], [0.5, 0.2], [0.9, 0.8]])
    right = torch.tensor([[True, False, False], [False, True, True], [False, False, True]])
    nobody, some, everybody = exit_curve(unsure, right, [10, 20, 40], [0.0, 0.3, 2.0])
    assert (nobody.shares, nobody.multiply_adds) == ((0, 0, 1), 40)
    assert nobody.top1 == pytest.approx(2 / 3)
    assert some.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))  # one by each: all of them right
    assert (some.top1, some.multiply_adds) == (1, pytest.approx(70 / 3))
    assert (everybody.shares, everybody.multiply_adds) == ((1, 0, 0), 10)
    assert everybody.top1 == pytest.approx(1 / 3)
    assert "<svg" in draw_exits([nobody, some, everybody])


def test_costs_are_those_of_the_layers_up_to_each_exit() -> None:
    network = BranchyNet(build_backbone("cifar_resnet20", out_features=("c0", "c1")), 10)
    first, second, last = exit_costs(network, 32)
    with torch.device("meta"):
        whole = count_multiply_adds(Classifier(build_backbone("cifar_resnet20"), 10), (32, 32))
    stage0 = 1024 * 9 * (3 * 16 + 6 * 16 * 16)
    branch0 = 1024 * 9 * 16 * 64 + 64 * 10
    stage1 = 256 * 9 * (16 * 32 + 5 * 32 * 32)
    branch1 = 256 * 9 * 32 * 64 + 64 * 10
    assert first == stage0 + branch0
    assert second == first + stage1 + branch1
    assert last == whole + branch0 + branch1
