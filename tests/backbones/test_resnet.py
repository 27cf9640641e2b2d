"""Mirrors resnet.py; equality with torchvision is in test_classifier.py."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from backbones.base import FeatureSpec
from backbones.deformable import OFFSETS, DeformableConv
from backbones.norm import FrozenBatchNorm, NormKind
from backbones.resnet import ResNet


def meta_resnet(depth: int, **options: Any) -> ResNet:
    with torch.device("meta"):
        return ResNet(depth, **options)


@pytest.mark.parametrize(("depth", "channels"), [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_specs(depth: int, channels: tuple[int, ...]) -> None:
    specs = meta_resnet(depth, out_features=("c2", "c3", "c4", "c5")).specs
    assert list(specs.values()) == [FeatureSpec(c, s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize(("depth", "convolutions"), [(18, 17), (34, 33), (50, 49), (101, 100), (152, 151)])
def test_depth_counts_the_convolutions_and_the_last_linear_layer(depth: int, convolutions: int) -> None:
    names = [n for n, m in meta_resnet(depth).named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len(names) == convolutions


def test_paper_shares_91_convolutions_of_resnet101() -> None:
    backbone = meta_resnet(101)
    backbone.tail()
    names = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len(names) == 91


@pytest.mark.parametrize(
    ("depth", "shortcut", "projections"),
    # 16 blocks; the first of conv2_x changes the number of channels in bottlenecks only
    [(34, "A", 0), (34, "B", 3), (34, "C", 16), (34, "none", 0), (50, "A", 0), (50, "B", 4), (50, "C", 16)],
)
def test_projections_of_each_shortcut(depth: int, shortcut: str, projections: int) -> None:
    backbone = meta_resnet(depth, shortcut=shortcut)
    names = [name for name in backbone.state_dict() if name.endswith("downsample.0.weight")]
    assert len(names) == projections
    assert any("downsample" in name for name in backbone.state_dict()) == (projections > 0)


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
@pytest.mark.parametrize("depth", [18, 50])
def test_shortcuts_agree_on_shapes(depth: int, shortcut: str) -> None:
    features = meta_resnet(depth, shortcut=shortcut, out_features=("c2", "c5"))(
        torch.zeros(1, 3, 65, 97, device="meta")
    )
    expansion = 1 if depth == 18 else 4
    assert features["c2"].shape == (1, 64 * expansion, 17, 25)
    assert features["c5"].shape == (1, 512 * expansion, 3, 4)


def test_shortcut_a_passes_its_input_on_when_the_branch_is_silent() -> None:
    backbone = ResNet(18, shortcut="A", out_features=("c2", "c3"))
    for name, parameter in backbone.named_parameters():
        if name.startswith("layer"):
            nn.init.zeros_(parameter)
    features = backbone(torch.randn(1, 3, 40, 56))
    torch.testing.assert_close(features["c3"][:, :64], features["c2"][:, :, ::2, ::2])
    assert features["c3"][:, 64:].eq(0).all()


@pytest.mark.parametrize("depth", [18, 50])
def test_plain_network_is_silent_when_its_branches_are(depth: int) -> None:
    backbone = ResNet(depth, shortcut="none", out_features=("c2", "c5"))
    for name, parameter in backbone.named_parameters():
        if name.startswith("layer4.0.conv2"):
            nn.init.zeros_(parameter)
    features = backbone(torch.randn(1, 3, 40, 56))
    assert features["c2"].gt(0).any()
    assert features["c5"].eq(0).all()


def test_plain_network_is_a_chain_of_its_convolutions() -> None:
    torch.manual_seed(0)
    backbone = ResNet(18, shortcut="none", out_features=("c2",), norm="bn").eval()
    images = torch.randn(1, 3, 40, 56)
    x = nn.functional.max_pool2d(backbone.get_submodule("bn1")(backbone.get_submodule("conv1")(images)).relu(), 3, 2, 1)
    for block in (0, 1):
        for layer in (1, 2):
            convolved = backbone.get_submodule(f"layer1.{block}.conv{layer}")(x)
            x = backbone.get_submodule(f"layer1.{block}.bn{layer}")(convolved).relu()
    torch.testing.assert_close(backbone(images)["c2"], x)


def test_plain_network_has_the_parameters_of_the_residual_one_without_its_projections() -> None:
    plain, residual = (set(meta_resnet(34, shortcut=kind).state_dict()) for kind in ("none", "A"))
    assert plain == residual


@pytest.mark.parametrize(("stride_in", "strides"), [("1x1", (2, 1)), ("3x3", (1, 2))])
def test_stride_sits_where_asked(stride_in: str, strides: tuple[int, int]) -> None:
    backbone = meta_resnet(50, stride_in=stride_in)
    for layer in ("layer2", "layer3", "layer4"):
        for convolution, stride in zip(("conv1", "conv2"), strides, strict=True):
            module = backbone.get_submodule(f"{layer}.0.{convolution}")
            assert isinstance(module, nn.Conv2d)
            assert module.stride == (stride, stride)


def test_stride_in_the_1x1_agrees_with_torchvision_with_its_strides_swapped() -> None:
    torch.manual_seed(0)
    theirs = resnet50(weights=None).eval()
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        first, second = (layer.get_submodule(f"0.conv{i}") for i in (1, 2))
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        first.stride, second.stride = second.stride, first.stride
    ours = ResNet(50, stride_in="1x1", out_features=("c5",)).eval().double()  # folding rounds otherwise
    theirs = theirs.double()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    images = torch.randn(1, 3, 33, 50, dtype=torch.float64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(ours(images)["c5"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tail_stride", "roi_size"), [(2, 14), (1, 7)])
def test_tail_averages_7x7_cells_by_default(tail_stride: int, roi_size: int) -> None:
    tail = meta_resnet(50, tail_stride=tail_stride).tail()
    assert (tail.roi_size, tail.in_channels, tail.out_channels) == (roi_size, 1024, 2048)
    layer4 = tail.get_submodule("layer4")
    assert layer4(torch.zeros(1, 1024, roi_size, roi_size, device="meta")).shape == (1, 2048, 7, 7)


def test_tail_keeps_its_names_and_starts_after_the_last_feature() -> None:
    assert {name.split(".")[0] for name in meta_resnet(18).tail().state_dict()} == {"layer4"}
    tail = meta_resnet(18, out_features=("c2", "c3")).tail()
    assert {name.split(".")[0] for name in tail.state_dict()} == {"layer3", "layer4"}
    assert (tail.in_channels, tail.roi_size) == (128, 28)


@pytest.mark.parametrize("roi_size", [1, 5, 8])
def test_tail_takes_any_region_size(roi_size: int) -> None:
    tail = meta_resnet(50, roi_size=roi_size).tail()
    assert tail.roi_size == roi_size
    assert tail(torch.zeros(2, 1024, roi_size, roi_size, device="meta")).shape == (2, 2048)


def test_tail_averages_over_positions() -> None:
    tail = ResNet(18).tail().eval()
    regions = torch.randn(3, 256, 6, 6)
    expected = tail.get_submodule("layer4")(regions).flatten(2).mean(2)
    torch.testing.assert_close(tail(regions), expected)


def test_no_tail_after_c5() -> None:
    with pytest.raises(ValueError, match="c5 is one of the features c4, c5"):
        meta_resnet(18, out_features=("c4", "c5")).tail()


def test_stage_5_has_stride_2_in_the_trunk_whatever_the_tail_stride() -> None:
    features = meta_resnet(18, out_features=("c5",), tail_stride=1)(torch.zeros(1, 3, 64, 64, device="meta"))
    assert features["c5"].shape[-2:] == (2, 2)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, set()),
        (1, {"conv1", "bn1"}),
        (2, {"conv1", "bn1", "layer1"}),
        (4, {"conv1", "bn1", "layer1", "layer2", "layer3"}),
        (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_freeze_at_counts_the_stem_and_the_stages(freeze_at: int, frozen: set[str]) -> None:
    backbone = meta_resnet(18, freeze_at=freeze_at, norm="gn")
    assert {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad} == frozen
    trainable = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert not trainable & frozen


def test_statistics_move_in_trainable_stages_only() -> None:
    torch.manual_seed(0)
    backbone = ResNet(18, norm="bn", freeze_at=2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items() if name.endswith("running_mean")}
    with torch.no_grad():
        backbone(torch.randn(2, 3, 32, 32))
    after = backbone.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"layer2", "layer3"}  # layer4 is the tail


@pytest.mark.parametrize(("norm", "layer_type"), [("sync_bn", nn.SyncBatchNorm), ("gn", nn.GroupNorm)])
def test_norm_kind_reaches_every_layer_that_is_not_frozen(norm: NormKind, layer_type: type[nn.Module]) -> None:
    backbone = meta_resnet(18, norm=norm, freeze_at=2, norm_eps=1e-3)
    frozen_type = FrozenBatchNorm if norm == "sync_bn" else layer_type
    assert isinstance(backbone.get_submodule("bn1"), frozen_type)
    assert isinstance(backbone.get_submodule("layer1.1.bn2"), frozen_type)
    assert isinstance(backbone.get_submodule("layer2.0.downsample.1"), layer_type)
    assert backbone.get_submodule("layer4.0.bn1").eps == 1e-3


@pytest.mark.parametrize(
    "options", [{"shortcut": "D"}, {"stride_in": "5x5"}, {"tail_stride": 3}, {"norm": "layer"}], ids=str
)
def test_unknown_choices_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be one of .* got {options[name]!r}"):
        meta_resnet(50, **options)


def test_unknown_depth() -> None:
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, 152, got 51"):
        meta_resnet(51)


def test_batch_norm_starts_with_weight_one_and_bias_zero() -> None:
    backbone = ResNet(18, norm="bn")
    layer = backbone.get_submodule("layer1.0.bn2")
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.weight.eq(1).all()
    assert layer.bias.eq(0).all()


def test_groups_widen_the_3x3_convolution_of_a_bottleneck() -> None:
    with torch.device("meta"):
        backbone = ResNet(50, groups=32, width_per_group=8)
    shapes = [tuple(backbone.get_parameter(f"layer{stage}.0.conv2.weight").shape) for stage in (1, 3)]
    assert shapes == [(256, 8, 3, 3), (1024, 32, 3, 3)]
    assert backbone.specs["c4"].channels == 1024


def test_basic_blocks_have_no_groups() -> None:
    with pytest.raises(ValueError, match="groups and width_per_group are about bottlenecks; a network of depth 18"):
        ResNet(18, groups=32)


def deformable_layers(backbone: ResNet) -> dict[str, DeformableConv]:
    return {name: layer for name, layer in backbone.named_modules() if isinstance(layer, DeformableConv)}


@pytest.mark.parametrize("options", [{}, {"preact": True}, {"groups": 32, "width_per_group": 4}], ids=str)
def test_deformable_stages_are_those_named(options: dict[str, Any]) -> None:
    backbone = meta_resnet(50, out_features=("c5",), deform=("c5", "c3"), dilate_c5=True, **options)
    layers = deformable_layers(backbone)
    assert list(layers) == [*(f"layer2.{i}.conv2" for i in range(4)), *(f"layer4.{i}.conv2" for i in range(3))]
    assert {layer.dilation for name, layer in layers.items() if name.startswith("layer4")} == {(2, 2)}
    assert {layer.offset.out_channels for layer in layers.values()} == {18}


def test_a_new_deformable_network_is_the_plain_one_of_its_weights() -> None:
    torch.manual_seed(0)
    deformable = ResNet(50, out_features=("c3",), deform=("c2", "c3")).eval()
    assert all(not parameter.any() for name, parameter in deformable.named_parameters() if name.endswith(OFFSETS))
    plain = ResNet(50, out_features=("c3",)).eval()
    plain.load_state_dict(
        {name: value for name, value in deformable.state_dict().items() if not name.endswith(OFFSETS)}
    )
    images = torch.randn(1, 3, 33, 50)
    with torch.no_grad():
        torch.testing.assert_close(deformable(images)["c3"], plain(images)["c3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (50, {"deform": ("c6",)}, "deform must be one of .* got 'c6'"),
        (18, {"deform": ("c5",)}, "bottlenecks, which this network lacks"),
        (50, {"deform_modulated": True}, "deform_modulated is about the stages in deform"),
    ],
)
def test_deformable_options_that_contradict_are_refused(depth: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta_resnet(depth, **options)


@pytest.mark.parametrize(("output_stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
def test_dilated_stages_are_torchvisions(output_stride: int, replaced: list[bool]) -> None:
    torch.manual_seed(0)
    theirs = resnet50(weights=None, replace_stride_with_dilation=replaced).eval()
    ours = ResNet(50, output_stride=output_stride, norm="bn", out_features=("c4", "c5")).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    assert [spec.stride for spec in ours.specs.values()] == [min(16, output_stride), output_stride]
    images = torch.randn(1, 3, 65, 98)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(ours(images)["c5"], expected, rtol=1e-4, atol=1e-4)


def test_dilation_of_basic_and_preact_blocks_reaches_the_first_block_later() -> None:
    for options in ({}, {"preact": True}):
        backbone = meta_resnet(18, output_stride=8, out_features=("c5",), **options)
        dilations = {
            name: module.dilation[0]
            for name, module in backbone.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and name.startswith(("layer3", "layer4"))
        }
        assert list(dilations.values()) == [1, 1, 2, 2, 2, 2, 4, 4]
        assert backbone(torch.zeros(1, 3, 65, 98, device="meta"))["c5"].shape == (1, 512, 9, 13)


def test_an_output_stride_is_of_c5_in_the_trunk() -> None:
    for options in ({"out_features": ("c4",)}, {"out_features": ("c5",), "dilate_c5": True}):
        with pytest.raises(ValueError, match=r"output_stride 16 is about c5 in the trunk"):
            meta_resnet(18, output_stride=16, **options)
