"""Converts our RetinaNet and FCOS to torchvision's names and order of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.weights.torchvision_one_stage import CLASSES, DELTAS, RATIOS, SCALES, Kind

__all__ = ["ONE_STAGE_ARGUMENTS", "POSITIVES", "one_stage_version", "their_rows", "to_one_stage_name"]

# Argument of torchvision's builders -> the key of our config
ONE_STAGE_ARGUMENTS = {
    "min_size": "data.shorter_side",
    "max_size": "data.longer_side",
    "score_thresh": "test.score_threshold",
    "nms_thresh": "test.nms_iou",
    "detections_per_img": "test.max_detections",
    "topk_candidates": "dense.pre_nms",
}

# Architecture, norm of its towers and what p6 is made of -> end of the builder's name
VERSIONS = {("retinanet", None, "p5"): "", ("retinanet", "gn", "c5"): "_v2", ("fcos", "gn", "p5"): ""}
POSITIVES = "head.scale.positives"  # a running mean for training, which torchvision lacks
NEVER = -100.0  # logit of the unused class 0, whose probability is then 0

# All are applied to a name, in this order.
RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.lateral\.c(\d)\.", lambda match: f"backbone.fpn.inner_blocks.{int(match[1]) - 3}."),
    (r"^backbone\.output\.c(\d)\.", lambda match: f"backbone.fpn.layer_blocks.{int(match[1]) - 3}."),
    (r"^backbone\.coarse\.p(\d)\.0\.", r"backbone.fpn.extra_blocks.p\1."),
    (r"^head\.class_tower\.", "head.classification_head.conv."),
    (r"^head\.box_tower\.", "head.regression_head.conv."),
    (rf"^{re.escape(CLASSES)}\.", "head.classification_head.cls_logits."),
    (rf"^{re.escape(DELTAS)}\.", "head.regression_head.bbox_reg."),
    (r"^head\.centerness\.", "head.regression_head.bbox_ctrness."),
)
FLAT = re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(\d+)\.")  # FCOS has the layers of all blocks in one row


def to_one_stage_name(name: str, kind: Kind) -> str:
    """Returns torchvision's name of our tensor ``name``."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    if kind == "fcos":
        return FLAT.sub(lambda match: f"{match[1]}.{3 * int(match[2]) + int(match[3])}.", name)
    return name


def their_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the layers of ``state``, under our names, in torchvision's order of rows (inverse of ``reorder_rows``).

    torchvision's unused class 0 is never detected.
    """
    boxes = len(state[f"{DELTAS}.bias"]) // 4
    grid = (len(SCALES), len(RATIOS)) if boxes > 1 else (1, 1)
    layers = {}
    for part in ("weight", "bias"):
        classes = state[f"{CLASSES}.{part}"].unflatten(0, (-1, *grid)).transpose(0, 2)  # (ratios, sizes, classes, ...)
        unused = torch.full_like(classes[:, :, :1], NEVER if part == "bias" else 0.0)
        layers[f"{CLASSES}.{part}"] = torch.cat([unused, classes], dim=2).flatten(0, 2)
        deltas = state[f"{DELTAS}.{part}"].unflatten(0, (*grid, 4))
        layers[f"{DELTAS}.{part}"] = deltas.transpose(0, 1).flatten(0, 2)
    return layers


def one_stage_version(config: DetectionConfig) -> str:
    """Returns the end of the name of torchvision's builder of ``config``'s detector.

    Raises:
        ValueError: there is none.
    """
    own = (config.architecture, config.dense.norm, config.backbone.fpn_coarse)
    if own not in VERSIONS:
        known = "; ".join(f"{kind} with {norm} and {coarse}" for kind, norm, coarse in VERSIONS)
        raise ValueError(
            f"architecture {own[0]} with dense.norm {own[1]} and backbone.fpn_coarse {own[2]} can't go to torchvision; "
            f"it has {known}"
        )
    return VERSIONS[own]
