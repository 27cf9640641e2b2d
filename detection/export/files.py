"""Writes a captured graph as a file of each format, with its facts in the file's own metadata.

model.pt2              torch.export's; torch.export.load reads it once detection.model.select is imported
model.onnx             ONNX of one opset, standard operators only
model.xml, model.bin   OpenVINO's
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from detection.export.extras import optional
from detection.export.facts import KEY, ExportFormat, Facts
from detection.export.graph import INPUTS, output_names
from detection.export.operators import OPSET, shorten_sorts, translations

__all__ = [
    "NAMES",
    "TORCH_ENTRY",
    "read_for_openvino",
    "require_packages",
    "write_onnx",
    "write_openvino",
    "write_torch",
]

NAMES: dict[ExportFormat, str] = {"torch": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}
UNORDERED = "node_topk"  # prefix of the nodes that PyTorch's exporter writes for torch.topk
TORCH_ENTRY = f"{KEY}.json"  # path in the archive of torch.export
PACKAGES: dict[ExportFormat, tuple[str, ...]] = {
    "torch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}


def require_packages(format: ExportFormat) -> None:
    """Raises ImportError, with the command that installs it, if a package that writes or runs ``format`` is missing."""
    for name in PACKAGES[format]:
        optional(name, f"--format {format}")


def write_torch(program: ExportedProgram, path: Path, facts: Facts) -> None:
    """Writes ``program`` to ``path``, a .pt2 file."""
    torch.export.save(program, path, extra_files={TORCH_ENTRY: facts.to_text()})


def write_onnx(program: ExportedProgram, path: Path, facts: Facts) -> None:
    """Writes ``program`` to ``path``, an .onnx file that holds its weights."""
    with _quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=INPUTS,
            output_names=output_names(facts.parsed_config()),
            opset_version=OPSET,
            custom_translation_table=dict(translations(len(facts.class_names))),
            verbose=False,
        )
    shorten_sorts(exported.model)
    exported.model.metadata_props[KEY] = facts.to_text()
    exported.save(path, external_data=False)


def write_openvino(onnx: Path, path: Path, facts: Facts) -> None:
    """Writes the model in the file ``onnx`` as ``path``, an .xml file, and a .bin file beside it.

    In float16 only the weights are stored as float16; the device chooses the precision of the computation.
    """
    model = read_for_openvino(onnx)
    model.set_rt_info(facts.to_text(), [KEY])
    optional("openvino", "--format openvino").save_model(model, path, compress_to_fp16=facts.precision == "fp16")


def read_for_openvino(onnx: Path) -> Any:
    """Reads the file ``onnx`` with OpenVINO, and restores ONNX's meaning of two operators (seen in 2026.4).

    OpenVINO suppresses a box whose IoU equals the threshold, whereas ONNX requires a larger IoU: the threshold becomes
    the next larger float32.  Its TopK returns equal values in any order unless it is set to stable, which takes 100
    times as long; the TopK of ``torch.topk``, which guarantees no order either, is not changed.
    """
    openvino, operators = (optional(name, "--format openvino") for name in ("openvino", "openvino.opset11"))
    model = openvino.convert_model(onnx)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "NonMaxSuppression":
            threshold = np.float32(node.input_value(3).get_node().get_data().item())
            above = openvino.op.Constant(np.array(np.nextafter(threshold, np.float32(2)), np.float32))
            node.input(3).replace_source_output(above.output(0))
        elif node.get_type_name() == "TopK" and not node.get_friendly_name().startswith(UNORDERED):
            given = node.get_attributes()
            stable = operators.topk(
                node.input_value(0),
                node.input_value(1),
                given["axis"],
                given["mode"],
                "value",
                given["index_element_type"],
                stable=True,
            )
            for own, other in zip(node.outputs(), stable.outputs(), strict=True):
                own.replace(other)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's messages about its progress and deprecated parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
