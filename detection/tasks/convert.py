"""Turns a detector of torchvision or of Detectron2's model zoo into a checkpoint of this project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.data.cards import load_card
from detection.engine.checkpoint import write_converted
from detection.weights.detectron2 import convert_detectron2
from detection.weights.torchvision import convert_torchvision

__all__ = ["convert_weights"]


def convert_weights(weights: Path, output: Path, *, classes: str = "coco2017", norm_eps: float | None = None) -> str:
    """Writes the detector of the file ``weights`` to ``output``; returns a line that says what was written.

    Args:
        weights: torchvision's .pth, or Detectron2's .pkl or .pth.
        output: a run directory, or a .safetensors file.
        classes: a card with the classes in the order of the weights.
        norm_eps: of torchvision's v1 trained further, see docs/weights.md.

    Raises:
        ValueError: a file that can't be read, or weights that do not fit.
    """
    class_names = load_card(classes).classes
    config, state = _convert(read_state_dict(weights), class_names, norm_eps)
    path = write_converted(output, config, class_names, state)
    return f"{len(state)} tensors, {len(class_names)} classes, {config.backbone.name}: {path}"


def _convert(
    state: Mapping[str, Tensor], class_names: tuple[str, ...], norm_eps: float | None
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Returns config and weights by our names; Detectron2 calls its RPN the proposal generator."""
    if not any(name.startswith("proposal_generator.") for name in state):
        return convert_torchvision(state, class_names=class_names, norm_eps=norm_eps)
    if norm_eps is not None:
        raise ValueError("--norm-eps is for torchvision's weights, these are Detectron2's; leave it out")
    return convert_detectron2(state, class_names=class_names)
