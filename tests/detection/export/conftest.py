"""Runs functions as exported files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detection.export.files import read_for_openvino
from detection.export.operators import OPSET, shorten_sorts, translations

NUM_CLASSES = 3


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Iterator[list[np.ndarray]]]:
    """Exports a function and runs it in ONNX Runtime, then in OpenVINO."""

    def export_and_run(function: Callable[..., Any], *inputs: Tensor) -> Iterator[list[np.ndarray]]:
        onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
        pytest.importorskip("onnxscript")
        path, exported = tmp_path / "function.onnx", torch.export.export(Function(function), inputs)
        options = {"opset_version": OPSET, "custom_translation_table": dict(translations(NUM_CLASSES))}
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False, **options)
        shorten_sorts(program.model)
        program.save(path)
        arrays = [values.numpy() for values in inputs]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        yield session.run(None, {given.name: x for given, x in zip(session.get_inputs(), arrays, strict=True)})
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        found = openvino.Core().compile_model(read_for_openvino(path), "CPU", settings)(arrays)
        yield [found[place] for place in range(len(found))]

    return export_and_run
