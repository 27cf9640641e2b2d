"""Turns a detector of torchvision or of Detectron2 into a checkpoint of this project, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.data.cards import load_card
from detection.engine.checkpoint import read_checkpoint, write_converted
from detection.files import write_text, write_whole
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_names import are_detectron2s
from detection.weights.detectron2_panoptic import object_classes
from detection.weights.detectron2_settings import read_settings, settings_of
from detection.weights.origin import label_map_classes
from detection.weights.to_detectron2 import to_detectron2
from detection.weights.to_torchvision import to_torchvision
from detection.weights.torchvision import convert_torchvision

__all__ = ["convert_back", "convert_weights"]


def convert_weights(
    weights: Path,
    output: Path,
    *,
    classes: str = "coco2017",
    norm_eps: float | None = None,
    settings: Path | None = None,
) -> str:
    """Writes the detector of the file ``weights`` to ``output``; returns what was written and what was assumed.

    Args:
        weights: torchvision's .pth, or Detectron2's .pkl or .pth.
        output: a run directory, or a .safetensors file.
        classes: a card with the classes in the order of the weights.  For semantic networks the background, which has
            the first row, may be left out; if the number of classes differs, the names in the weights are used.  For
            panoptic networks: things, optionally followed by stuff.
        norm_eps: batch-norm epsilon of a fine-tuned v1 of torchvision; see docs/weights.md.
        settings: Detectron2's config.yaml, needed for a detector outside its model zoo.

    Raises:
        ValueError: a file that can't be read, or weights that do not fit.
    """
    state = read_state_dict(weights)
    class_names = _class_names(state, load_card(classes).classes)
    if are_detectron2s(state):
        if norm_eps is not None:
            raise ValueError("--norm-eps is for torchvision's weights, these are Detectron2's; leave it out")
        given = {} if settings is None else read_settings(settings)
        config, converted = convert_detectron2(state, class_names=class_names, settings=given)
        assumed = _assumed_of_detectron2(config, given)
    else:
        if settings is not None:
            raise ValueError("--settings is for Detectron2's weights, these are not; leave it out")
        config, converted = convert_torchvision(state, class_names=class_names, norm_eps=norm_eps)
        assumed = _assumed_of_torchvision(config)
    class_names = object_classes(config, class_names)
    path = write_converted(output, config, class_names, converted)
    return f"{len(converted)} tensors, {len(class_names)} classes, {config.backbone.name}: {path}\n{assumed}"


def convert_back(run: Path, output: Path, *, to: Literal["torchvision", "detectron2"]) -> str:
    """Writes the detector of ``run`` as a .pth file of another project; returns how to load it there.

    Args:
        run: a run directory, or a .safetensors file.
        output: the .pth file; Detectron2's settings are written beside it, as .yaml.
        to: the project whose names and settings are written.

    Raises:
        ValueError: no checkpoint, or a detector that the other project lacks.
    """
    if output.suffix != ".pth":
        raise ValueError(f"--output takes a .pth file with --to {to}, got {output}")
    checkpoint = read_checkpoint(run)
    if to == "torchvision":
        state, code = to_torchvision(checkpoint.config, checkpoint.class_names, checkpoint.weights)
        _write(output, state)
        labels = f"labels 1 to {len(checkpoint.class_names)}"
        return f'{len(state)} tensors: {output}; {labels}\n{code}\nmodel.load_state_dict(torch.load("{output}"))'
    state, settings = to_detectron2(checkpoint.config, checkpoint.class_names, checkpoint.weights)
    _write(output, {"model": state})
    described = output.with_suffix(".yaml")
    write_text(described, yaml.safe_dump(_nested(settings), sort_keys=False))
    return (
        f"{len(state)} tensors: {output}\nsettings: {described}; load both with cfg.merge_from_file and MODEL.WEIGHTS"
    )


def _class_names(state: Mapping[str, Tensor], given: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the ``given`` names, after the background for a semantic network with a row for it.

    If their number differs from the rows of the network, returns the network's own names.
    """
    rows = label_map_classes(state)
    if not rows or len(given) == len(rows):
        return given
    return ("background", *given) if len(given) == len(rows) - 1 else rows


def _assumed_of_detectron2(config: DetectionConfig, given: Mapping[str, Any]) -> str:
    assumed = {name: value for name, value in settings_of(config).items() if name not in given}
    listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
    return f"assumed, as in Detectron2's model zoo (--settings config.yaml says otherwise): {listed or 'nothing'}"


def _assumed_of_torchvision(config: DetectionConfig) -> str:
    test, data = config.test, config.data
    if not config.finds_objects:
        return (
            f"assumed, as torchvision's references: images whose shorter side is {data.shorter_side} px; change the "
            "config where yours were others"
        )
    proposals = "" if config.one_stage else f"{config.rpn.post_nms_test} proposals, "
    sizes = ", ".join(f"{size:g}" for size in config.anchors.sizes)
    anchors = "" if config.architecture == "fcos" else f", anchors of {sizes} px"
    return (
        f"assumed, as torchvision's default arguments: images of {data.shorter_side} to {data.longer_side} px, "
        f"{proposals}scores from {test.score_threshold}, NMS at {test.nms_iou}, {test.max_detections} detections"
        f"{anchors}; change the config where yours were others"
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: torch.save(content, temporary))


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return tree
