"""Mirrors tools/gpu.py: what it measures, and in which order."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu.py"


def test_rows_that_the_time_does_not_reach_are_not_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--device", "cpu", "--minutes", "0", "--no-tests"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(TOOL), run_name="__main__")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 32
    assert all(row[5].startswith("not run") for row in rows)
    # The first twelve tell most: bfloat16 at the larger batch, eager, compiled and as CUDA graphs.
    assert {tuple(row[2:4]) for row in rows[:12]} == {("2", "bf16")}
    assert [row[4] for row in rows[:12]] == ["eager"] * 4 + ["compiled"] * 4 + ["graphs"] * 4


def test_without_a_gpu_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [str(TOOL)])
    with pytest.raises(SystemExit, match="--device cpu"):
        runpy.run_path(str(TOOL), run_name="__main__")
