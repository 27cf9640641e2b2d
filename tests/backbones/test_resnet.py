"""Mirrors resnet.py; equality with torchvision and timm is in test_classifier.py."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from backbones.base import FeatureSpec
from backbones.cifar_resnet import CifarResNet
from backbones.deformable import DeformableConv
from backbones.norm import FrozenBatchNorm
from backbones.residual import BasicBlock, PreactBasicBlock, PreactBottleneck
from backbones.resnet import ResNet


def convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Those of the branches."""
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n}


@torch.no_grad()
def assert_c5_is_that_of(theirs, ours: ResNet, images: torch.Tensor) -> None:
    """torchvision's network with these weights has the same c5."""
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    torch.testing.assert_close(ours(images)["c5"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "shortcut", "projections"),
    # 16 blocks; the first of conv2_x changes the number of channels in bottlenecks only
    [(34, "A", 0), (34, "B", 3), (34, "C", 16), (34, "none", 0), (50, "A", 0), (50, "B", 4), (50, "none", 0)],
)
def test_projections_and_features_of_each_shortcut(meta, depth: int, shortcut: str, projections: int) -> None:
    backbone = meta(ResNet, depth, shortcut=shortcut, out_features=("c2", "c3", "c4", "c5"))
    assert len([name for name in backbone.state_dict() if name.endswith("downsample.0.weight")]) == projections
    assert any("downsample" in name for name in backbone.state_dict()) == (projections > 0)
    widths = [(1 if depth == 34 else 4) * width for width in (64, 128, 256, 512)]
    assert list(backbone.specs.values()) == [FeatureSpec(c, s) for c, s in zip(widths, (4, 8, 16, 32), strict=True)]
    features = backbone(torch.zeros(1, 3, 65, 97, device="meta"))
    assert [features[name].shape[1:] for name in ("c2", "c5")] == [(widths[0], 17, 25), (widths[3], 3, 4)]


def test_shortcut_a_passes_its_input_on_when_the_branch_is_silent() -> None:
    backbone = ResNet(18, shortcut="A", out_features=("c2", "c3"))
    for name, parameter in backbone.named_parameters():
        if name.startswith("layer"):
            nn.init.zeros_(parameter)
    features = backbone(torch.randn(1, 3, 40, 56))
    torch.testing.assert_close(features["c3"][:, :64], features["c2"][:, :, ::2, ::2])
    assert features["c3"][:, 64:].eq(0).all()


def test_plain_network_is_a_chain_of_its_convolutions() -> None:
    torch.manual_seed(0)
    backbone, images = ResNet(18, shortcut="none", out_features=("c2",), norm="bn").eval(), torch.randn(1, 3, 40, 56)
    x = nn.functional.max_pool2d(backbone.bn1(backbone.conv1(images)).relu(), 3, 2, 1)
    for layer in ("0.{}1", "0.{}2", "1.{}1", "1.{}2"):
        for kind in ("conv", "bn"):
            x = backbone.get_submodule(f"layer1.{layer.format(kind)}")(x)
        x = x.relu()
    torch.testing.assert_close(backbone(images)["c2"], x)


def test_stride_in_the_1x1_agrees_with_torchvision_with_its_strides_swapped() -> None:
    torch.manual_seed(0)
    theirs = resnet50(weights=None).eval()
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        first, second = (convolutions(layer)[f"0.conv{i}"] for i in (1, 2))
        first.stride, second.stride = second.stride, first.stride
    ours = ResNet(50, stride_in="1x1", out_features=("c5",)).eval().double()  # folding rounds otherwise
    assert_c5_is_that_of(theirs.double(), ours, torch.randn(1, 3, 33, 50, dtype=torch.float64))


