"""Converts between Detectron2's names of tensors and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

__all__ = ["are_detectron2s", "our_name", "their_name"]

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# All rules are applied to a name, in this order.
TO_OURS: Rules = (
    (r"^backbone\.bottom_up\.", "backbone.body."),
    (r"^backbone\.fpn_(lateral|output)(\d)\.norm\.", r"backbone.\1.c\2.1."),
    (r"^backbone\.fpn_(lateral|output)(\d)\.", r"backbone.\1.c\2.0."),
    (r"^backbone\.top_block\.(p\d)\.", r"backbone.coarse.\1.0."),
    (r"^head\.cls_subnet\.(\d+)\.", lambda match: f"head.class_tower.{int(match[1]) // 2}.0."),
    (r"^head\.bbox_subnet\.(\d+)\.", lambda match: f"head.box_tower.{int(match[1]) // 2}.0."),
    (r"^proposal_generator\.anchor_generator\.", "anchor_generator."),
    (r"^roi_heads\.res5\.", "box_stage.head.layer4."),
    (r"\.stem\.conv1\.norm\.", ".bn1."),
    (r"\.stem\.conv1\.", ".conv1."),
    (r"^(backbone|backbone\.body)\.res(\d)\.", lambda match: f"{match[1]}.layer{int(match[2]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^proposal_generator\.rpn_head\.conv\.conv0\.", "rpn.head.conv."),  # of several convolutions
    (r"^proposal_generator\.rpn_head\.conv\.conv(\d)\.", lambda match: f"rpn.head.more.{int(match[1]) - 1}."),
    (r"^proposal_generator\.rpn_head\.", "rpn.head."),
    (r"\.objectness_logits\.", ".objectness."),
    (r"\.anchor_deltas\.", ".deltas."),
    (r"^roi_heads\.box_(head|predictor)\.(\d)\.", r"box_stage.stages.\2.\1."),
    (r"^roi_heads\.box_(head|predictor)\.", r"box_stage.\1."),
    (r"\.head\.conv(\d)\.norm\.", lambda match: f".head.convs.{int(match[1]) - 1}.1."),
    (r"\.head\.conv(\d)\.", lambda match: f".head.convs.{int(match[1]) - 1}.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.conv2_offset\.", ".conv2.offset."),
    (r"^roi_heads\.mask_(?:head\.)?coarse_head\.reduce_channel_dim_conv\.", "mask_stage.coarse.narrow.0."),
    (r"^roi_heads\.mask_(?:head\.)?coarse_head\.reduce_spatial_dim_conv\.", "mask_stage.coarse.shrink.0."),
    (r"^roi_heads\.mask_(?:head\.)?coarse_head\.(?:coarse_mask_)?(fc\d)\.", r"mask_stage.coarse.\1."),  # older files
    (r"^roi_heads\.mask_(?:head\.)?coarse_head\.prediction\.", "mask_stage.coarse.masks."),
    (
        r"^roi_heads\.mask_(?:head\.)?point_head\.fc(\d)\.",
        lambda match: f"mask_stage.points.layers.{int(match[1]) - 1}.",
    ),
    (r"^roi_heads\.mask_(?:head\.)?point_head\.predictor\.", "mask_stage.points.masks."),
    (r"\.fc(\d)\.", lambda match: f".fcs.{2 * (int(match[1]) - 1)}."),
    (r"\.cls_score\.", ".classes."),
    (r"\.bbox_pred\.", ".deltas."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.norm\.", lambda match: f"mask_stage.head.convs.{int(match[1]) - 1}.1."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda match: f"mask_stage.head.convs.{int(match[1]) - 1}.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "mask_stage.head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "mask_stage.head.masks."),
    (r"^roi_heads\.keypoint_head\.conv_fcn(\d)\.", lambda match: f"keypoint_stage.head.convs.{int(match[1]) - 1}.0."),
    (r"^roi_heads\.keypoint_head\.score_lowres\.", "keypoint_stage.head.maps."),
)

# The way back, in this order too.
TO_THEIRS: Rules = (
    (r"^backbone\.body\.", "backbone.bottom_up."),
    (r"^backbone\.(lateral|output)\.c(\d)\.1\.", r"backbone.fpn_\1\2.norm."),
    (r"^backbone\.(lateral|output)\.c(\d)\.0\.", r"backbone.fpn_\1\2."),
    (r"^backbone\.coarse\.(p\d)\.0\.", r"backbone.top_block.\1."),
    (r"^head\.class_tower\.(\d)\.0\.", lambda match: f"head.cls_subnet.{2 * int(match[1])}."),
    (r"^head\.box_tower\.(\d)\.0\.", lambda match: f"head.bbox_subnet.{2 * int(match[1])}."),
    (r"^head\.classes\.", "head.cls_score."),
    (r"^head\.deltas\.", "head.bbox_pred."),
    (r"^box_stage\.head\.layer4\.", "roi_heads.res5."),
    (r"^(backbone|backbone\.bottom_up)\.layer(\d)\.", lambda match: f"{match[1]}.res{int(match[2]) + 1}."),
    (r"^(backbone|backbone\.bottom_up)\.bn1\.", r"\1.stem.conv1.norm."),
    (r"^(backbone|backbone\.bottom_up)\.conv1\.", r"\1.stem.conv1."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.conv2\.offset\.", ".conv2_offset."),
    (r"^rpn\.head\.objectness\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.head\.more\.(\d)\.", lambda match: f"proposal_generator.rpn_head.conv.conv{int(match[1]) + 1}."),
    (r"^rpn\.head\.", "proposal_generator.rpn_head."),
    (r"^mask_stage\.head\.convs\.(\d)\.1\.", lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}.norm."),
    (r"^mask_stage\.head\.convs\.(\d)\.0\.", lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}."),
    (r"^mask_stage\.head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"^mask_stage\.head\.masks\.", "roi_heads.mask_head.predictor."),
    (r"^mask_stage\.coarse\.narrow\.0\.", "roi_heads.mask_head.coarse_head.reduce_channel_dim_conv."),
    (r"^mask_stage\.coarse\.shrink\.0\.", "roi_heads.mask_head.coarse_head.reduce_spatial_dim_conv."),
    (r"^mask_stage\.coarse\.masks\.", "roi_heads.mask_head.coarse_head.prediction."),
    (r"^mask_stage\.coarse\.fcs\.", "roi_heads.mask_head.coarse_head.fcs."),
    (r"^mask_stage\.points\.layers\.(\d)\.", lambda match: f"roi_heads.mask_head.point_head.fc{int(match[1]) + 1}."),
    (r"^mask_stage\.points\.masks\.", "roi_heads.mask_head.point_head.predictor."),
    (r"^keypoint_stage\.head\.convs\.(\d)\.0\.", lambda match: f"roi_heads.keypoint_head.conv_fcn{int(match[1]) + 1}."),
    (r"^keypoint_stage\.head\.maps\.", "roi_heads.keypoint_head.score_lowres."),
    (r"^box_stage\.stages\.(\d)\.(head|predictor)\.", r"roi_heads.box_\2.\1."),
    (r"^box_stage\.(head|predictor)\.", r"roi_heads.box_\1."),
    (r"\.convs\.(\d)\.1\.", lambda match: f".conv{int(match[1]) + 1}.norm."),
    (r"\.convs\.(\d)\.0\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.fcs\.(\d)\.", lambda match: f".fc{int(match[1]) // 2 + 1}."),
    (r"(box_predictor.*)\.classes\.", r"\1.cls_score."),
    (r"(box_predictor.*)\.deltas\.", r"\1.bbox_pred."),
)


def are_detectron2s(names: Iterable[str]) -> bool:
    """Returns whether the tensor ``names`` are Detectron2's, by its RPN, RetinaNet scores or semantic head."""
    return any(name.startswith(("proposal_generator.", "head.cls_score.", "sem_seg_head.")) for name in names)


def our_name(name: str) -> str:
    """Returns our name of Detectron2's tensor ``name``; names without a rule are unchanged."""
    return _renamed(name, TO_OURS)


def their_name(name: str, *, rpn_convs: int = 1) -> str:
    """Returns Detectron2's name of our tensor ``name``: ``our_name(their_name(name)) == name``.

    The first convolution of an RPN has another name if there are several (``rpn_convs``).
    """
    theirs = _renamed(name, TO_THEIRS)
    return re.sub(r"(rpn_head\.conv)\.(weight|bias)$", r"\1.conv0.\2", theirs) if rpn_convs > 1 else theirs


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
