"""Mirrors base.py: the contract, held against every backbone in the table.

Most checks run on torch's "meta" device, where shapes and gradients flow but no values are computed.
"""

import math
import re

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from backbones.base import IMAGENET_RGB, he_initialise, order_features
from backbones.registry import backbone_names, build_backbone

# Of more than 1000 layers, in which nothing but their number is new: depth, and millions of parameters in the papers.
DEEPEST = {"cifar_resnet1202": (1202, 19.4), "cifar_preact_resnet1001": (1001, 10.3), "cifar_attention452": (452, None)}
REPEATED = ("cifar_attention128", "cifar_attention164", "cifar_attention236")  # as cifar_attention92, with more modules
NAMES = [name for name in backbone_names() if name not in (*DEEPEST, *REPEATED)]
FIRST = {re.sub(r"\d", "", name): name for name in reversed(NAMES)}  # the others differ in the number of layers
every_backbone = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in (*FIRST.values(), "resnet50") else pytest.mark.slow) for n in NAMES]
)
SMALL = {"resnet18": 3, "vgg11_bn": 1, "resnet18d": 3, "preact_resnet18": 3, "cifar_resnet20": 8, "cifar_plain20": 8}
SMALL |= {"seresnet50": 3, "all_cnn_c": 8, "cbam_resnet18": 3, "attention56": 3, "cifar_attention56": 8}
SMALL |= {"cifar_shake_shake26_2x32d": 8, "tiny_net8_3x3": 2}  # names, and sides of regions


def stages_of(name: str) -> list[str]:
    if name.startswith(("cifar_", "all_cnn")):
        return ["c0", "c1", "c2"]
    return ["c1", "c2", "c3"] if name.startswith("tiny_net") else ["c2", "c3", "c4", "c5"]


def assert_learns_unless_frozen(*parts: nn.Module) -> None:
    parameters = [*nn.ModuleList(parts).parameters()]
    assert [p.grad is not None for p in parameters] == [p.requires_grad for p in parameters]
    assert any(not p.requires_grad for p in parameters)


@every_backbone
def test_features_have_the_channels_and_sizes_of_their_specs_and_impossible_options_are_named(meta, name: str) -> None:
    stages = stages_of(name)
    backbone = meta(name, out_features=(stages[-1], *stages[:-1]))
    for size in ((65, 97), (33, 50), (1, 31)):
        features = backbone(torch.zeros(2, 3, *size, device="meta"))
        assert list(features) == list(backbone.specs) == stages
        for feature, spec in zip(features.values(), backbone.specs.values(), strict=True):
            assert feature.shape == (2, spec.channels, *(math.ceil(side / spec.stride) for side in size))
    wrong = [("out_features", ()), ("out_features", ("c4", "c6")), ("out_features", "c5"), ("freeze_at", 6)]
    for option, value in [*wrong, ("freeze_at", -1), ("roi_size", 0)]:
        with pytest.raises(ValueError, match=option):
            meta(name, **{option: value})


@every_backbone
def test_the_default_feature_feeds_a_tail_that_owns_its_layers(meta, name: str) -> None:
    backbone = meta(name, freeze_at=1)
    before = set(backbone.state_dict())
    tail = backbone.tail()
    (spec,) = backbone.specs.values()
    assert (spec.stride, spec.channels) == ({"c0": 2, "c1": 8, "c2": 16}[stages_of(name)[0]], tail.in_channels)
    assert tail.state_dict()
    assert set(tail.state_dict()) | set(backbone.state_dict()) == before
    assert not set(tail.state_dict()) & set(backbone.state_dict())
    with pytest.raises(ValueError, match="called before"):
        backbone.tail()
    (feature,) = backbone(torch.zeros(1, 3, 64, 64, device="meta")).values()
    assert feature.shape[-2:] == (64 / spec.stride, 64 / spec.stride)
    for count in (0, 3):
        vectors = tail(torch.zeros(count, tail.in_channels, tail.roi_size, tail.roi_size, device="meta"))
        assert vectors.shape == (count, tail.out_channels)
    (feature.sum() + vectors.sum()).backward()
    assert_learns_unless_frozen(backbone, tail)


@pytest.mark.parametrize(("name", "side"), SMALL.items())
def test_values_survive_a_round_trip_and_gradients_are_not_zero(name: str, side: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 48, 48)
    free, source, target = (build_backbone(name, roi_size=side, freeze_at=stage).eval() for stage in (0, 2, 2))
    with torch.no_grad():
        (before,), (expected,) = target(images).values(), source(images).values()
        assert not torch.equal(before, expected)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close([*target(images).values()], [expected], rtol=0, atol=0)
    for backbone in (free, target):
        assert all(p.requires_grad for p in backbone.parameters()) == (backbone is free)
        tail = backbone.train().tail().eval()
        (feature,) = backbone(images).values()
        vectors = tail(feature[:, :, :side, :side])
        assert vectors.shape == (1, tail.out_channels)
        assert vectors.isfinite().all()
        vectors.sum().backward()
        gradients = [p.grad for p in [*backbone.parameters(), *tail.parameters()] if p.requires_grad]
        assert all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", DEEPEST)
def test_networks_of_a_thousand_layers_keep_the_contract(name: str) -> None:
    # Not on "meta", where every one of their operations costs more than its values do on so small an image.
    backbone = build_backbone(name, freeze_at=1, norm="gn", out_features=("c0", "c1"), roi_size=2)
    depth, millions = DEEPEST[name]
    layers = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len([layer for layer in layers if ".mask." not in layer]) + 1 == depth
    names = set(backbone.state_dict())
    count = sum(p.numel() for p in backbone.parameters())
    tail = backbone.tail()
    assert millions in (None, round((count + 10 * tail.out_channels + 10) / 1e6, 1))
    assert set(tail.state_dict()) | set(backbone.state_dict()) == names
    features = backbone(torch.randn(1, 3, 5, 7))
    for feature, spec in zip(features.values(), backbone.specs.values(), strict=True):
        assert feature.shape == (1, spec.channels, math.ceil(5 / spec.stride), math.ceil(7 / spec.stride))
    tail(features["c1"][:, :, :2, :2]).sum().backward()
    assert_learns_unless_frozen(backbone, tail)
    backbone.load_state_dict(backbone.state_dict())


def test_statistics_order_and_initialisation() -> None:
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert IMAGENET_RGB.mean == pytest.approx([255 * x for x in preset.mean])
    assert IMAGENET_RGB.std == pytest.approx([255 * x for x in preset.std])
    assert order_features(["c4", "c2"], ("c2", "c3", "c4")) == ("c2", "c4")
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3)
    he_initialise(nn.Sequential(layer))
    assert layer.weight.var().item() == pytest.approx(2 / (32 * 9), rel=0.05)
    assert not layer.get_parameter("bias").any()
