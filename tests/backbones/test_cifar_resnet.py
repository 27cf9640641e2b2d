"""Mirrors cifar_resnet.py."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from backbones.base import FeatureSpec
from backbones.cifar_resnet import CifarResNet
from backbones.classifier import Classifier
from backbones.registry import build_backbone, pyramid_features
from backbones.residual import BasicBlock, PreactBasicBlock, PreactBottleneck, ResidualBlock


@cache
def meta_classifier(name: str) -> Classifier:
    with torch.device("meta"):
        return Classifier(build_backbone(name, norm="bn"), 10)


def count_parameters(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    return sum(p.numel() for part in module.modules() if isinstance(part, kinds) for p in part.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar_resnet20", 0.27),
        ("cifar_resnet32", 0.46),
        ("cifar_resnet44", 0.66),
        ("cifar_resnet56", 0.85),
        ("cifar_resnet110", 1.7),
        ("cifar_resnet1202", 19.4),
        ("cifar_plain20", 0.27),
        ("cifar_plain56", 0.85),
        ("cifar_preact_resnet110", 1.7),
        ("cifar_preact_resnet164", 1.7),
    ],
)
def test_parameters_are_those_of_table_6_and_of_identity_mappings(name: str, millions: float) -> None:
    count = sum(p.numel() for p in meta_classifier(name).parameters()) / 1e6
    digits = 2 if millions < 1 else 1
    assert round(count, digits) == millions


def test_paper_counts_the_weights_of_1001_layers_without_their_normalisation() -> None:
    network = meta_classifier("cifar_preact_resnet1001")
    assert round(count_parameters(network, (nn.Conv2d, nn.Linear)) / 1e6, 1) == 10.2
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 10.3


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("cifar_resnet20", 20),
        ("cifar_plain44", 44),
        ("cifar_resnet1202", 1202),
        ("cifar_preact_resnet110", 110),
        ("cifar_preact_resnet164", 164),
        ("cifar_preact_resnet1001", 1001),
    ],
)
def test_depth_counts_the_convolutions_and_the_last_linear_layer(name: str, depth: int) -> None:
    network = meta_classifier(name)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len(names) + 1 == depth


def test_stages_by_hand() -> None:
    with torch.device("meta"):
        specs = CifarResNet(20, BasicBlock, out_features=("c0", "c1", "c2")).specs
        wide = CifarResNet(164, PreactBottleneck, out_features=("c2",)).specs
    assert specs == {"c0": FeatureSpec(16, 1), "c1": FeatureSpec(32, 2), "c2": FeatureSpec(64, 4)}
    assert wide == {"c2": FeatureSpec(256, 4)}


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_plain20", "cifar_preact_resnet164"])
def test_classifies_images_of_32_pixels_from_64_cells(name: str) -> None:
    network = meta_classifier(name)
    tail = network.tail
    features = network.backbone(torch.zeros(2, 3, 32, 32, device="meta"))
    assert tail.maps(features["c1"]).shape == (2, tail.out_channels, 8, 8)
    assert network(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert network(torch.zeros(0, 3, 32, 32, device="meta")).shape == (0, 10)


def test_shortcuts_have_no_parameters_and_plain_networks_no_shortcuts() -> None:
    residual, plain = (meta_classifier(f"cifar_{kind}20").state_dict() for kind in ("resnet", "plain"))
    assert list(residual) == list(plain)
    assert not any("downsample" in name for name in residual)


def test_default_regions_leave_seven_cells() -> None:
    with torch.device("meta"):
        tail = CifarResNet(20, BasicBlock).tail()
        assert tail.roi_size == 14
        assert tail.maps(torch.zeros(1, 32, 14, 14)).shape == (1, 64, 7, 7)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (1, {"conv1", "bn1", "act1"}),
        (2, {"conv1", "bn1", "act1", "layer1"}),
        (4, {"conv1", "bn1", "act1", "layer1", "layer2", "layer3", "closing"}),
    ],
)
def test_freeze_at_counts_the_stem_and_the_stages(freeze_at: int, frozen: set[str]) -> None:
    with torch.device("meta"):
        network = CifarResNet(20, PreactBasicBlock, norm="gn", activation="prelu", freeze_at=freeze_at)
    assert {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad} == frozen
    assert not {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} & frozen


def test_death_probabilities_rise_over_all_stages() -> None:
    blocks = [m for m in CifarResNet(20, BasicBlock, stochastic_depth=0.5).modules() if isinstance(m, ResidualBlock)]
    assert [block.death for block in blocks] == pytest.approx([0.5 * (i + 1) / 9 for i in range(9)])


@pytest.mark.parametrize("block", [BasicBlock, PreactBasicBlock])
def test_trains_with_every_option(block: type[BasicBlock | PreactBasicBlock]) -> None:
    torch.manual_seed(0)
    backbone = CifarResNet(8, block, norm="bn", activation="prelu", stochastic_depth=0.5, shortcut="C")
    network = Classifier(backbone, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.eval()(images).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("depth", "block", "text"),
    [
        (21, BasicBlock, "depth must be 2 + 6 n with blocks of 2 layers, got 21; the nearest is 20"),
        (2, BasicBlock, "depth must be 2 + 6 n with blocks of 2 layers, got 2; the nearest is 8"),
        (160, PreactBottleneck, "depth must be 2 + 9 n with blocks of 3 layers, got 160; the nearest is 164"),
    ],
)
def test_depth_that_no_number_of_blocks_gives(
    depth: int, block: type[BasicBlock | PreactBottleneck], text: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        CifarResNet(depth, block)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shortcut": "D"}, "shortcut must be one of 'A', 'B', 'C', 'none', got 'D'"),
        ({"freeze_at": 5}, "freeze_at must be one of 0, 1, 2, 3, 4, got 5"),
        ({"out_features": ("c3",)}, "out_features must be one of 'c0', 'c1', 'c2', got 'c3'"),
        ({"shortcut": "none", "stochastic_depth": 0.5}, "stochastic_depth 0.5 needs shortcuts"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        CifarResNet(20, BasicBlock, **options)


def test_no_tail_after_the_last_stage() -> None:
    with pytest.raises(ValueError, match="c2 is one of the features c2; end them at c1 to keep c2 for the tail"):
        CifarResNet(8, BasicBlock, out_features=("c2",)).tail()


def test_carries_no_feature_pyramid() -> None:
    with pytest.raises(
        ValueError, match=r"cifar_resnet20 has no stages of strides 4, 8, \.\. for a feature pyramid; set backbone.fpn"
    ):
        pyramid_features("cifar_resnet20")
