"""The point head of Detectron2's PointRend -> our config.

Source: Detectron2, projects/PointRend: point_rend/{mask_head,point_head,config}.py and
configs/InstanceSegmentation/Base-PointRend-RCNN-FPN.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.weights.resnets import count_children

__all__ = ["POINTS", "pointrend_layers", "pointrend_settings"]

POINTS = "mask_stage.points.masks"
COARSE = "mask_stage.coarse"


def pointrend_settings(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Any]:
    """Returns the sections mask and point of our config that the layers in ``state``, which has our names, tell."""
    channels = len(state[f"{COARSE}.shrink.0.weight"])
    first = state[f"{COARSE}.fcs.0.weight"]
    return {
        "mask": {
            "pool_size": 2 * math.isqrt(first.shape[1] // channels),
            "channels": channels,
            "geometry": "detectron2",
        },
        "point": {
            "coarse_side": math.isqrt(len(state[f"{COARSE}.masks.bias"]) // num_classes),
            "fcs": count_children(state, f"{COARSE}.fcs"),
            "fc_channels": len(first),
            "layers": count_children(state, "mask_stage.points.layers"),
            "channels": len(state["mask_stage.points.layers.0.weight"]),
        },
    }


def pointrend_layers(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    """Returns the settings from which Detectron2 builds the coarse masks and the point head."""
    point = config.point
    return {
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NAME": "PointRendROIHeads",
        "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",  # it samples points
        "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
        "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": point.coarse_side,
        "MODEL.ROI_MASK_HEAD.NUM_FC": point.fcs,
        "MODEL.ROI_MASK_HEAD.FC_DIM": point.fc_channels,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": config.mask.channels,
        "MODEL.ROI_MASK_HEAD.IN_FEATURES": ["p2"],
        "MODEL.POINT_HEAD.IN_FEATURES": ["p2"],
        "MODEL.POINT_HEAD.NUM_CLASSES": num_classes,
        "MODEL.POINT_HEAD.NUM_FC": point.layers,
        "MODEL.POINT_HEAD.FC_DIM": point.channels,
    }
