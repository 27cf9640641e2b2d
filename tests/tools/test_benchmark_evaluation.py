"""Mirrors tools/benchmark_evaluation.py: all programs say the same of boxes and of masks."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_evaluation.py"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_all_programs_give_the_same_numbers(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--images", "8", "--objects", "40", "--detections", "160", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *options, *(["--masks"] if kind == "segm" else [])])
    runpy.run_path(str(TOOL), run_name="__main__")
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split(", ")[-1] == kind
    gaps = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert gaps.pop("resdet") == 0
    assert "pycocotools" in gaps
    assert max(gaps.values()) < 1e-9
