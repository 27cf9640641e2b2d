"""Converts our detectors to Detectron2's names and settings.

The result is checked by converting it back: a detector is refused if ``convert_detectron2`` gives another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.weights.back import explicit, refuse_differences
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_names import their_name
from detection.weights.detectron2_panoptic import HEAD, panoptic_layers
from detection.weights.detectron2_pointrend import pointrend_layers
from detection.weights.detectron2_retinanet import anchors_first, retinanet_layers
from detection.weights.detectron2_semantic import semantic_layers, their_semantic_name
from detection.weights.detectron2_settings import settings_of

__all__ = ["to_detectron2"]

# Backbone -> depth, groups, and channels of each in conv2_x
NETWORKS = {
    "resnet50": (50, 1, 64),
    "resnet101": (101, 1, 64),
    "resnet152": (152, 1, 64),
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "resnext101_64x4d": (101, 64, 4),
    "resnext152_32x8d": (152, 32, 8),
    "wide_resnet50_2": (50, 1, 128),
    "wide_resnet101_2": (101, 1, 128),
}


# Architecture -> why it has no counterpart
OTHERS = {
    "fcos": "whose FCOS has other layers",
    "fcn": "which has no FCN",
    "deeplabv3": "whose DeepLabV3 has other layers",
}


def to_detectron2(
    config: DetectionConfig, class_names: Sequence[str], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns ``state`` under Detectron2's names, and the settings (dotted name -> value) of its config.yaml.

    Raises:
        ValueError: Detectron2 has no such detector; the message names the keys.
    """
    if config.architecture in OTHERS:
        raise ValueError(f"architecture {config.architecture} can't go to detectron2, {OTHERS[config.architecture]}")
    backbone, own = config.backbone, explicit(config)
    if backbone.name not in NETWORKS or config.box.context or backbone.norm_eps == 0:
        raise ValueError(
            f"backbone.name {backbone.name}, backbone.norm_eps {backbone.norm_eps} and box.context {config.box.context}"
            f" can't go to detectron2; it takes {', '.join(NETWORKS)} with an eps of 1e-5 and without context"
        )
    if "c5" in (backbone.deform or ()) and config.box.head == "tail":
        raise ValueError("backbone.deform with c5 in the head of every region (box.head tail) can't go to detectron2")
    layers = _layers(own, len(class_names))
    ordered = anchors_first(state) if own.one_stage else state
    theirs = {
        their_name(_their_head(own, name), rpn_convs=config.rpn.convs): value
        for name, value in ordered.items()
        if own.backbone.norm != "frozen_bn" or not name.endswith("num_batches_tracked")
    }
    settings = settings_of(own)
    names = (*class_names, *config.panoptic.stuff)
    back, _ = convert_detectron2(theirs, class_names=names, settings=settings)
    refuse_differences(config, back, project="detectron2")
    return theirs, settings | layers


def _their_head(config: DetectionConfig, name: str) -> str:
    """Returns Detectron2's name of our tensor ``name`` in a semantic head; others are unchanged."""
    if config.is_panoptic:
        return their_semantic_name(name, HEAD)
    return name if config.finds_objects else their_semantic_name(name)


def _layers(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    """Returns the settings from which Detectron2 builds the layers."""
    backbone = config.backbone
    depth, groups, width = NETWORKS[backbone.name]
    body = {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [f"c{stage}" in (backbone.deform or ()) for stage in range(2, 6)],
        "MODEL.RESNETS.DEFORM_MODULATED": bool(backbone.deform_modulated),
        "MODEL.FPN.OUT_CHANNELS": backbone.fpn_channels,
    }
    if not config.finds_objects:
        return body | semantic_layers(config, num_classes)
    own = retinanet_layers(config, num_classes) if config.one_stage else _layers_of_regions(config, num_classes)
    return body | own


def _layers_of_regions(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    backbone, box, tail = config.backbone, config.box, config.box.head == "tail"
    cascade, masks = "cascade" in config.architecture, config.finds_masks
    stages = ["res2", "res3", "res4", "res5"]
    levels = ["p2", "p3", "p4", "p5"] if backbone.fpn else ["res4" if tail else "res5"]
    settings = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": masks,
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone" if backbone.fpn else "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": stages if backbone.fpn else levels,
        "MODEL.FPN.IN_FEATURES": stages if backbone.fpn else [],
        "MODEL.RPN.IN_FEATURES": [*levels, "p6"] if backbone.fpn else levels,
        "MODEL.RPN.CONV_DIMS": [config.rpn.channels] * config.rpn.convs,
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads" if tail else "CascadeROIHeads" if cascade else "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": levels,
        "MODEL.ROI_HEADS.NUM_CLASSES": num_classes,
        "MODEL.ROI_BOX_HEAD.NAME": "" if tail else "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": box.head_convs,
        "MODEL.ROI_BOX_HEAD.NUM_FC": box.head_fcs,
        "MODEL.ROI_BOX_HEAD.FC_DIM": box.head_channels,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": box.class_agnostic,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 0 if tail else config.mask.convs,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": config.mask.channels,
    }
    if config.architecture == "pointrend_rcnn":
        return settings | pointrend_layers(config, num_classes)
    if config.is_panoptic:
        return settings | panoptic_layers(config)
    if config.architecture != "keypoint_rcnn":
        return settings
    keypoint = config.keypoint
    return settings | {
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.NAME": "KRCNNConvDeconvUpsampleHead",
        "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": box.sampling_ratio,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [keypoint.channels] * keypoint.convs,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": len(keypoint.names),
    }
