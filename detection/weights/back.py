"""Checks that a detector has another project's settings before its weights are converted back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from backbones.resnet import FULL_STRIDE
from backbones.weights.load import SOURCES
from detection.build_semantic import default_rates
from detection.config.detection import DetectionConfig
from detection.config.schema import flatten

__all__ = ["SIZES", "explicit", "refuse_differences"]

# Keys that change no detection, or that follow from the names of the weights.
IN_TRAINING = re.compile(
    r"backbone\.(weights|norm|fpn_norm|freeze_at|fix_statistics|dropout|activation)|box\.head_norm|mask\.norm"
    r"|(rpn|box)\.(positive_iou|negative_iou|negative_iou_low|samples_per_image|positive_fraction|allow_outside)"
    r"|(rpn|box|dense)\.(smooth_l1_beta|box_loss_weight|loss|ignore_overlap|pre_nms_train|post_nms_train)"
    r"|dense\.(prior|positive_iou|negative_iou|center_radius|focal_alpha|focal_gamma|normalizer)"
    r"|keypoint\.(names|edges)|semantic\.(norm|channels|loss_weight|aux_weight|dropout)|panoptic\.stuff"
    r"|point\.(train_points|oversample|importance)"
)
OF_OBJECTS = ("anchors", "rpn", "box", "cascade", "mask", "point", "keypoint", "dense", "test")
SECTIONS = ("architecture", "backbone", "semantic", "panoptic", *OF_OBJECTS)
SIZES = ("data.shorter_side", "data.longer_side")


def explicit(config: DetectionConfig) -> DetectionConfig:
    """Returns ``config`` with null replaced by the defaults of a ResNet and of a head for label maps."""
    given, source = config.backbone, SOURCES[config.backbone.weights_source]
    backbone = replace(
        given,
        norm=given.norm or "frozen_bn",
        norm_eps=source.norm_eps if given.norm_eps is None else given.norm_eps,
        stride_in=given.stride_in or source.stride_in,
        shortcut=given.shortcut or "B",
        stochastic_depth=given.stochastic_depth or 0.0,
        freeze_at=given.freeze_at or 0,
        tail_stride=given.tail_stride or 2,
        roi_size=given.roi_size or 14,
        dilate_c5=bool(given.dilate_c5),
        output_stride=given.output_stride or FULL_STRIDE,
        deform=tuple(sorted(set(given.deform or ()))),
        deform_modulated=bool(given.deform_modulated),
    )
    own = config.semantic
    semantic = replace(
        own,
        norm=own.norm or ("gn" if config.architecture == "semantic_fpn" or config.is_panoptic else "bn"),
        rates=own.rates or default_rates(backbone.output_stride or FULL_STRIDE),
    )
    return replace(config, backbone=backbone, semantic=semantic)


def refuse_differences(
    own: DetectionConfig, theirs: DetectionConfig, *, project: str, taken: Mapping[str, str] | None = None
) -> None:
    """Raises ValueError if detections depend on a key that differs between ``own`` and ``theirs``.

    Args:
        own: config of the run.
        theirs: config after converting the weights to ``project`` and back.
        project: name for the message.
        taken: argument of the project's builder -> its key, which may therefore differ.
    """
    here, there = flatten(explicit(own)), flatten(explicit(theirs))
    keys = [key for key in here if key.split(".")[0] in SECTIONS or key in SIZES]
    differing = [
        f"{key} is {here[key]!r}, {project} has {there[key]!r}"
        for key in keys
        if here[key] != there[key]
        and not IN_TRAINING.fullmatch(key)
        and key.split(".")[0] not in own.idle_sections
        and key not in (taken or {}).values()
    ]
    if differing:
        other = "other boxes" if own.finds_objects else "other label maps"
        raise ValueError(f"this detector can't go to {project}, which would find {other}: {'; '.join(differing)}")
