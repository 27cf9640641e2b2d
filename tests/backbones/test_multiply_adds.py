"""Mirrors multiply_adds.py: the papers' counts, fvcore's, and those that torchvision publishes."""

from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchvision.models import get_model_weights, list_models

from backbones.classifier import Classifier
from backbones.registry import backbone_names, build_backbone
from backbones.summary import count_multiply_adds


def meta_classifier(name: str, **options: Any) -> Classifier:
    with torch.device("meta"):
        return Classifier(build_backbone(name, **options), 1000)


def count_giga(name: str, **options: Any) -> float:
    return count_multiply_adds(meta_classifier(name, **options), (224, 224)) / 1e9


def test_by_hand() -> None:
    with torch.device("meta"):
        layers = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)]
        network = nn.Sequential(*layers)
    # 3x4 cells of 4 channels, each from 3x3 pixels of 3 channels; normalisation and bias do not count
    assert count_multiply_adds(network, (5, 7)) == 3 * 4 * 4 * 27 + 48 * 5


@pytest.mark.parametrize(
    ("name", "options", "giga"),
    [
        ("resnet18", {}, 1.8),
        ("resnet34", {"shortcut": "A"}, 3.6),
        ("plain18", {}, 1.8),
        ("plain34", {}, 3.6),
        ("resnet101", {"stride_in": "1x1"}, 7.6),
        ("resnet152", {"stride_in": "1x1"}, 11.3),
        ("vgg19", {}, 19.6),
    ],
)
def test_rounded_they_are_those_of_the_residual_paper(name: str, options: dict[str, Any], giga: float) -> None:
    assert round(count_giga(name, **options), 1) == giga


def test_paper_rounds_down_where_it_says_3_8_for_50_layers_and_3_6_for_34() -> None:
    assert count_giga("resnet50", stride_in="1x1") == pytest.approx(3.858, abs=5e-4)
    assert count_giga("resnet34") == pytest.approx(3.664, abs=5e-4)


def test_paper_leaves_the_linear_layers_of_vgg16_out() -> None:
    network = meta_classifier("vgg16")
    linear = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))
    count = count_multiply_adds(network, (224, 224))
    assert round((count - linear) / 1e9, 1) == 15.3
    assert round(count / 1e9, 1) == 15.5


@pytest.mark.parametrize("name", sorted(set(backbone_names()) & set(list_models())))
def test_parameters_and_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    published = get_model_weights(name)["IMAGENET1K_V1"].meta
    network = meta_classifier(name) if name.startswith("vgg") and "bn" not in name else meta_classifier(name, norm="bn")
    assert sum(parameter.numel() for parameter in network.parameters()) == published["num_params"]
    assert round(count_multiply_adds(network, (224, 224)) / 1e9, 3) == published["_ops"]


@pytest.mark.parametrize("name", ["resnet18", "seresnet18", "preact_resnet18", "resnet18d", "cifar_plain20"])
def test_fvcore_counts_the_same(name: str) -> None:
    size = (65, 97)
    analysis = FlopCountAnalysis(Classifier(build_backbone(name), 1000).eval(), (torch.zeros(1, 3, *size),))
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    counts = analysis.by_operator()
    assert count_multiply_adds(meta_classifier(name), size) == counts["conv"] + counts["linear"]


def test_a_deformable_convolution_counts_as_a_plain_one_and_that_of_its_offsets() -> None:
    options = {"deform": ("c5",), "deform_modulated": True}
    added = count_multiply_adds(meta_classifier("resnet50", **options), (224, 224))
    added -= count_multiply_adds(meta_classifier("resnet50"), (224, 224))
    # 27 offsets and weights from 512 channels: three blocks, all after the stride of the first's 3x3 convolution
    assert added == 3 * 7 * 7 * 27 * 512 * 9
