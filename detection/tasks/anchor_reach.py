"""Counts objects that no anchor reaches, for the anchors of a config and for anchors and sizes that fit the data.

Shapes: M objects, A anchors of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from detection.build import build_detector, with_keypoints
from detection.config.detection import DetectionConfig
from detection.data.anchor_fit import grid_iou, resized_boxes
from detection.data.index import AnnotationIndex
from detection.keypoints import KeypointSpec
from detection.model.anchors import AnchorGenerator, deal
from detection.tasks.recipe import LEAST_SIZES, STRIDES, Choice, Machine, fitting_anchors, fitting_size

__all__ = ["IOUS", "Reach", "reach_of_config", "reach_of_suggested", "suggest"]

IOUS = (0.5, 0.7)  # IoU at which an anchor is useful, and at which the paper labels it positive


@dataclass(frozen=True, slots=True)
class _Level:
    """The anchors of one feature map."""

    stride: int
    sides: NDArray[np.float64]  # (A, 2) width and height, pixels of the resized image
    offset: float = 0.5


@dataclass(frozen=True, slots=True)
class Reach:
    """Anchors and their best IoU with each object, without ignored and thin objects.

    Attributes:
        name: name of the anchors.
        size: shorter and longer side to which images are resized, pixels.
        anchors: (A, 2) width and height of all levels.
        sides: (M, 2) width and height of the objects in resized images.
        labels: (M,) class of each object.
        ious: (M,) IoU with the best anchor at its position on the grid.
        class_names: class names of the K classes.
    """

    name: str
    size: tuple[int, int]
    anchors: NDArray[np.float64]
    sides: NDArray[np.float64]
    labels: NDArray[np.int64]
    ious: NDArray[np.float64]
    class_names: tuple[str, ...]

    @property
    def line(self) -> str:
        """Returns a line with the number of objects that no anchor reaches."""
        low, high = (f"{self.missed(iou).sum():,}" for iou in IOUS)
        objects = f"{len(self.ious):,} objects"
        return f"{self.name}: no anchor reaches {low} of {objects} at IoU {IOUS[0]}, {high} at IoU {IOUS[1]}"

    def missed(self, at: float) -> NDArray[np.bool_]:
        """Returns a mask (M,) of the objects that no anchor reaches at the IoU ``at``."""
        return self.ious < at


def suggest(index: AnnotationIndex, config: DetectionConfig | None = None) -> list[Choice]:
    """Returns image size and anchors that fit ``index``, with reasons; empty without objects or anchors.

    There is an anchor size for each level or size of ``config``; without a config, for each level of a feature pyramid.
    """
    if not len(index) or (config is not None and not _levels(config)):
        return []
    size = fitting_size(index, Machine.this())
    boxes, _ = resized_boxes(index, size[0].value, size[1].value)
    if not len(boxes):
        return []
    return [*size, *fitting_anchors(boxes[:, 2:] - boxes[:, :2], _least_sizes(config))]


def reach_of_suggested(
    index: AnnotationIndex, suggested: Sequence[Choice], config: DetectionConfig | None = None
) -> Reach:
    """Returns the reach of the anchors that ``suggest`` gives for ``index`` and ``config``."""
    shorter, longer, sizes, ratios = (choice.value for choice in suggested)
    strides = STRIDES if config is None else [level.stride for level in _levels(config)]
    levels = [_Level(stride, _sides([size], ratios)) for stride, size in zip(strides, sizes, strict=False)]
    if config is not None and not config.backbone.fpn:
        levels = [_Level(own.stride, _sides(sizes, ratios), own.offset) for own in _levels(config)[:1]]
    return _reach(index, "suggested anchors", (shorter, longer), levels)


def reach_of_config(index: AnnotationIndex, config: DetectionConfig, name: str) -> Reach | None:
    """Returns the reach of the anchors of ``config``; None if its detector has none."""
    levels = _levels(config)
    size = (config.data.shorter_side, config.data.longer_side)
    return _reach(index, name, size, levels) if levels else None


def _reach(index: AnnotationIndex, name: str, size: tuple[int, int], levels: Sequence[_Level]) -> Reach:
    boxes, labels = resized_boxes(index, *size)
    ious = [grid_iou(boxes, level.sides, level.stride, offset=level.offset) for level in levels]
    anchors = np.concatenate([level.sides for level in levels])
    return Reach(name, size, anchors, boxes[:, 2:] - boxes[:, :2], labels, np.max(ious, axis=0), index.class_names)


def _least_sizes(config: DetectionConfig | None) -> tuple[float, ...]:
    """Returns the smallest anchor size of each level, two cells; with a single feature map, 0 for each size."""
    if config is None:
        return LEAST_SIZES
    if not config.backbone.fpn:
        return (0.0,) * len(config.anchors.sizes)
    return tuple(2.0 * level.stride for level in _levels(config))


def _levels(config: DetectionConfig) -> list[_Level]:
    if config.architecture == "keypoint_rcnn" and not config.keypoint.names:
        config = with_keypoints(config, KeypointSpec.numbered(1))
    if config.is_panoptic and not config.panoptic.stuff:
        config = replace(config, panoptic=replace(config.panoptic, stuff=("stuff",)))
    with torch.device("meta"):  # on the meta device: only the strides are needed
        detector = build_detector(config, 1, pretrained=False)
    found = [module for module in detector.modules() if isinstance(module, AnchorGenerator)]
    return [
        _Level(level.stride, _sides(sizes, config.anchors.ratios), level.offset)
        for level, sizes in zip(found, deal(config.anchors.sizes, len(found)) if found else (), strict=True)
    ]


def _sides(sizes: Sequence[float], ratios: Sequence[float]) -> NDArray[np.float64]:
    return np.array([(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios])
