"""Converts Detectron2's Panoptic FPN to our settings and names, and back.

Source: Detectron2, configs/COCO-PanopticSegmentation/Base-Panoptic-FPN.yaml and detectron2/config/defaults.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.weights.detectron2_semantic import SEMANTIC_KEYS, SEMANTIC_REQUIRED, semantic_layers, semantic_settings

__all__ = ["HEAD", "PANOPTIC_KEYS", "PANOPTIC_REQUIRED", "object_classes", "panoptic_layers", "panoptic_settings"]

HEAD = "label_stage.head"  # of ours

# Beside those of a Mask R-CNN: setting -> the key of our config that takes its value, or the one value that ours has.
PANOPTIC_KEYS = SEMANTIC_KEYS | {
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": "panoptic.overlap",
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": "panoptic.stuff_area",
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": "panoptic.instance_score",
}
PANOPTIC_REQUIRED: dict[str, Any] = SEMANTIC_REQUIRED | {
    "MODEL.META_ARCHITECTURE": "PanopticFPN",
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": True,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": 1.0,
}


def panoptic_settings(state: Mapping[str, Tensor], class_names: Sequence[str], num_things: int) -> dict[str, Any]:
    """Returns the model zoo's settings for the semantic head in ``state``, under our names, as config sections.

    Args:
        state: weights with a semantic head.
        class_names: names of things, or of things and then of stuff.
        num_things: number of classes of the boxes.

    Raises:
        ValueError: the number of names differs.
    """
    count = len(state[f"{HEAD}.classes.weight"]) - 1  # its first row is that of all things
    stuff = tuple(class_names[num_things:]) or tuple(f"stuff {number}" for number in range(1, count + 1))
    if len(stuff) != count or len(class_names) < num_things:
        raise ValueError(
            f"the weights know {num_things} things and {count} classes of stuff, class_names has {len(class_names)}: "
            f"give {num_things} names of things in the order of the rows, and then {count} of stuff or none"
        )
    semantic = semantic_settings(state, HEAD)["semantic"] | {"loss_weight": 0.5}
    return {"semantic": semantic, "panoptic": {"stuff": stuff}}


def object_classes(config: DetectionConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the ``class_names`` of objects, without the stuff of ``config`` at the end."""
    things = tuple(class_names[: len(class_names) - len(config.panoptic.stuff)])
    return things if (*things, *config.panoptic.stuff) == tuple(class_names) else tuple(class_names)


def panoptic_layers(config: DetectionConfig) -> dict[str, Any]:
    """Returns the settings from which Detectron2 builds the semantic head of ``config``'s Panoptic FPN."""
    head = semantic_layers(config, 1 + len(config.panoptic.stuff))
    return {name: value for name, value in head.items() if name.startswith("MODEL.SEM_SEG_HEAD.")} | {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": True,
    }
