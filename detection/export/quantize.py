"""Quantises to int8 by ONNX Runtime: weights per channel, activations by their range on calibration images.

Convolutions and linear layers are quantised; boxes are decoded and selected in float32.  A part is a group of modules,
such as ``rpn.head`` or ``backbone.body.layer4``; parts that lose too much stay float.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from detection.export.extras import optional
from detection.export.facts import KEY, Facts
from detection.export.graph import INPUTS

__all__ = ["find_parts", "lossy_parts", "quantize"]

QUANTIZED = ("Conv", "Gemm")
DEPTH = 3  # at most so many module names in the name of a part
NEED = "--int8"

Frames = Sequence[tuple[Tensor, Tensor]]  # pixels (N, 3, H, W) and sizes (N, 2) of each call


def find_parts(path: Path) -> dict[str, list[str]]:
    """Returns the names of the nodes that can be quantised in the .onnx file ``path``, by part."""
    model = optional("onnx", NEED).load(path, load_external_data=False)
    parts: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZED:
            parts.setdefault(_part(node.input[1]), []).append(node.name)
    return parts


def quantize(source: Path, path: Path, frames: Frames, facts: Facts, *, parts: Collection[str]) -> None:
    """Writes the .onnx file ``source`` to ``path`` with int8 ``parts``, calibrated on ``frames``."""
    quantization = optional("onnxruntime.quantization", NEED)
    nodes = [name for part, names in find_parts(source).items() if part in parts for name in names]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(frames)

        def get_next(self) -> dict[str, Any] | None:
            frame = next(self.left, None)
            return frame and {name: values.numpy() for name, values in zip(INPUTS, frame, strict=True)}

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a pre-processing that has no effect here
    try:
        quantization.quantize_static(
            str(source),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=nodes,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
            },  # the only zero point of TensorRT
        )
    finally:
        logging.disable(before)
    _describe(path, facts)


def lossy_parts(
    parts: Mapping[str, Sequence[str]], loss: Callable[[Collection[str]], float], *, limit: float
) -> dict[str, float]:
    """Returns the ``parts`` that lose more than ``limit`` when quantised alone, with their losses.

    Returns none if all parts together lose no more than ``limit``.

    Args:
        parts: parts from ``find_parts``.
        loss: returns the loss of a model with these parts quantised, 0..1.
        limit: 0..1.
    """
    if loss(list(parts)) <= limit:
        return {}
    losses = {part: loss([part]) for part in parts}
    return {part: lost for part, lost in losses.items() if lost > limit}


def _part(weight: str) -> str:
    """Returns the part that a layer's ``weight`` belongs to: the names of the modules above the layer."""
    modules = weight.removeprefix("detector.").split(".")[:-2]
    return ".".join(modules[:DEPTH]) or weight.removeprefix("detector.").partition(".")[0]


def _describe(path: Path, facts: Facts) -> None:
    """Writes ``facts`` to the metadata of the file ``path``."""
    onnx = optional("onnx", NEED)
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.helper.set_model_props(model, {KEY: facts.to_text()})
    onnx.save(model, path)
