"""int8 by ONNX Runtime's quantiser: weights per channel, activations by their range on calibration images.

What is quantised are convolutions and linear layers; boxes are decoded and chosen in float32.  A part is the modules of
one name in the detector, such as ``rpn.head`` or ``backbone.body.layer4``; those that lose too much stay float.
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
DEPTH = 3  # names of modules in that of a part, at most
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
    logging.disable(logging.WARNING)  # it advises to run a pre-processing that changes nothing here
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
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},  # TensorRT takes no other zero point
        )
    finally:
        logging.disable(before)
    _describe(path, facts)


def lossy_parts(
    parts: Mapping[str, Sequence[str]], loss: Callable[[Collection[str]], float], *, limit: float
) -> dict[str, float]:
    """Returns the ``parts`` that lose more than ``limit`` when they alone are quantised, and what each loses.

    Nothing is searched where all parts together lose no more.

    Args:
        parts: from ``find_parts``.
        loss: loss of a model with these parts quantised, 0..1.
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
    """Puts ``facts`` into the metadata of the file ``path``."""
    onnx = optional("onnx", NEED)
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.helper.set_model_props(model, {KEY: facts.to_text()})
    onnx.save(model, path)
