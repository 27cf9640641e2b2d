"""Writes the files of a detector in one format and precision to a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from detection.export.facts import Facts
from detection.export.files import NAMES, write_onnx, write_openvino, write_torch
from detection.export.graph import capture
from detection.export.operators import OPSET
from detection.export.proof import agreement
from detection.export.quantize import Frames, find_parts, lossy_parts, quantize
from detection.export.runtime import open_exported
from detection.model.architecture import Architecture
from detection.structures import ImageBatch

__all__ = ["write_export"]

PROBES = 4  # images to measure the loss of one part on


def write_export(
    detector: Architecture, folder: Path, facts: Facts, *, frames: Frames = (), part_loss: float = 0.02
) -> tuple[Facts, dict[str, float]]:
    """Writes ``detector`` to ``folder`` in the format and precision of ``facts``.

    Args:
        detector: a detector on the CPU.
        folder: an existing folder.
        facts: metadata of the file.
        frames: inputs to calibrate int8 on.
        part_loss: for int8: a part that alone loses more than this share of the detections stays float.

    Returns:
        The facts in the file, and the loss of each part that stayed float.

    Raises:
        ValueError: the detector or ``facts.size`` can't be exported.
    """
    halved = facts.precision == "fp16" and facts.format != "openvino"  # its weights are converted to float16 at the end
    program = capture(detector, size=facts.size, batch=facts.batch, half=halved)
    if facts.format == "torch":
        write_torch(program, folder / NAMES["torch"], facts)
        return facts, {}
    facts, lost = replace(facts, opset=OPSET), dict[str, float]()
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / NAMES["onnx"]
        write_onnx(program, model, facts)
        if facts.precision == "int8":
            parts, lost = _int8_parts(model, frames, facts, part_loss)
            facts = replace(facts, float_parts=tuple(lost))
            quantize(model, Path(place) / "int8.onnx", frames, facts, parts=parts)
            model = Path(place) / "int8.onnx"
        if facts.format == "openvino":
            write_openvino(model, folder / NAMES["openvino"], facts)
        else:
            (folder / NAMES["onnx"]).write_bytes(model.read_bytes())
    return facts, lost


def _int8_parts(model: Path, frames: Frames, facts: Facts, limit: float) -> tuple[list[str], dict[str, float]]:
    """Returns the parts of the .onnx file ``model`` to quantise, and the loss of each other part."""
    probes = frames[:PROBES]
    images = [ImageBatch(pixels, sizes) for pixels, sizes in probes]
    whole = open_exported(model)
    expected = [found for batch in images for found in whole(batch)]
    trial = model.with_name("trial.onnx")

    def loss(parts: Collection[str]) -> float:
        quantize(model, trial, probes, facts, parts=parts)
        quantized = open_exported(trial)
        return agreement(expected, [found for batch in images for found in quantized(batch)]).unmatched

    with torch.inference_mode():
        parts = find_parts(model)
        lost = lossy_parts(parts, loss, limit=limit)
    kept = [part for part in parts if part not in lost]
    if not kept:
        shown = ", ".join(f"{part} {100 * share:.1f} %" for part, share in lost.items())
        raise ValueError(f"every part loses more than --part-loss {limit:g} in int8: {shown}; leave out --int8")
    return kept, lost
