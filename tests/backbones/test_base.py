"""Mirrors base.py: the contract, held against every backbone in the table.

Most checks run on torch's "meta" device, where shapes and gradients flow but no values are computed.
"""

import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from backbones.base import IMAGENET_RGB, Backbone, he_initialise, order_features
from backbones.registry import backbone_names, build_backbone

# Of more than 1000 layers, in which nothing but their number is new; they have one test of their own.
DEEPEST = ("cifar_resnet1202", "cifar_preact_resnet1001", "cifar_attention452")
# As cifar_attention92, with more modules.
REPEATED = ("cifar_attention128", "cifar_attention164", "cifar_attention236")
NAMES = [name for name in backbone_names() if name not in (*DEEPEST, *REPEATED)]
FIRST = {re.sub(r"\d", "", name): name for name in reversed(NAMES)}  # the others differ in the number of layers
every_backbone = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in (*FIRST.values(), "resnet50") else pytest.mark.slow) for n in NAMES]
)
small_ones = pytest.mark.parametrize(
    ("name", "roi_size"),
    [
        ("resnet18", 3),
        ("vgg11_bn", 1),
        ("seresnet18", 3),
        ("resnet18d", 3),
        ("preact_resnet18", 3),
        ("cifar_resnet20", 8),
        ("cifar_plain20", 8),
        ("cifar_preact_resnet110", 8),
        ("plain18", 3),
        ("preact_resnet50", 3),
        ("seresnet50", 3),
        ("all_cnn_c", 8),
        ("cbam_resnet18", 3),
        ("attention56", 3),
        ("cifar_attention56", 8),
        ("cifar_shake_shake26_2x32d", 8),
        ("tiny_net8_3x3", 2),
    ],
)
SIZES = [(65, 97), (33, 50), (1, 31)]


def build_meta(name: str, **options: Any) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name, **options)


def stages_of(name: str) -> list[str]:
    if name.startswith(("cifar_", "all_cnn")):
        return ["c0", "c1", "c2"]
    return ["c1", "c2", "c3"] if name.startswith("tiny_net") else ["c2", "c3", "c4", "c5"]


def default_stride(name: str) -> int:
    return {"c0": 2, "c1": 8, "c2": 16}[stages_of(name)[0]]


@every_backbone
@torch.no_grad()
def test_features_have_the_channels_and_sizes_of_their_specs(name: str) -> None:
    stages = stages_of(name)
    backbone = build_meta(name, out_features=(stages[-1], *stages[:-1]))
    for size in SIZES:
        features = backbone(torch.zeros(2, 3, *size, device="meta"))
        assert list(features) == list(backbone.specs) == stages
        for feature, spec in zip(features.values(), backbone.specs.values(), strict=True):
            assert feature.shape == (2, spec.channels, *(math.ceil(side / spec.stride) for side in size))


@every_backbone
def test_default_feature_has_its_stride_and_feeds_the_tail(name: str) -> None:
    backbone = build_meta(name)
    (spec,) = backbone.specs.values()
    assert (spec.stride, spec.channels) == (default_stride(name), backbone.tail().in_channels)


@every_backbone
@torch.no_grad()
def test_tail_gives_one_vector_per_region(name: str) -> None:
    tail = build_meta(name).tail()
    for count in (0, 3):
        regions = torch.zeros(count, tail.in_channels, tail.roi_size, tail.roi_size, device="meta")
        assert tail(regions).shape == (count, tail.out_channels)


@small_ones
@pytest.mark.parametrize("count", [0, 2])
def test_tail_of_real_regions(name: str, roi_size: int, count: int) -> None:
    tail = build_backbone(name, roi_size=roi_size).tail().eval()
    vectors = tail(torch.rand(count, tail.in_channels, roi_size, roi_size))
    assert vectors.shape == (count, tail.out_channels)
    assert vectors.isfinite().all()


@every_backbone
def test_tail_parameters_have_one_owner(name: str) -> None:
    backbone = build_meta(name)
    before = set(backbone.state_dict())
    tail = backbone.tail()
    assert set(tail.state_dict()) | set(backbone.state_dict()) == before
    assert not set(tail.state_dict()) & set(backbone.state_dict())
    assert tail.state_dict()
    with pytest.raises(ValueError, match="called before"):
        backbone.tail()


