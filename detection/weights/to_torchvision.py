"""Converts our detectors to torchvision's names, with the call that builds the model.

The result is checked by converting it back: a detector is refused if ``convert_torchvision`` gives another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.config.schema import flatten
from detection.weights.back import SIZES, explicit, refuse_differences
from detection.weights.to_torchvision_one_stage import (
    ONE_STAGE_ARGUMENTS,
    POSITIVES,
    one_stage_version,
    their_rows,
    to_one_stage_name,
)
from detection.weights.torchvision import convert_torchvision
from detection.weights.torchvision_names import CLASSES, PER_CLASS, PREFIXES
from detection.weights.torchvision_semantic import semantic_builder, to_semantic_names

__all__ = ["to_torchvision"]

# Argument of torchvision's builders -> the key of our config
ARGUMENTS = {
    "min_size": "data.shorter_side",
    "max_size": "data.longer_side",
    "rpn_pre_nms_top_n_train": "rpn.pre_nms_train",
    "rpn_pre_nms_top_n_test": "rpn.pre_nms_test",
    "rpn_post_nms_top_n_train": "rpn.post_nms_train",
    "rpn_post_nms_top_n_test": "rpn.post_nms_test",
    "rpn_nms_thresh": "rpn.nms_iou",
    "box_score_thresh": "test.score_threshold",
    "box_nms_thresh": "test.nms_iou",
    "box_detections_per_img": "test.max_detections",
}

# Convolutions and fully connected layers of the box head -> the builder that has them, and its names
HEADS = {
    (0, 2): ("", {"fcs.0.": "fc6.", "fcs.2.": "fc7."}),
    (4, 1): ("_v2", {"fcs.0.": "5.", "convs.": ""}),
}


def to_torchvision(
    config: DetectionConfig, class_names: Sequence[str], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Returns ``state`` under torchvision's names, and Python code that builds the model for it.

    The background comes first; its box and mask, which are never read, are zeros.

    Raises:
        ValueError: torchvision has no such detector; the message names the keys.
    """
    own = explicit(config)
    if not own.finds_objects:
        code, theirs = semantic_builder(own, len(class_names)), to_semantic_names(state)
        theirs |= _counters(theirs)
        back, _ = convert_torchvision(theirs, class_names=class_names)
        refuse_differences(config, back, project="torchvision", taken={size: size for size in SIZES})
        return theirs, code
    if own.backbone.deform:
        raise ValueError(
            f"backbone.deform {list(own.backbone.deform)} can't go to torchvision, whose detectors have no deformable "
            "convolutions"
        )
    version, theirs = _one_stage(own, state) if own.one_stage else _of_regions(own, state)
    counted = own.backbone.norm in ("bn", "sync_bn")
    theirs = {name: value for name, value in theirs.items() if counted or not _is_counter(name)}
    if counted:
        theirs |= _counters(theirs)
    back, _ = convert_torchvision(theirs, class_names=class_names, norm_eps=own.backbone.norm_eps)
    arguments = ONE_STAGE_ARGUMENTS if own.one_stage else ARGUMENTS
    refuse_differences(config, back, project="torchvision", taken=arguments | {"rpn": "rpn.min_size"})
    return theirs, _builder(own, back, version, arguments, len(class_names))


def _one_stage(config: DetectionConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Returns the end of the builder's name, and ``state`` by torchvision's names."""
    version, kind = one_stage_version(config), "fcos" if config.architecture == "fcos" else "retinanet"
    ordered = dict(state) | their_rows(state)
    return version, {to_one_stage_name(name, kind): value for name, value in ordered.items() if name != POSITIVES}


def _of_regions(config: DetectionConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Returns the end of the builder's name, and ``state`` by torchvision's names."""
    head = HEADS.get((config.box.head_convs, config.box.head_fcs))
    if head is None or not config.backbone.fpn or config.box.class_agnostic:
        raise ValueError(
            f"backbone.fpn {config.backbone.fpn}, box.head_convs {config.box.head_convs}, box.head_fcs "
            f"{config.box.head_fcs} and box.class_agnostic {config.box.class_agnostic} can't go to torchvision; it has "
            "a pyramid, 0 and 2 or 4 and 1 such layers, and a box for every class"
        )
    version, layers = head
    ordered = dict(state) | _background_first(state)
    return version, {_their_name(name, layers): value for name, value in ordered.items()}


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns step counters for batch normalisations without one, as in frozen stages."""
    names = [name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")]
    return {name: torch.tensor(0) for name in names if name not in state}


def _background_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layers = {}
    for layer, per_class in PER_CLASS.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in state:
                rows = state[name]
                background = rows[-1:] if layer == CLASSES else torch.zeros_like(rows[:per_class])
                layers[name] = torch.cat([background, rows[:-1] if layer == CLASSES else rows])
    return layers


def _their_name(name: str, layers: Mapping[str, str]) -> str:
    head = "box_stage.head."
    if name.startswith(head):
        rest = name.removeprefix(head)
        return "roi_heads.box_head." + next(
            (theirs + rest.removeprefix(ours) for ours, theirs in layers.items() if rest.startswith(ours)), rest
        )
    for theirs, ours in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _builder(
    config: DetectionConfig, default: DetectionConfig, version: str, arguments: Mapping[str, str], num_classes: int
) -> str:
    """Returns the code that builds torchvision's model with the settings of ``config``."""
    values, defaults = flatten(config), flatten(default)
    given = {"num_classes": num_classes + 1}
    if config.architecture == "keypoint_rcnn":
        given["num_keypoints"] = len(config.keypoint.names)
    given |= {name: values[key] for name, key in arguments.items() if values[key] != defaults[key]}
    listed = ", ".join(f"{name}={value}" for name, value in given.items())
    name = f"{config.architecture.replace('_', '')}_{config.backbone.name}_fpn{version}"
    lines = [f"model = {name}(weights=None, weights_backbone=None, {listed})"]
    if config.rpn.min_size != default.rpn.min_size:
        lines.append(f"model.rpn.min_size = {config.rpn.min_size}")
    if config.backbone.norm_eps != 1e-5:
        lines.append(f"for layer in model.backbone.body.modules(): layer.eps = {config.backbone.norm_eps}")
    return "\n".join(lines)
