"""A detector of ours -> Detectron2's names and settings.

What it writes is read back first: what ``convert_detectron2`` does not understand as the same detector is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.weights.back import explicit, refuse_differences
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_names import their_name
from detection.weights.detectron2_retinanet import anchors_first, retinanet_layers
from detection.weights.detectron2_settings import settings_of

__all__ = ["to_detectron2"]

DEPTHS = {"resnet50": 50, "resnet101": 101, "resnet152": 152, "resnext50_32x4d": 50, "resnext101_32x8d": 101}


def to_detectron2(
    config: DetectionConfig, class_names: Sequence[str], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns ``state`` by Detectron2's names, and the settings (dotted name -> value) of its config.yaml.

    Raises:
        ValueError: Detectron2 has no such detector; the keys are named.
    """
    if config.architecture == "fcos":
        raise ValueError("architecture fcos can't go to detectron2, whose FCOS has other layers")
    backbone, own = config.backbone, explicit(config)
    if backbone.name not in DEPTHS or config.box.context or backbone.norm_eps == 0:
        raise ValueError(
            f"backbone.name {backbone.name}, backbone.norm_eps {backbone.norm_eps} and box.context {config.box.context}"
            f" can't go to detectron2; it takes {', '.join(DEPTHS)} with an eps of 1e-5 and without context"
        )
    layers = _layers(own, len(class_names))
    ordered = anchors_first(state) if own.one_stage else state
    theirs = {
        their_name(name): value
        for name, value in ordered.items()
        if own.backbone.norm != "frozen_bn" or not name.endswith("num_batches_tracked")
    }
    settings = settings_of(own)
    back, _ = convert_detectron2(theirs, class_names=class_names, settings=settings)
    refuse_differences(config, back, project="detectron2")
    return theirs, settings | layers


def _layers(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    """Returns the settings from which Detectron2 builds the layers."""
    backbone, grouped = config.backbone, config.backbone.name.partition("_")[2]
    body = {
        "MODEL.RESNETS.DEPTH": DEPTHS[backbone.name],
        "MODEL.RESNETS.NUM_GROUPS": int(grouped.partition("x")[0]) if grouped else 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": int(grouped.partition("x")[2].removesuffix("d")) if grouped else 64,
        "MODEL.FPN.OUT_CHANNELS": backbone.fpn_channels,
    }
    own = retinanet_layers(config, num_classes) if config.one_stage else _layers_of_regions(config, num_classes)
    return body | own


def _layers_of_regions(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    backbone, box, tail = config.backbone, config.box, config.box.head == "tail"
    cascade, masks = "cascade" in config.architecture, "mask" in config.architecture
    stages = ["res2", "res3", "res4", "res5"]
    levels = ["p2", "p3", "p4", "p5"] if backbone.fpn else ["res4" if tail else "res5"]
    settings = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": masks,
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone" if backbone.fpn else "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": stages if backbone.fpn else levels,
        "MODEL.FPN.IN_FEATURES": stages if backbone.fpn else [],
        "MODEL.RPN.IN_FEATURES": [*levels, "p6"] if backbone.fpn else levels,
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
