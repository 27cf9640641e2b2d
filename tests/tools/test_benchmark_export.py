"""Mirrors tools/benchmark_export.py: rows of a family, and times of a Mask R-CNN beside torchvision's."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_export.py"


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--models", "DC5", "--batches", "2"], ["DC5", "DC5"]),
        (["--time", "1"], ["PyTorch", "torchvision", "onnx", "openvino"]),
    ],
)
def test_a_row_for_each(
    arguments: list[str],
    names: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.syspath_prepend(TOOL.parent)
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(tmp_path), *arguments])
    runpy.run_path(str(TOOL), run_name="__main__")
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows if row[0].strip() != "family"] == names
    assert not any(cell.strip().startswith("0 of 0") for row in rows for cell in row)  # nothing would be compared
