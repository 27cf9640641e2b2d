"""Recognises the ResNet, ResNeXt and pyramid of a detector's weights by blocks and groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from backbones.registry import backbone_names
from backbones.resnet import DEPTHS, Bottleneck

__all__ = ["coarse_levels", "count_children", "deformable_stages", "resnet_name"]

# (groups, channels of each in conv2_x) -> pattern of the backbone's name
NAMES = {
    (1, 64): "resnet{depth}",
    (1, 128): "wide_resnet{depth}_2",
    (32, 4): "resnext{depth}_32x4d",
    (32, 8): "resnext{depth}_32x8d",
    (64, 4): "resnext{depth}_64x4d",
}


def resnet_name(state: Mapping[str, Tensor]) -> str:
    """Returns the name in backbones/registry.py of the network in ``state``, under our names.

    Raises:
        ValueError: there is no such network; the message has the blocks that were found.
    """
    convolutions = {
        (int(match[1]), int(match[2])): value
        for name, value in state.items()
        if (match := re.search(r"\.layer([1-4])\.(\d+)\.conv2\.weight$", name))
    }
    bottleneck = any(name.endswith("layer1.0.conv3.weight") for name in state)
    found = tuple(sum(stage == number for stage, _ in convolutions) for number in range(1, 5))
    known = {depth: counts for depth, (block, counts) in DEPTHS.items() if (block is Bottleneck) == bottleneck}
    depth = next((depth for depth, counts in known.items() if counts == found), None)
    if depth is None:
        kind, listed = "bottleneck" if bottleneck else "basic", ", ".join(f"resnet{d} {c}" for d, c in known.items())
        raise ValueError(f"the ResNet has stages of {found} {kind} blocks, expected those of {listed}")
    first = convolutions[1, 0]
    width = first.shape[1]
    groups = len(first) // width
    name = NAMES.get((groups, width), "").format(depth=depth)
    if name not in backbone_names():
        raise ValueError(f"these are weights of ResNeXt-{depth} {groups}x{width}d, which backbones/registry.py lacks")
    return name


def deformable_stages(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the backbone options for the deformable stages in ``state``, under our names."""
    found = {
        f"c{int(match[1]) + 1}": len(value)
        for name, value in state.items()
        if (match := re.search(r"\.layer([1-4])\.\d+\.conv2\.offset\.weight$", name))
    }
    if not found:
        return {}
    # Two moves of each of the 3x3 samples, and the logit of its weight
    return {"deform": sorted(found), "deform_modulated": set(found.values()) == {27}}


def coarse_levels(state: Mapping[str, Tensor]) -> Literal["c5", "p5"]:
    """Returns the input of p6 in ``state``, under our names; p5 if the widths are equal."""
    outputs, inputs = state["backbone.coarse.p6.0.weight"].shape[:2]
    return "p5" if outputs == inputs else "c5"


def count_children(state: Mapping[str, Tensor], prefix: str) -> int:
    """Returns the number of children of the layer ``prefix`` that have weights."""
    depth = prefix.count(".") + 1
    return len({name.split(".")[depth] for name in state if name.startswith(f"{prefix}.")})