@pytest.mark.parametrize(("output_stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
def test_dilated_stages_are_torchvisions(meta, output_stride: int, replaced: list[bool]) -> None:
    torch.manual_seed(0)
    theirs = resnet50(weights=None, replace_stride_with_dilation=replaced).eval()
    ours = ResNet(50, output_stride=output_stride, norm="bn", out_features=("c4", "c5")).eval()
    assert [spec.stride for spec in ours.specs.values()] == [min(16, output_stride), output_stride]
    assert_c5_is_that_of(theirs, ours, torch.randn(1, 3, 65, 98))
    for preact in (False, True):  # of basic blocks too, the first block of a stage is a stage behind
        backbone = meta(ResNet, 18, output_stride=8, out_features=("c5",), preact=preact)
        dilations = [m.dilation[0] for n, m in convolutions(backbone).items() if n.startswith(("layer3", "layer4"))]
        assert dilations == [1, 1, 2, 2, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("options", "layers", "channels", "side"),
    [
        ({}, {"layer4"}, 1024, 14),
        ({"tail_stride": 1}, {"layer4"}, 1024, 7),
        ({"out_features": ("c2", "c3")}, {"layer3", "layer4"}, 512, 28),
        ({"roi_size": 5}, {"layer4"}, 1024, 5),
    ],
)
def test_tail_is_the_stages_after_the_last_feature_and_leaves_7x7_cells(meta, options, layers, channels, side) -> None:
    tail = meta(ResNet, 50, **options).tail()
    assert {name.split(".")[0] for name in tail.state_dict()} == layers
    assert (tail.roi_size, tail.in_channels, tail.out_channels) == (side, channels, 2048)
    assert tail.maps(torch.zeros(1, channels, side, side, device="meta")).shape[-1] == (3 if side == 5 else 7)


def test_tail_averages_over_positions_and_its_stride_is_not_that_of_the_trunk(meta) -> None:
    tail, regions = ResNet(18).tail().eval(), torch.randn(3, 256, 6, 6)
    torch.testing.assert_close(tail(regions), tail.get_submodule("layer4")(regions).flatten(2).mean(2))
    assert meta(ResNet, 18, out_features=("c5",), tail_stride=1).specs["c5"].stride == 32


def test_freeze_at_counts_the_stem_and_the_stages(meta) -> None:
    for make, frozen in (
        (partial(ResNet, 18), ["", "conv1 bn1 act1", "layer1", "layer2", "layer3", "layer4"]),
        (partial(CifarResNet, 20, PreactBasicBlock), ["", "conv1 bn1 act1", "layer1", "layer2", "layer3 closing"]),
    ):
        for freeze_at in range(len(frozen)):
            backbone = meta(make, norm="gn", activation="prelu", freeze_at=freeze_at)
            parts = {True: set(), False: set()}
            for name, parameter in backbone.named_parameters():
                parts[parameter.requires_grad].add(name.split(".")[0])
            assert parts[False] == set(" ".join(frozen[: freeze_at + 1]).split())
            assert not parts[True] & parts[False]


@pytest.mark.parametrize(("norm", "layer_type"), [("sync_bn", nn.SyncBatchNorm), ("gn", nn.GroupNorm)])
def test_norm_kind_reaches_every_layer_that_is_not_frozen(meta, norm, layer_type: type) -> None:
    backbone = meta(ResNet, 18, norm=norm, freeze_at=2, norm_eps=1e-3)
    for name in ("bn1", "layer1.1.bn2"):
        assert isinstance(backbone.get_submodule(name), FrozenBatchNorm if norm == "sync_bn" else layer_type)
    assert isinstance(backbone.get_submodule("layer2.0.downsample.1"), layer_type)
    assert backbone.get_submodule("layer4.0.bn1").eps == 1e-3


@pytest.mark.parametrize("options", [{}, {"preact": True}, {"groups": 32, "width_per_group": 4}], ids=str)
def test_deformable_stages_are_those_named(meta, options) -> None:
    backbone = meta(ResNet, 50, out_features=("c5",), deform=("c5", "c3"), dilate_c5=True, **options)
    layers = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, DeformableConv)}
    assert list(layers) == [*(f"layer2.{i}.conv2" for i in range(4)), *(f"layer4.{i}.conv2" for i in range(3))]
    assert {layer.dilation for name, layer in layers.items() if name.startswith("layer4")} == {(2, 2)}
    assert {layer.offset.out_channels for layer in layers.values()} == {18}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (50, {"shortcut": "D"}, "shortcut must be one of .* got 'D'"),
        (50, {"stride_in": "5x5"}, "stride_in must be one of .* got '5x5'"),
        (50, {"tail_stride": 3}, "tail_stride must be one of .* got 3"),
        (50, {"norm": "layer"}, "norm must be one of .* got 'layer'"),
        (50, {"activation": "gelu"}, "activation must be one of .* got 'gelu'"),
        (51, {}, "depth must be one of .* got 51"),
        (18, {"groups": 32}, "groups and width_per_group"),
        (50, {"shortcut": "A", "avg_down": True}, "avg_down"),
        (18, {"dilate_c5": True}, "dilate_c5"),
        (18, {"output_stride": 16}, "output_stride 16"),
        (18, {"output_stride": 16, "out_features": ("c5",), "dilate_c5": True}, "output_stride 16"),
        (50, {"deform": ("c6",)}, "deform must be one of .* got 'c6'"),
        (18, {"deform": ("c5",)}, "deform"),
        (50, {"deform_modulated": True}, "deform_modulated"),
        ((21, BasicBlock), {}, r"depth must be 2 \+ 6 n .* got 21; the nearest is 20"),
        ((2, BasicBlock), {}, r"depth must be 2 \+ 6 n .* got 2; the nearest is 8"),
        ((160, PreactBottleneck), {}, r"depth must be 2 \+ 9 n .* got 160; the nearest is 164"),
        ((20, BasicBlock), {"shortcut": "none", "stochastic_depth": 0.5}, "stochastic_depth 0.5"),
    ],
)
def test_impossible_options_are_named(meta, make, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CifarResNet(*make, **options) if isinstance(make, tuple) else meta(ResNet, make, **options)
