"""Mirrors backbones/fpn.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbones.base import Backbone
from backbones.fpn import FPN, CoarseLevels
from backbones.norm import make_norm
from backbones.registry import build_backbone, pyramid_features


def make_pyramid(name: str = "resnet18", channels: int = 16) -> FPN:
    torch.manual_seed(0)
    return FPN(build_backbone(name, out_features=pyramid_features(name)), channels=channels)


def make_coarse(coarse: CoarseLevels) -> FPN:
    """p3 .. p7 over ResNet-18."""
    torch.manual_seed(0)
    return FPN(build_backbone("resnet18", out_features=("c3", "c4", "c5")), channels=16, coarse=coarse)


@pytest.mark.parametrize("size", [(64, 96), (37, 53), (33, 130)])
@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_levels_have_the_declared_strides(name: str, size: tuple[int, int]) -> None:
    pyramid = make_pyramid(name).eval()
    with torch.no_grad():
        features = pyramid(torch.rand(1, 3, *size))
    assert list(features) == list(pyramid.specs) == ["p2", "p3", "p4", "p5", "p6"]
    for level, spec in pyramid.specs.items():
        assert spec.channels == 16
        assert features[level].shape == (1, 16, -(-size[0] // spec.stride), -(-size[1] // spec.stride))


def test_is_torchvisions() -> None:
    pyramid = make_pyramid().eval()
    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    theirs = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 16).eval()
    theirs.body.load_state_dict(pyramid.get_submodule("body").state_dict(), strict=False)
    for ours, inner, layer in zip(pyramid.body.specs, theirs.fpn.inner_blocks, theirs.fpn.layer_blocks, strict=True):
        inner.load_state_dict(pyramid.lateral[ours].state_dict())
        layer.load_state_dict(pyramid.output[ours].state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for found, wanted in zip(pyramid(images).values(), theirs(images).values(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("coarse", "channels"), [("c5", 512), ("p5", 16)])
def test_levels_by_convolutions_are_torchvisions(coarse: CoarseLevels, channels: int) -> None:
    pyramid = make_coarse(coarse).eval()
    theirs = LastLevelP6P7(channels, 16).eval()
    theirs.use_P5 = coarse == "p5"
    for name in ("p6", "p7"):
        theirs.get_submodule(name).load_state_dict(pyramid.coarse.get_submodule(f"{name}.0").state_dict())
    images = torch.rand(1, 3, 96, 160)
    with torch.no_grad():
        found, c5 = pyramid(images), pyramid.body(images)["c5"]
        wanted, _ = theirs([found["p5"]], [c5], [])
    assert [(name, spec.stride) for name, spec in pyramid.specs.items()] == [(f"p{k}", 2**k) for k in range(3, 8)]
    assert [tuple(level.shape[2:]) for level in found.values()] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    for own, level in zip((found["p6"], found["p7"]), wanted[1:], strict=True):
        torch.testing.assert_close(own, level, rtol=1e-5, atol=1e-6)


def test_starts_as_he_says_for_layers_without_activation() -> None:
    torch.manual_seed(0)
    conv = make_pyramid(channels=64).get_submodule("lateral.c5.0")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.var().item() == pytest.approx(1 / 512, rel=0.05)
    assert conv.bias is not None
    assert not conv.bias.any()


def test_norm_follows_every_convolution_and_takes_its_bias() -> None:
    body = build_backbone("resnet18", out_features=("c2", "c3", "c4", "c5"))
    pyramid = FPN(body, channels=16, norm=make_norm("gn", 1e-5))
    for block in (*pyramid.lateral.values(), *pyramid.output.values()):
        conv, norm = block.children()
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is None
        assert isinstance(norm, nn.GroupNorm)


@pytest.mark.parametrize("make", [make_pyramid, lambda: make_coarse("c5"), lambda: make_coarse("p5")])
def test_gradient_reaches_every_parameter(make: Callable[[], FPN]) -> None:
    pyramid = make()
    torch.stack([level.sum() for level in pyramid(torch.rand(1, 3, 64, 64)).values()]).sum().backward()
    assert not [name for name, p in pyramid.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("features", [("c4",), ("c2", "c4"), ("c3", "c4", "c5")])
def test_features_that_do_not_double_from_four_are_refused(features: tuple[str, ...]) -> None:
    body = build_backbone("resnet18", out_features=features)
    with pytest.raises(ValueError, match=r"a pyramid needs features of strides 4, 8, 16, \.\., the body has"):
        FPN(body)


def test_has_no_tail() -> None:
    with pytest.raises(ValueError, match=r"set box\.head to fc"):
        make_pyramid().tail()


def test_layers_after_the_last_feature_are_left_out() -> None:
    pyramid = make_pyramid("vgg11")
    assert not [name for name, _ in pyramid.named_parameters() if "fc6" in name or "fc7" in name]


def test_asks_for_sizes_that_halve_evenly() -> None:
    assert make_pyramid().size_divisor == 32
    assert make_pyramid("vgg11").size_divisor == 16
    assert Backbone.size_divisor == 1
