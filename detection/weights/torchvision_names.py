"""Converts torchvision's names of tensors, and its order of classes, to ours.

Source: torchvision 0.29, models/detection/faster_rcnn.py, mask_rcnn.py, keypoint_rcnn.py, rpn.py and roi_heads.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from detection.weights.keypoint_layers import MAPS

__all__ = ["CLASSES", "DELTAS", "MASKS", "OLD_NAMES", "PER_CLASS", "PREFIXES", "our_name", "reorder_classes"]

# How releases before 0.13, and so the published v1 files, name some layers.
OLD_NAMES = (
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)"), lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
)

# The first prefix that fits is replaced.
PREFIXES = {
    **{f"backbone.fpn.inner_blocks.{i}.": f"backbone.lateral.c{i + 2}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"backbone.output.c{i + 2}." for i in range(4)},
    "rpn.head.conv.0.0.": "rpn.head.conv.",
    "rpn.head.conv.1.0.": "rpn.head.more.0.",
    "rpn.head.cls_logits.": "rpn.head.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.deltas.",
    "roi_heads.box_head.fc6.": "box_stage.head.fcs.0.",
    "roi_heads.box_head.fc7.": "box_stage.head.fcs.2.",
    "roi_heads.box_head.5.": "box_stage.head.fcs.0.",  # v2: four convolutions and a Flatten come before
    "roi_heads.box_head.": "box_stage.head.convs.",
    "roi_heads.box_predictor.cls_score.": "box_stage.predictor.classes.",
    "roi_heads.box_predictor.bbox_pred.": "box_stage.predictor.deltas.",
    "roi_heads.mask_head.": "mask_stage.head.convs.",
    "roi_heads.mask_predictor.conv5_mask.": "mask_stage.head.upsample.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_stage.head.masks.",
    **{f"roi_heads.keypoint_head.{2 * i}.": f"keypoint_stage.head.convs.{i}.0." for i in range(8)},
    "roi_heads.keypoint_predictor.kps_score_lowres.": f"{MAPS}.",
}

CLASSES, DELTAS, MASKS = "box_stage.predictor.classes", "box_stage.predictor.deltas", "mask_stage.head.masks"
PER_CLASS = {CLASSES: 1, DELTAS: 4, MASKS: 1}  # rows


def our_name(name: str) -> str:
    """Returns our name of torchvision's tensor ``name``; names without a rule are unchanged."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name) if pattern.fullmatch(name) else name
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def reorder_classes(state: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Returns the layers of ``state`` with rows for every class, with those of ``rows`` only; background comes last.

    Args:
        state: by our names.
        rows: of torchvision's classes, whose background is 0.

    Raises:
        ValueError: a layer with another number of rows.
    """
    count = len(state[f"{CLASSES}.weight"])
    layers = {}
    for layer, per_class in PER_CLASS.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name not in state:
                continue
            if len(state[name]) != per_class * count:
                raise ValueError(
                    f"{name} has {len(state[name])} rows, torchvision's have {per_class} for each of {count} classes"
                )
            kept = [*rows, 0] if layer == CLASSES else rows
            layers[name] = state[name].unflatten(0, (count, per_class))[kept].flatten(0, 1)
    return layers
