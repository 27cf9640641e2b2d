"""Mirrors vgg.py; equality with torchvision is in test_classifier.py."""

from typing import Any

import pytest
import torch
from torch import nn

from backbones.base import FeatureSpec
from backbones.norm import FrozenBatchNorm
from backbones.vgg import VGG


def meta_vgg(depth: int, **options: Any) -> VGG:
    with torch.device("meta"):
        return VGG(depth, **options)


def test_specs() -> None:
    specs = meta_vgg(16, out_features=("c1", "c2", "c3", "c4", "c5")).specs
    channels, strides = (64, 128, 256, 512, 512), (1, 2, 4, 8, 16)
    assert list(specs.values()) == [FeatureSpec(c, s) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_depth_counts_the_convolutions_and_three_linear_layers(depth: int) -> None:
    assert sum(isinstance(layer, nn.Conv2d) for layer in meta_vgg(depth).features) == depth - 3


def test_features_are_the_relu_at_the_end_of_each_stage() -> None:
    backbone = VGG(11, norm=None, roi_size=1, out_features=("c1", "c2"))
    image = torch.randn(1, 3, 9, 5)
    features = backbone(image)
    c1 = backbone.features[0](image).relu()
    pooled = nn.functional.max_pool2d(c1, 2, ceil_mode=True)
    torch.testing.assert_close(features["c1"], c1)
    torch.testing.assert_close(features["c2"], backbone.features[3](pooled).relu())


def test_without_norm_there_is_no_norm_layer() -> None:
    kinds = {type(layer) for layer in meta_vgg(11, norm=None).features}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d}


@pytest.mark.parametrize("norm", [None, "bn"])
def test_freeze_at_counts_stages(norm: str | None) -> None:
    backbone = meta_vgg(16, norm=norm, freeze_at=2)
    convolutions = [layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]
    assert [c.weight.requires_grad for c in convolutions] == [False] * 4 + [True] * 9
    assert all(p.requires_grad for p in backbone.tail().parameters())
    norms = [type(layer) for layer in backbone.features if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm))]
    assert norms == ([] if norm is None else [FrozenBatchNorm] * 4 + [nn.BatchNorm2d] * 9)


def test_norm_eps_reaches_the_layers() -> None:
    assert meta_vgg(11, norm_eps=1e-3).features[1].eps == 1e-3


def test_tail_by_hand() -> None:
    tail = VGG(11, norm=None, roi_size=1).tail().eval()
    regions = torch.randn(2, 512, 1, 1)
    fc6, fc7 = tail.fc6, tail.fc7
    torch.testing.assert_close(tail(regions), fc7(fc6(regions.flatten(1)).relu()).relu())


def test_tail_has_the_papers_sizes() -> None:
    tail = meta_vgg(16).tail()
    assert (tail.roi_size, tail.in_channels, tail.out_channels) == (7, 512, 4096)
    assert {name: tuple(value.shape) for name, value in tail.state_dict().items()} == {
        "fc6.weight": (4096, 25088),
        "fc6.bias": (4096,),
        "fc7.weight": (4096, 4096),
        "fc7.bias": (4096,),
    }


@pytest.mark.parametrize(("dropout", "drops"), [(0.5, True), (0.0, False)])
def test_dropout_acts_in_training_only(dropout: float, drops: bool) -> None:
    torch.manual_seed(0)
    tail = VGG(11, norm=None, roi_size=1, dropout=dropout).tail()
    regions = torch.randn(2, 512, 1, 1)
    torch.testing.assert_close(tail.eval()(regions), tail(regions))
    assert torch.equal(tail.train()(regions), tail.eval()(regions)) != drops


def test_whole_images_get_the_last_pool_and_the_size_of_fc6() -> None:
    tail = meta_vgg(11).tail()
    assert tail.pool_whole_image(torch.zeros(2, 512, 5, 9, device="meta")).shape == (2, 512, 7, 7)
    # 3x3 -> max pool to 2x2, rounded up -> average
    features = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert meta_vgg(11, roi_size=1).tail().pool_whole_image(features).item() == (4 + 5 + 7 + 8) / 4


def test_linear_layers_start_with_a_standard_deviation_of_one_percent() -> None:
    backbone = VGG(11, norm=None, roi_size=1)
    assert isinstance(backbone.fc6, nn.Linear)
    assert backbone.fc6.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert backbone.fc6.bias.eq(0).all()


def test_no_tail_without_c5() -> None:
    with pytest.raises(ValueError, match="the features are c3, c4; add c5"):
        meta_vgg(11, out_features=("c3", "c4")).tail()


def test_unknown_depth() -> None:
    with pytest.raises(ValueError, match="depth must be one of 11, 13, 16, 19, got 12"):
        meta_vgg(12)
