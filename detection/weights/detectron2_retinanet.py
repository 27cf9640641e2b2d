"""Detectron2's RetinaNet -> the settings of its model zoo, and the order of our rows.

Source: Detectron2, configs/Base-RetinaNet.yaml and detectron2/modeling/meta_arch/retinanet.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detection.weights.resnets import count_children

__all__ = ["CLASSES", "class_count", "classes_first", "retinanet_settings"]

CLASSES, DELTAS = "head.classes", "head.deltas"
SIZES = [base * 2 ** (third / 3) for base in (32, 64, 128, 256, 512) for third in range(3)]


def class_count(state: Mapping[str, Tensor]) -> int:
    """Returns the number of classes of a RetinaNet in ``state``, which has our names; there is no background."""
    return len(state[f"{CLASSES}.weight"]) // _anchors(state)


def classes_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state``, which has our names, with the rows of a class together; theirs are those of an anchor."""
    grid = (_anchors(state), class_count(state))
    names = [f"{CLASSES}.{part}" for part in ("weight", "bias") if f"{CLASSES}.{part}" in state]
    return dict(state) | {name: state[name].unflatten(0, grid).transpose(0, 1).flatten(0, 1) for name in names}


def retinanet_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the model zoo's settings for the layers of the head in ``state``, as sections of our config."""
    return {
        "architecture": "retinanet",
        "anchors": {"sizes": SIZES, "ratios": [0.5, 1.0, 2.0], "offset": 0.0},
        "dense": {
            "convs": count_children(state, "head.class_tower"),
            "normalizer": "batch",  # Detectron2's is a running mean over batches
            "smooth_l1_beta": 0.0,
            "clip_first": False,
        },
    }


def _anchors(state: Mapping[str, Tensor]) -> int:
    return len(state[f"{DELTAS}.weight"]) // 4
