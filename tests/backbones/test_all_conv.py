"""Mirrors all_conv.py; the contract itself is held by test_base.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from backbones.all_conv import AllCNN
from backbones.classifier import Classifier
from backbones.registry import build_backbone


def test_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        classifier = Classifier(build_backbone("all_cnn_c"), 10)
    # nine convolutions of table 1 and 2, the last being the classifier's layer; the paper says 1.4 M
    sizes = [(3, 96, 9), (96, 96, 9), (96, 96, 9), (96, 192, 9), *[(192, 192, 9)] * 3, (192, 192, 1), (192, 10, 1)]
    assert sum(p.numel() for p in classifier.parameters()) == sum(a * b * k + b for a, b, k in sizes) == 1_369_738


def test_has_convolutions_and_no_pool() -> None:
    layers = [m for m in AllCNN(out_features=("c2",)).modules() if not list(m.children())]
    assert {type(m) for m in layers} == {nn.Conv2d, nn.ReLU, nn.Dropout}
    assert [m.stride[0] for m in layers if isinstance(m, nn.Conv2d)] == [1, 1, 2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("size", [(32, 32), (33, 31), (1, 7)])
def test_sizes_are_rounded_up(size: tuple[int, int]) -> None:
    backbone = AllCNN(out_features=("c2", "c0", "c1")).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, *size))
    assert list(features) == ["c0", "c1", "c2"]
    for (name, feature), channels, stride in zip(features.items(), (96, 192, 192), (1, 2, 4), strict=True):
        assert (backbone.specs[name].channels, backbone.specs[name].stride) == (channels, stride)
        assert feature.shape == (1, channels, *(math.ceil(side / stride) for side in size))


def test_cells_far_from_the_border_do_not_depend_on_the_size_of_the_image() -> None:
    torch.manual_seed(0)
    backbone = AllCNN(out_features=("c2",)).eval()
    image = torch.rand(1, 3, 96, 80)
    with torch.no_grad():
        whole, part = backbone(image)["c2"], backbone(image[:, :, 16:80, 8:72])["c2"]
    torch.testing.assert_close(part[:, :, 6:-6, 6:-6], whole[:, :, 10:14, 8:12], rtol=1e-5, atol=1e-5)
    assert whole.std() > 0.01


@pytest.mark.parametrize("size", [(32, 32), (45, 20)])
def test_classifier_is_the_average_of_a_1x1_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(build_backbone("all_cnn_c"), 10).eval()
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        maps = classifier.tail.maps(classifier.backbone(images)["c1"])
        per_cell = nn.functional.conv2d(maps, classifier.fc.weight[:, :, None, None], classifier.fc.bias)
        torch.testing.assert_close(classifier(images), per_cell.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


def test_dropout_is_that_of_the_paper_and_can_be_turned_off() -> None:
    def rates(backbone: AllCNN) -> list[float]:
        return [m.p for m in backbone.modules() if isinstance(m, nn.Dropout)]

    assert rates(AllCNN()) == [0.2, 0.5, 0.5]
    assert rates(AllCNN(dropout=0)) == [0, 0, 0]


def test_frozen_stages_come_first() -> None:
    backbone = AllCNN(freeze_at=2)
    assert {name[:2] for name, p in backbone.named_parameters() if p.requires_grad} == {"c2"}
    assert not any(p.requires_grad for p in AllCNN(freeze_at=3).parameters())


def test_no_tail_after_the_last_stage() -> None:
    with pytest.raises(ValueError, match="no tail: c2 is one of the features c0, c2; end them at c1 to get c2"):
        AllCNN(out_features=("c2", "c0")).tail()


def test_impossible_options_are_named() -> None:
    with pytest.raises(ValueError, match="freeze_at must be one of 0, 1, 2, 3, got 4"):
        AllCNN(freeze_at=4)
    with pytest.raises(ValueError, match="out_features must be one of 'c0', 'c1', 'c2', got 'c5'"):
        AllCNN(out_features=("c5",))
    with pytest.raises(ValueError, match="roi_size must be at least 1, got 0"):
        AllCNN(roi_size=0)
