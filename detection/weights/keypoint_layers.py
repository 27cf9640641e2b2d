"""Converts the keypoint branch of torchvision's and Detectron2's Keypoint R-CNN to our config.

Source: torchvision 0.29, models/detection/keypoint_rcnn.py; Detectron2, modeling/roi_heads/keypoint_head.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detection.config.detection import KeypointConfig
from detection.keypoints import COCO_SIGMAS, KeypointSpec
from detection.weights.resnets import count_children

__all__ = ["MAPS", "has_keypoints", "keypoint_config"]

MAPS = "keypoint_stage.head.maps"
CONVS = "keypoint_stage.head.convs"
# COCO's skeleton, of its 17 keypoints counted from 0
# fmt: off
EDGES = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)
# fmt: on


def has_keypoints(state: Mapping[str, Tensor]) -> bool:
    """Returns whether ``state``, under our names, has the layers of a keypoint branch."""
    return f"{MAPS}.weight" in state


def keypoint_config(state: Mapping[str, Tensor]) -> KeypointConfig:
    """Returns the config of the keypoint branch in ``state``; 17 keypoints are COCO's, others are numbered."""
    if not has_keypoints(state):
        return KeypointConfig()
    channels, count = state[f"{MAPS}.weight"].shape[:2]
    persons = count == len(COCO_SIGMAS)
    names = tuple(COCO_SIGMAS) if persons else KeypointSpec.numbered(count).names
    return KeypointConfig(
        names=names,
        edges=EDGES if persons else (),
        convs=count_children(state, CONVS),
        channels=channels,
    )
