"""Converts Detectron2's RetinaNet to our settings and order of rows, and back.

Source: Detectron2, configs/Base-RetinaNet.yaml and detectron2/modeling/meta_arch/retinanet.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.model.one_stage import RUNNING_START
from detection.weights.resnets import count_children

__all__ = [
    "CLASSES",
    "anchors_first",
    "class_count",
    "classes_first",
    "retinanet_layers",
    "retinanet_settings",
    "with_running_mean",
]

CLASSES, DELTAS, POSITIVES = "head.classes", "head.deltas", "head.scale.positives"
SIZES = [base * 2 ** (third / 3) for base in (32, 64, 128, 256, 512) for third in range(3)]


def class_count(state: Mapping[str, Tensor]) -> int:
    """Returns the number of classes of a RetinaNet in ``state``, under our names; there is no background."""
    return len(state[f"{CLASSES}.weight"]) // _anchors(state)


def classes_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state``, under our names, with rows grouped by class instead of by anchor."""
    grid = (_anchors(state), class_count(state))
    names = [f"{CLASSES}.{part}" for part in ("weight", "bias") if f"{CLASSES}.{part}" in state]
    return dict(state) | {name: state[name].unflatten(0, grid).transpose(0, 1).flatten(0, 1) for name in names}


def anchors_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state``, under our names, with Detectron2's rows, grouped by anchor, and without the running mean."""
    grid = (class_count(state), _anchors(state))
    names = [f"{CLASSES}.{part}" for part in ("weight", "bias")]
    kept = {name: value for name, value in state.items() if name != POSITIVES}
    return kept | {name: state[name].unflatten(0, grid).transpose(0, 1).flatten(0, 1) for name in names}


def with_running_mean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` with the initial running mean of the number of positives, which Detectron2 does not save."""
    return dict(state) | {POSITIVES: torch.tensor(RUNNING_START)}


def retinanet_layers(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    """Returns the settings from which Detectron2 builds the layers of ``config``'s RetinaNet on its ResNet.

    Raises:
        ValueError: Detectron2 can't build these layers.
    """
    if config.dense.norm is not None or config.backbone.fpn_coarse != "c5":
        raise ValueError(
            f"dense.norm {config.dense.norm} and backbone.fpn_coarse {config.backbone.fpn_coarse} can't go to "
            "detectron2, whose RetinaNet has towers without normalisation, and p6 made of c5"
        )
    stages = ["res3", "res4", "res5"]
    return {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": stages,
        "MODEL.FPN.IN_FEATURES": stages,
        "MODEL.RETINANET.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "MODEL.RETINANET.NUM_CLASSES": num_classes,
        "MODEL.RETINANET.NUM_CONVS": config.dense.convs,
    }


def retinanet_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the model zoo's settings for the layers of the head in ``state``, as sections of our config."""
    return {
        "architecture": "retinanet",
        "anchors": {"sizes": SIZES, "ratios": [0.5, 1.0, 2.0], "offset": 0.0},
        "dense": {
            "convs": count_children(state, "head.class_tower"),
            "normalizer": "running",
            "smooth_l1_beta": 0.0,
            "clip_first": False,
        },
    }


def _anchors(state: Mapping[str, Tensor]) -> int:
    return len(state[f"{DELTAS}.weight"]) // 4
