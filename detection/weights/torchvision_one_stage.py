"""Converts torchvision's RetinaNet and FCOS with a ResNet-FPN to our config and names.

Source: torchvision 0.29, models/detection/retinanet.py and fcos.py, from whose default arguments the settings come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from detection.config.detection import (
    AnchorConfig,
    DenseConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    PostprocessConfig,
)
from detection.weights.resnets import count_children

__all__ = ["Kind", "count_classes", "dense_config", "one_stage_kind", "one_stage_names", "reorder_rows"]

Kind = Literal["retinanet", "fcos"]
CLASSES, DELTAS = "head.classes", "head.deltas"
BASES = (32, 64, 128, 256, 512)  # sizes of anchors, one for each level
RATIOS = (0.5, 1.0, 2.0)
SCALES = tuple(2 ** (third / 3) for third in range(3))  # of the anchors of a level

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# All are applied to a name, in this order.
RULES: Rules = (
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)$", r"backbone.fpn.\1_blocks.\2.0.\3"),  # before 0.13
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.", lambda match: f"backbone.lateral.c{int(match[1]) + 3}."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.", lambda match: f"backbone.output.c{int(match[1]) + 3}."),
    (r"^backbone\.fpn\.extra_blocks\.p(\d)\.", r"backbone.coarse.p\1.0."),
    (r"^head\.classification_head\.conv\.", "head.class_tower."),
    (r"^head\.regression_head\.conv\.", "head.box_tower."),
    (r"^head\.classification_head\.cls_logits\.", f"{CLASSES}."),
    (r"^head\.regression_head\.bbox_reg\.", f"{DELTAS}."),
    (r"^head\.regression_head\.bbox_ctrness\.", "head.centerness."),
)
TOWER = re.compile(r"(head\.\w+_tower)\.(\d+)\.(weight|bias)")  # convolution, norm and ReLU of all blocks in one row


def one_stage_kind(state: Mapping[str, Tensor]) -> Kind | None:
    """Returns the architecture of ``state``, under torchvision's names; None if it is neither of these two."""
    if "head.regression_head.bbox_ctrness.weight" in state:
        return "fcos"
    return "retinanet" if "head.classification_head.cls_logits.weight" in state else None


def one_stage_names(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Returns ``state``, under torchvision's names, with our names; names without a rule are unchanged."""
    return {_our_name(name, 3 if kind == "fcos" else 2): value for name, value in state.items()}


def _our_name(name: str, layers: int) -> str:
    """Returns our name of ``name``, in towers of so many ``layers`` a block: old ones of RetinaNet have no norm."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    if match := TOWER.fullmatch(name):
        block, layer = divmod(int(match[2]), layers)
        return f"{match[1]}.{block}.{layer}.{match[3]}"
    return name


def count_classes(state: Mapping[str, Tensor]) -> int:
    """Returns the number of classes in ``state``, under our names, including the unused row 0.

    Raises:
        ValueError: it has other than the default number of anchors, or lacks layers.
    """
    missing = [
        name for name in (f"{CLASSES}.bias", f"{DELTAS}.bias", "backbone.coarse.p6.0.weight") if name not in state
    ]
    if missing:
        raise ValueError(f"these are no weights of a one-stage detector: nothing becomes {', '.join(missing)}")
    boxes = len(state[f"{DELTAS}.bias"]) // 4
    expected = 1 if "head.centerness.bias" in state else len(RATIOS) * len(SCALES)
    if boxes != expected:
        raise ValueError(
            f"the weights have {boxes} anchors a cell, torchvision's {expected}; others are not known here"
        )
    return len(state[f"{CLASSES}.bias"]) // boxes


def reorder_rows(state: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Returns the layers of ``state``, which has our names, with rows for anchors in our order.

    torchvision's anchors of a cell go by ratio and then by size, ours by size; rows of the scores go by anchor and
    then by class, ours by class.

    Args:
        state: by our names.
        rows: of the classes to keep.
    """
    count = count_classes(state)
    several = len(state[f"{DELTAS}.bias"]) > 4
    grid = (len(RATIOS), len(SCALES)) if several else (1, 1)
    layers = {}
    for part in ("weight", "bias"):
        classes = state[f"{CLASSES}.{part}"].unflatten(0, (*grid, count))  # (ratios, sizes, classes, ...)
        layers[f"{CLASSES}.{part}"] = classes.transpose(0, 2)[list(rows)].flatten(0, 2)
        deltas = state[f"{DELTAS}.{part}"].unflatten(0, (*grid, 4))
        layers[f"{DELTAS}.{part}"] = deltas.transpose(0, 1).flatten(0, 2)
    return layers


def dense_config(state: Mapping[str, Tensor], kind: Kind, backbone: DetectorBackboneConfig) -> DetectionConfig:
    """Returns torchvision's settings for the layers of the head in ``state``, which has our names."""
    normed, batched = "head.class_tower.0.1.weight" in state, kind == "fcos"
    sizes = tuple(float(int(base * scale)) for base in BASES for scale in SCALES)
    return DetectionConfig(
        architecture=kind,
        backbone=backbone,
        anchors=AnchorConfig(**({} if batched else {"sizes": sizes, "ratios": RATIOS}), offset=0.0, rounded=True),
        dense=DenseConfig(
            convs=count_children(state, "head.class_tower"),
            norm="gn" if normed else None,
            normalizer="batch" if batched else "image",
            loss="giou" if normed and not batched else "smooth_l1",
        ),
        test=PostprocessConfig(
            score_threshold=0.2 if batched else 0.05,
            nms_iou=0.6 if batched else 0.5,
            max_detections=100 if batched else 300,
        ),
        data=DetectorDataConfig(shorter_side=800, longer_side=1333),
    )
