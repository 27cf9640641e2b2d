"""Converts between torchvision's FCN and DeepLabV3 over a dilated ResNet and our config and names.

Source: torchvision 0.29, models/segmentation/fcn.py, deeplabv3.py and _utils.py, and the sizes of images in
references/segmentation/presets.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from backbones.weights.load import load_matching
from detection.build import build_detector
from detection.config.detection import (
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    DetectorSolverConfig,
    SemanticConfig,
)
from detection.weights.resnets import count_children, resnet_name

__all__ = ["convert_semantic", "is_semantic", "semantic_builder", "to_semantic_names"]

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

CLASSES, AUXILIARY, POOLED = "head.classes", "auxiliary.classes", "classifier.0.project.0.weight"
# Images are resized to 520 pixels at the shorter side, whatever the other becomes; this bound few images reach.
SHORTER, LONGER = 520, 2080

BUILDERS = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")
RATES, DENSE = (12, 24, 36), 8  # of the branches, and stride of the trunk

FCN: Rules = (
    (r"^classifier\.([01])\.", r"head.conv.\1."),
    (r"^classifier\.4\.", f"{CLASSES}."),
)
AUX: Rules = (
    (r"^aux_classifier\.([01])\.", r"auxiliary.conv.\1."),
    (r"^aux_classifier\.4\.", f"{AUXILIARY}."),
)
# The last branch is the pooled one, and has the pooling as its layer 0.
DEEPLAB: Rules = (
    (r"^classifier\.0\.project\.", "head.project."),
    (r"^classifier\.0\.convs\.(\d+)\.([01])\.", r"head.branches.\1.\2."),
    (r"^classifier\.([12])\.", lambda match: f"head.conv.{int(match[1]) - 1}."),
    (r"^classifier\.4\.", f"{CLASSES}."),
)


def is_semantic(state: Mapping[str, Tensor]) -> bool:
    """Returns whether ``state`` is of torchvision's FCN or DeepLabV3 over a ResNet."""
    return "classifier.4.weight" in state and "backbone.layer4.0.conv1.weight" in state


def convert_semantic(
    state: Mapping[str, Tensor], class_names: Sequence[str]
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Returns the config of a network with torchvision's logits, and ``state`` under that network's names.

    Every class, the background included, has its row in torchvision's order.

    Args:
        state: the state dict of fcn_resnet50, fcn_resnet101, deeplabv3_resnet50 or deeplabv3_resnet101.
        class_names: K names, in the order of the rows.

    Raises:
        ValueError: the number of classes differs, or the weights do not fit.
    """
    renamed = {_our_name(name, state): value for name, value in state.items()}
    count = len(renamed[f"{CLASSES}.weight"])
    if count != len(class_names):
        raise ValueError(
            f"the weights know {count} classes, the background included, class_names has {len(class_names)}: give "
            f"{count} names, in the order of the rows"
        )
    config = _config(renamed)
    with torch.device("meta"):
        network = build_detector(config, count, pretrained=False)
    load_matching(network.to_empty(device="cpu"), renamed, source="torchvision's network")
    return config, renamed


def to_semantic_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state``, under our names, with torchvision's names."""
    deep = count_children(state, "head.branches")
    if not deep:
        rules: Rules = ((r"^head\.conv\.", "classifier."), (r"^head\.classes\.", "classifier.4."))
    else:
        rules = (
            (r"^head\.project\.", "classifier.0.project."),
            (r"^head\.branches\.", "classifier.0.convs."),
            (r"^head\.pooled\.(\d)\.", lambda match: f"classifier.0.convs.{deep}.{int(match[1]) + 1}."),
            (r"^head\.conv\.(\d)\.", lambda match: f"classifier.{int(match[1]) + 1}."),
            (r"^head\.classes\.", "classifier.4."),
        )
    rules = (*rules, (r"^auxiliary\.conv\.", "aux_classifier."), (r"^auxiliary\.classes\.", "aux_classifier.4."))
    return {_renamed(name, rules): value for name, value in state.items()}


def semantic_builder(config: DetectionConfig, num_classes: int) -> str:
    """Returns the code that builds torchvision's network for ``config``.

    Raises:
        ValueError: torchvision has no such network; the message names the keys.
    """
    backbone, semantic = config.backbone, config.semantic
    name = f"{config.architecture}_{backbone.name}"
    if name not in BUILDERS or backbone.output_stride != DENSE or (semantic.rates or RATES) != RATES:
        raise ValueError(
            f"architecture {config.architecture} with backbone.name {backbone.name}, backbone.output_stride "
            f"{backbone.output_stride} and semantic.rates {semantic.rates} can't go to torchvision; it has "
            f"{', '.join(BUILDERS)} of stride {DENSE} with rates {', '.join(map(str, RATES))}"
        )
    aux = semantic.aux_weight > 0
    return f"model = {name}(weights=None, weights_backbone=None, num_classes={num_classes}, aux_loss={aux})"


def _our_name(name: str, state: Mapping[str, Tensor]) -> str:
    if POOLED not in state:
        return _renamed(name, (*AUX, *FCN))
    last = count_children(state, "classifier.0.convs") - 1
    pooled = re.sub(rf"^classifier\.0\.convs\.{last}\.(\d)\.", lambda match: f"head.pooled.{int(match[1]) - 1}.", name)
    return _renamed(pooled, (*AUX, *DEEPLAB))


def _renamed(name: str, rules: Rules) -> str:
    """Returns ``name`` renamed by the first matching rule of ``rules``; unchanged if none matches."""
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _config(state: Mapping[str, Tensor]) -> DetectionConfig:
    """Returns torchvision's settings for the layers in ``state``, which has our names."""
    deep = "head.project.0.weight" in state
    return DetectionConfig(
        architecture="deeplabv3" if deep else "fcn",
        backbone=DetectorBackboneConfig(name=resnet_name(state), norm="bn", output_stride=DENSE),
        semantic=SemanticConfig(aux_weight=0.5 if f"{AUXILIARY}.weight" in state else 0.0),
        data=DetectorDataConfig(shorter_side=SHORTER, longer_side=LONGER),
        solver=DetectorSolverConfig(best_metric="semseg.mIoU"),
    )
