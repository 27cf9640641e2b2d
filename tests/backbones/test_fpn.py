"""Mirrors backbones/fpn.py."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbones.base import Backbone
from backbones.fpn import FPN
from backbones.norm import make_norm
from backbones.registry import build_backbone, pyramid_features


def make_pyramid(name: str = "resnet18", channels: int = 16, features=None, **options) -> FPN:
    torch.manual_seed(0)
    body = build_backbone(name, out_features=features or pyramid_features(name), roi_size=1)
    return FPN(body, channels=channels, **options)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_levels_have_the_declared_strides_and_later_layers_are_left_out(name: str) -> None:
    pyramid = make_pyramid(name).eval()
    assert pyramid.size_divisor == (32 if name == "resnet18" else 16)
    assert not [name for name, _ in pyramid.named_parameters() if "fc6" in name or "fc7" in name]
    for size in ((64, 96), (37, 53), (33, 130)):
        features = pyramid(torch.rand(1, 3, *size))
        assert list(features) == list(pyramid.specs) == ["p2", "p3", "p4", "p5", "p6"]
        for level, spec in pyramid.specs.items():
            assert features[level].shape == (1, spec.channels, *(-(-side // spec.stride) for side in size))
    assert {spec.channels for spec in pyramid.specs.values()} == {16}
    assert Backbone.size_divisor == 1
    with pytest.raises(ValueError, match=r"set box\.head to fc"):
        pyramid.tail()


@torch.no_grad()
def test_is_torchvisions() -> None:
    pyramid = make_pyramid().eval()
    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    theirs = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 16).eval()
    theirs.body.load_state_dict(pyramid.get_submodule("body").state_dict(), strict=False)
    for ours, inner, layer in zip(pyramid.body.specs, theirs.fpn.inner_blocks, theirs.fpn.layer_blocks, strict=True):
        inner.load_state_dict(pyramid.lateral[ours].state_dict())
        layer.load_state_dict(pyramid.output[ours].state_dict())
    images = torch.rand(2, 3, 64, 96)
    for found, wanted in zip(pyramid(images).values(), theirs(images).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("coarse", "channels"), [("c5", 512), ("p5", 16)])
def test_levels_by_convolutions_are_torchvisions(coarse, channels: int) -> None:
    pyramid = make_pyramid(features=("c3", "c4", "c5"), coarse=coarse).eval()
    theirs, images = LastLevelP6P7(channels, 16).eval(), torch.rand(1, 3, 96, 160)
    theirs.use_P5 = coarse == "p5"
    for name in ("p6", "p7"):
        theirs.get_submodule(name).load_state_dict(pyramid.coarse.get_submodule(f"{name}.0").state_dict())
    found = pyramid(images)
    wanted, _ = theirs([found["p5"]], [pyramid.body(images)["c5"]], [])
    assert [(name, spec.stride) for name, spec in pyramid.specs.items()] == [(f"p{k}", 2**k) for k in range(3, 8)]
    assert [tuple(level.shape[2:]) for level in found.values()] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    torch.testing.assert_close([found["p6"], found["p7"]], list(wanted[1:]), rtol=1e-5, atol=1e-6)


def test_starts_as_he_says_for_layers_without_activation_and_a_norm_takes_the_bias() -> None:
    conv = make_pyramid(channels=64).get_submodule("lateral.c5.0")
    assert conv.get_parameter("weight").var().item() == pytest.approx(1 / 512, rel=0.05)
    assert not conv.get_parameter("bias").any()
    pyramid = make_pyramid(norm=make_norm("gn", 1e-5))
    for conv, norm in (block.children() for block in (*pyramid.lateral.values(), *pyramid.output.values())):
        assert (type(conv), conv.bias, isinstance(norm, nn.GroupNorm)) == (nn.Conv2d, None, True)


@pytest.mark.parametrize("coarse", [None, "c5", "p5"])
def test_gradient_reaches_every_parameter(coarse: str | None) -> None:
    pyramid = make_pyramid(features=("c3", "c4", "c5"), coarse=coarse) if coarse else make_pyramid()
    torch.stack([level.sum() for level in pyramid(torch.rand(1, 3, 64, 64)).values()]).sum().backward()
    assert not [name for name, p in pyramid.named_parameters() if p.requires_grad and p.grad is None]


def test_features_that_do_not_double_from_four_are_refused() -> None:
    for features in (("c4",), ("c2", "c4"), ("c3", "c4", "c5")):
        with pytest.raises(ValueError, match="strides 4, 8, 16"):
            make_pyramid(features=features)