@every_backbone
@torch.no_grad()
def test_features_do_not_need_the_layers_of_the_tail(name: str) -> None:
    backbone = build_meta(name)
    backbone.tail()
    (spec,) = backbone.specs.values()
    (feature,) = backbone(torch.zeros(1, 3, 32, 32, device="meta")).values()
    assert feature.shape[-2:] == (32 / spec.stride, 32 / spec.stride)


@every_backbone
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(name: str) -> None:
    backbone = build_meta(name, freeze_at=1)
    tail = backbone.tail()
    (feature,) = backbone(torch.zeros(1, 3, 64, 64, device="meta")).values()
    regions = torch.zeros(2, tail.in_channels, tail.roi_size, tail.roi_size, device="meta")
    (feature.sum() + tail(regions).sum()).backward()
    parameters = [*backbone.parameters(), *tail.parameters()]
    assert [p.grad is not None for p in parameters] == [p.requires_grad for p in parameters]
    assert any(not p.requires_grad for p in parameters)


@small_ones
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_gradients_are_not_zero(name: str, roi_size: int, freeze_at: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, roi_size=roi_size, freeze_at=freeze_at)
    tail = backbone.tail().eval()
    (feature,) = backbone(torch.randn(1, 3, 48, 48)).values()
    tail(feature[:, :, :roi_size, :roi_size]).sum().backward()
    gradients = [p.grad for p in [*backbone.parameters(), *tail.parameters()] if p.requires_grad]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(p.requires_grad for p in backbone.parameters()) == (freeze_at == 0)


@every_backbone
def test_state_dict_names_and_shapes_survive_a_round_trip(name: str) -> None:
    source, target = build_meta(name), build_meta(name)
    target.load_state_dict(source.state_dict())


@small_ones
def test_state_dict_values_survive_a_round_trip(name: str, roi_size: int) -> None:
    images = torch.randn(1, 3, 32, 32)
    source, target = (build_backbone(name, roi_size=roi_size).eval() for _ in range(2))
    (before,) = target(images).values()
    target.load_state_dict(source.state_dict())
    (expected,), (got,) = source(images).values(), target(images).values()
    assert not torch.equal(before, expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_backbone
@pytest.mark.parametrize(
    "options",
    [
        {"out_features": ()},
        {"out_features": ("c4", "c6")},
        {"out_features": "c5"},
        {"freeze_at": 6},
        {"freeze_at": -1},
    ],
)
def test_impossible_options_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        build_meta(name, **options)


@every_backbone
def test_region_size_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match="roi_size must be at least 1, got 0"):
        build_meta(name, roi_size=0)


@pytest.mark.parametrize("name", DEEPEST)
def test_networks_of_a_thousand_layers_keep_the_contract(name: str) -> None:
    # Not on "meta", where every one of their operations costs more than its values do on so small an image.
    backbone = build_backbone(name, freeze_at=1, out_features=("c0", "c1"), roi_size=2)
    names = set(backbone.state_dict())
    tail = backbone.tail()
    assert set(tail.state_dict()) | set(backbone.state_dict()) == names
    features = backbone(torch.randn(1, 3, 5, 7))
    for feature, spec in zip(features.values(), backbone.specs.values(), strict=True):
        assert feature.shape == (1, spec.channels, math.ceil(5 / spec.stride), math.ceil(7 / spec.stride))
    tail(features["c1"][:, :, :2, :2]).sum().backward()
    parameters = [*backbone.parameters(), *tail.parameters()]
    assert [p.grad is not None for p in parameters] == [p.requires_grad for p in parameters]
    assert any(not p.requires_grad for p in parameters)
    backbone.load_state_dict(backbone.state_dict())


def test_imagenet_stats_are_those_of_torchvision_times_255() -> None:
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert IMAGENET_RGB.mean == pytest.approx([255 * x for x in preset.mean])
    assert IMAGENET_RGB.std == pytest.approx([255 * x for x in preset.std])


def test_features_are_ordered_by_stage() -> None:
    assert order_features(["c4", "c2"], ("c2", "c3", "c4")) == ("c2", "c4")


def test_he_initialisation_has_variance_two_over_fan_out() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3)
    he_initialise(nn.Sequential(layer))
    assert layer.weight.var().item() == pytest.approx(2 / (32 * 9), rel=0.05)
    assert layer.bias is not None
    assert layer.bias.eq(0).all()
