"""Builds the parts that make a Mask R-CNN a Panoptic FPN: its branch for stuff, and the merging of both."""

from __future__ import annotations

from dataclasses import replace

from backbones.base import Backbone
from detection.build_semantic import build_semantic_fpn_head
from detection.config.detection import DetectionConfig
from detection.data.label_maps import LabelMaps
from detection.model.class_rows import ClassRows
from detection.model.panoptic_fpn import LabelStage
from detection.model.panoptic_merge import Merging

__all__ = ["build_label_stage", "build_merge", "label_rows", "with_stuff"]


def build_label_stage(config: DetectionConfig, backbone: Backbone, num_things: int) -> LabelStage:
    if not config.panoptic.stuff:
        raise ValueError(
            "panoptic.stuff names no class; training takes those of its data set, else give their names in order"
        )
    head = build_semantic_fpn_head(config, backbone, 1 + len(config.panoptic.stuff))
    head.class_rows = {"classes": ClassRows(1, names=label_rows(config))}
    return LabelStage(head, num_things=num_things, loss_weight=config.semantic.loss_weight)


def label_rows(config: DetectionConfig) -> tuple[str, ...]:
    """Returns the names of the rows of ``config``'s semantic branch: all things, and each class of stuff."""
    return ("any thing", *config.panoptic.stuff) if config.is_panoptic else ()


def with_stuff(config: DetectionConfig, maps: LabelMaps | None) -> DetectionConfig:
    """Returns ``config`` with the names of the stuff in a data set's ``maps``, if it needs them and has none.

    Raises:
        ValueError: it has other names, or ``maps`` do not tell things from stuff.
    """
    if not config.is_panoptic or maps is None:
        return config
    stuff = maps.class_names[maps.num_things :]
    if maps.segments is None:
        raise ValueError(
            f"architecture {config.architecture} needs a panoptic data set, and this one does not tell objects apart; "
            "give a card of format coco_panoptic, or choose architecture semantic_fpn"
        )
    if not config.panoptic.stuff:
        return replace(config, panoptic=replace(config.panoptic, stuff=stuff))
    if config.panoptic.stuff != stuff:
        raise ValueError(
            f"panoptic.stuff is {list(config.panoptic.stuff)}, the data set has {list(stuff)}; leave panoptic.stuff "
            "out, or give a data set of these"
        )
    return config


def build_merge(config: DetectionConfig, num_things: int) -> Merging | None:
    """Returns the merging rule of ``config``'s panoptic network; None for other networks.

    Args:
        config: of the run.
        num_things: number of object classes.
    """
    if not config.is_panoptic:
        return None
    own = config.panoptic
    return Merging(
        num_things=num_things,
        instance_score=own.instance_score,
        overlap=own.overlap,
        stuff_area=own.stuff_area,
    )
