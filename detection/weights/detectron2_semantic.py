"""Converts Detectron2's semantic FPN to our settings and names, and back.

Source: Detectron2, configs/Misc/semantic_R_50_FPN_1x.yaml and detectron2/modeling/meta_arch/semantic_seg.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from detection.config.detection import DetectionConfig

__all__ = [
    "SEMANTIC_KEYS",
    "SEMANTIC_REQUIRED",
    "is_semantic_fpn",
    "our_semantic_name",
    "semantic_layers",
    "semantic_settings",
    "their_semantic_name",
]

HEAD = "head"  # of ours

# Detectron2's setting -> the key of our config that takes its value; and those with the one value that ours has
SEMANTIC_KEYS = {
    "MODEL.SEM_SEG_HEAD.NORM": "semantic.norm",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": "semantic.loss_weight",
}
SEMANTIC_REQUIRED: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
}


def is_semantic_fpn(names: Iterable[str]) -> bool:
    """Returns whether Detectron2's tensor ``names`` are of a network that predicts label maps but no objects."""
    found = {name.partition(".")[0] for name in names}
    return "sem_seg_head" in found and "proposal_generator" not in found


def our_semantic_name(name: str, head: str = HEAD) -> str:
    """Returns our name of Detectron2's tensor ``name`` in the semantic head, here ``head``; others are unchanged.

    A level of theirs is convolution, upsampling, convolution, ..; ours convolution, norm, ReLU, upsampling, ..
    """
    name = re.sub(
        r"^sem_seg_head\.(p\d)\.(\d+)\.(norm\.)?",
        lambda match: f"{head}.levels.{match[1]}.{2 * int(match[2]) + bool(match[3])}.",
        name,
    )
    return re.sub(r"^sem_seg_head\.predictor\.", f"{head}.classes.", name)


def their_semantic_name(name: str, head: str = HEAD) -> str:
    """Returns Detectron2's name of our tensor ``name`` in the semantic head, the inverse of ``our_semantic_name``."""
    name = re.sub(
        rf"^{re.escape(head)}\.levels\.(p\d)\.(\d+)\.",
        lambda match: f"sem_seg_head.{match[1]}.{int(match[2]) // 2}.{'norm.' if int(match[2]) % 2 else ''}",
        name,
    )
    return re.sub(rf"^{re.escape(head)}\.classes\.", "sem_seg_head.predictor.", name)


def semantic_settings(state: Mapping[str, Tensor], head: str = HEAD) -> dict[str, Any]:
    """Returns the model zoo's settings for the layers of the ``head`` in ``state``, which has our names.

    They are sections of our config.
    """
    norm = f"{head}.levels.p2.1"
    return {
        "architecture": "semantic_fpn",
        "semantic": {
            "channels": state[f"{head}.classes.weight"].shape[1],
            "norm": "sync_bn" if f"{norm}.running_mean" in state else "gn",
        },
        "solver": {"best_metric": "semseg.mIoU"},
    }


def semantic_layers(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    """Returns the settings from which Detectron2 builds the layers of ``config``'s semantic FPN on its ResNet."""
    stages = ["res2", "res3", "res4", "res5"]
    return {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": stages,
        "MODEL.FPN.IN_FEATURES": stages,
        "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": num_classes,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": config.semantic.channels or 128,
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    }
