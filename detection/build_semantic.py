"""Builds semantic segmentation networks from a config."""

from __future__ import annotations

from backbones.base import Backbone
from backbones.fpn import FPN
from backbones.norm import make_norm
from backbones.registry import pyramid_features
from detection.config.detection import DetectionConfig, SemanticConfig
from detection.model.semantic import LabelHead, SemanticNetwork
from detection.model.semantic_heads import DeepLabHead, FCNHead, SemanticFPNHead

__all__ = [
    "build_deeplabv3",
    "build_fcn",
    "build_semantic_fpn",
    "build_semantic_fpn_head",
    "default_rates",
    "stages_of",
]

DENSE_STRIDE = 8  # of the trunk, up to which DeepLabV3's rates are the wide ones


def stages_of(config: DetectionConfig) -> tuple[str, ...]:
    """Returns the stages of the trunk that fcn and deeplabv3 read: the last, and for a second head the one before.

    Raises:
        ValueError: the backbone has no stages of strides 4, 8, ..
    """
    name = config.backbone.name
    try:
        stages = pyramid_features(name)
    except ValueError as error:
        raise ValueError(
            f"architecture {config.architecture} needs stages of strides 4, 8, .., which backbone.name {name} "
            "lacks; choose another backbone"
        ) from error
    return stages[-2 if config.semantic.aux_weight > 0 else -1 :]


def default_rates(stride: int) -> tuple[int, ...]:
    """Returns the dilations of DeepLabV3's branches over features of ``stride``."""
    return (12, 24, 36) if stride <= DENSE_STRIDE else (6, 12, 18)


def build_fcn(config: DetectionConfig, backbone: Backbone, num_classes: int) -> SemanticNetwork:
    return _labeller(config, backbone, _fcn_head(config.semantic, backbone, -1, num_classes), num_classes)


def build_deeplabv3(config: DetectionConfig, backbone: Backbone, num_classes: int) -> SemanticNetwork:
    semantic, spec = config.semantic, list(backbone.specs.values())[-1]
    head = DeepLabHead(
        spec.channels,
        spec.stride,
        num_classes=num_classes,
        channels=semantic.channels or 256,
        norm=make_norm(semantic.norm or "bn", eps=1e-5),
        rates=semantic.rates or default_rates(spec.stride),
        dropout=0.5 if semantic.dropout is None else semantic.dropout,
    )
    return _labeller(config, backbone, head, num_classes)


def build_semantic_fpn(config: DetectionConfig, backbone: Backbone, num_classes: int) -> SemanticNetwork:
    return SemanticNetwork(
        backbone, build_semantic_fpn_head(config, backbone, num_classes), loss_weight=config.semantic.loss_weight
    )


def build_semantic_fpn_head(config: DetectionConfig, backbone: Backbone, num_classes: int) -> SemanticFPNHead:
    """Returns the head over the levels of a pyramid that are no coarser than its body."""
    assert isinstance(backbone, FPN)
    levels = list(backbone.specs.items())[: len(backbone.body.specs)]
    return SemanticFPNHead(
        levels[0][1].channels,
        {name: spec.stride for name, spec in levels},
        num_classes=num_classes,
        channels=config.semantic.channels or 128,
        norm=make_norm(config.semantic.norm or "gn", eps=1e-5),
    )


def _labeller(config: DetectionConfig, backbone: Backbone, head: LabelHead, num_classes: int) -> SemanticNetwork:
    """Returns the network with ``head``, and with a second one where its loss has a weight."""
    semantic = config.semantic
    return SemanticNetwork(
        backbone,
        head,
        auxiliary=_fcn_head(semantic, backbone, -2, num_classes) if semantic.aux_weight > 0 else None,
        loss_weight=semantic.loss_weight,
        aux_weight=semantic.aux_weight,
    )


def _fcn_head(config: SemanticConfig, backbone: Backbone, feature: int, num_classes: int) -> FCNHead:
    channels = list(backbone.specs.values())[feature].channels
    return FCNHead(
        channels,
        num_classes=num_classes,
        channels=config.channels or channels // 4,
        norm=make_norm(config.norm or "bn", eps=1e-5),
        dropout=0.1 if config.dropout is None else config.dropout,
    )
