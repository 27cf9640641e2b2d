"""Mirrors vgg.py; equality with torchvision is in test_classifier.py."""

from typing import Any

import pytest
import torch
from torch import nn

from backbones.base import FeatureSpec
from backbones.norm import FrozenBatchNorm
from backbones.vgg import VGG


def small_vgg(**options) -> VGG:
    torch.manual_seed(0)
    return VGG(11, norm=None, roi_size=1, **options)


def test_specs_and_features_are_the_relu_at_the_end_of_each_stage(meta) -> None:
    specs = meta(VGG, 16, out_features=("c1", "c2", "c3", "c4", "c5")).specs
    sizes = zip((64, 128, 256, 512, 512), (1, 2, 4, 8, 16), strict=True)
    assert list(specs.values()) == [FeatureSpec(*size) for size in sizes]
    backbone, image = small_vgg(out_features=("c1", "c2")), torch.randn(1, 3, 9, 5)
    assert {type(layer) for layer in backbone.features} == {nn.Conv2d, nn.ReLU, nn.MaxPool2d}
    c1 = backbone.features[0](image).relu()
    c2 = backbone.features[3](nn.functional.max_pool2d(c1, 2, ceil_mode=True)).relu()
    torch.testing.assert_close(backbone(image), {"c1": c1, "c2": c2})


@pytest.mark.parametrize("norm", [None, "bn"])
def test_freeze_at_counts_stages(meta, norm: str | None) -> None:
    backbone = meta(VGG, 16, norm=norm, freeze_at=2, norm_eps=1e-3)
    convolutions = [layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]
    assert [c.weight.requires_grad for c in convolutions] == [False] * 4 + [True] * 9
    assert all(p.requires_grad for p in backbone.tail().parameters())
    norms = [layer for layer in backbone.features if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm))]
    assert [type(n) for n in norms] == ([FrozenBatchNorm] * 4 + [nn.BatchNorm2d] * 9 if norm else [])
    assert {layer.eps for layer in norms} <= {1e-3}


def test_tail_has_the_papers_sizes_and_is_two_linear_layers(meta) -> None:
    tail: Any = meta(VGG, 16).tail()
    assert (tail.roi_size, tail.in_channels, tail.out_channels) == (7, 512, 4096)
    shapes = [tuple(value.shape) for value in tail.state_dict().values()]
    assert shapes == [(4096, 25088), (4096,), (4096, 4096), (4096,)]
    regions, tail = torch.randn(2, 512, 1, 1), small_vgg().tail().eval()
    torch.testing.assert_close(tail(regions), tail.fc7(tail.fc6(regions.flatten(1)).relu()).relu())
    assert tail.fc6.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not tail.fc6.bias.any()


def test_dropout_acts_in_training_only() -> None:
    regions = torch.randn(2, 512, 1, 1)
    for dropout in (0.5, 0.0):
        tail = small_vgg(dropout=dropout).tail()
        torch.testing.assert_close(tail.eval()(regions), tail(regions))
        assert torch.equal(tail.train()(regions), tail.eval()(regions)) == (dropout == 0)


def test_whole_images_get_the_last_pool_and_the_size_of_fc6(meta) -> None:
    assert meta(VGG, 11).tail().pool_whole_image(torch.zeros(2, 512, 5, 9, device="meta")).shape == (2, 512, 7, 7)
    # 3x3 -> max pool to 2x2, rounded up -> average
    features = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert meta(VGG, 11, roi_size=1).tail().pool_whole_image(features).item() == (4 + 5 + 7 + 8) / 4


def test_impossible_options_are_named(meta) -> None:
    with pytest.raises(ValueError, match="the features are c3, c4; add c5"):
        meta(VGG, 11, out_features=("c3", "c4")).tail()
    with pytest.raises(ValueError, match=r"depth must be one of .* got 12"):
        meta(VGG, 12)
