"""The analysis of one run and of two."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detection.report.analysis import write_analysis

Make = Callable[..., Path]


def test_one_run(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "first", skill=0.7)
    page = write_analysis([run], tmp_path / "out")
    html, numbers = page.read_text(), json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert list(numbers["variants"]) == ["first"]
    found = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
    assert found == [
        "Results",
        "Types of errors",
        "Curves",
        "Per class",
        "Confusions",
        "Scores",
        "Worst and best images of first",
    ]
    counts = np.array(numbers["variants"]["first"]["confusion"])
    assert counts[:-1].sum() == 48  # every object once
    f1 = [entry["f1"] for entry in numbers["variants"]["first"]["ranking"]]
    assert f1 == sorted(f1, reverse=True)
    assert "worst 1" in html
    assert "best 1" in html


def test_two_runs_are_compared_under_names_that_tell_them_apart(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "0", skill=skill) for name, skill in (("plain", 0.4), ("res", 1.0))]
    html = write_analysis(runs, tmp_path / "out").read_text()
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [(pair["a"], pair["b"]) for pair in numbers["pairs"]] == [("plain/0", "res/0")]
    assert numbers["pairs"][0]["verdict"].startswith("res/0 is better than plain/0")
    assert "res/0 (first) finds" in html
    assert (tmp_path / "out" / "analysis.md").read_text().startswith("# Analysis: plain/0 and res/0")


def test_the_same_run_twice_or_three_runs_are_refused(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="one run directory or two different ones, got"):
        write_analysis([run, tmp_path / "." / "run"], tmp_path / "out")
    with pytest.raises(ValueError, match="one run directory or two different ones, got"):
        write_analysis([run] * 3, tmp_path / "out")
