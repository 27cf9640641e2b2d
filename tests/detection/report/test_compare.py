"""Mirrors detection/report/compare.py: a whole experiment on a handful of tiny images, with real trainings."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection.data.digits import write_digits
from detection.experiments.comparison import Comparison
from detection.experiments.runs import Placement
from detection.report import compare

Run = Callable[..., tuple[int, str]]
BASE = """
backbone: {norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, pre_nms_test: 64, post_nms_train: 16, post_nms_test: 16}
box: {samples_per_image: 16}
test: {score_threshold: 0.01}
data: {train: [digits:train], test: [digits:test], shorter_side: 64, longer_side: 96, workers: 0}
solver: {iterations: 2, images_per_step: 2, log_every: 1}
device: cpu
"""
# The second diverges: a rate of 1e30 is more than float32 weights can take.
SWAP = """
base: base.yaml
allowed: [backbone.name, solver.base_lr]
variants:
  plain: {backbone: {name: plain18}}
  diverging: [backbone.name=resnet18, solver.base_lr=1.0e+30]
seeds: [3]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_digits(folder / "data", num_train=4, num_test=3)
    (folder / "base.yaml").write_text(BASE)
    (folder / "swap.yaml").write_text(SWAP)
    return folder


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The command takes SIGTERM, here in the process of the tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(resdet) -> Run:
    """The exit status, and what was printed."""

    def call(folder: Path, *arguments: str) -> tuple[int, str]:
        given = (folder / "swap.yaml", "--output-dir", folder / "out", f"data.root={folder / 'data'}")
        outcome = resdet("compare", *given, *arguments)
        return outcome.status, outcome.out + outcome.err

    return call


@pytest.mark.slow
def test_an_experiment_with_a_diverging_variant_is_finished_and_reported(folder, run) -> None:
    status, said = run(folder, "--jobs", "2")
    out = folder / "out"
    assert status == 1
    assert said.endswith("error: not every run is done; the lines above and status.json of each run say why\n")
    assert re.search("diverging/3: failed: .*not finite", said)
    assert "plain/3: done" in said
    assert f"report: {out / 'report' / 'report.html'}" in said
    assert (out / "runs/plain/3/result.json").is_file()
    plain, diverging = (json.loads((out / f"costs/{name}.json").read_text()) for name in ("plain", "diverging"))
    assert (plain["weights"], diverging["weights"]) == (str(out / "runs/plain/3"), None)
    assert plain["gflops"] == pytest.approx(diverging["gflops"], rel=0.05)
    assert "diverging" in (out / "report" / "report.md").read_text()


@pytest.fixture
def called(monkeypatch) -> list[Any]:
    """What of the comparison and the report the command calls, in their place."""
    calls: list[Any] = []

    def note(name: str) -> Any:
        def stand_in(comparison: Comparison, *args: Any, **options: Any) -> Any:
            calls.append((name, args, options, comparison))
            return True

        return stand_in

    def write_report(output: Path) -> Path:
        calls.append(("report", output))
        return output / "report.html"

    for name in ("run", "run_one"):
        monkeypatch.setattr(Comparison, name, note(name))
    monkeypatch.setattr(Comparison, "plan", lambda _: "the plan")
    monkeypatch.setattr(compare, "write_report", write_report)
    return calls


def test_a_run_by_index_leaves_the_report_to_the_end(folder, called, run) -> None:
    assert run(folder, "--index", "1", "--retry-failed", "--gpus", "2")[0] == 0
    ((name, args, options, comparison),) = called
    assert (name, args, options) == ("run_one", (1,), {"retry_failed": True})
    assert comparison.placement == Placement(1, ("2",))


def test_jobs_default_to_the_gpus(folder, called, run) -> None:
    status, said = run(folder, "--gpus", "0,5")
    assert (status, said) == (0, f"report: {folder / 'out' / 'report.html'}\n")
    assert [call[0] for call in called] == ["run", "report"]
    comparison = called[0][3]
    assert comparison.placement == Placement(2, ("0", "5"))
    assert comparison.programs.train == (sys.executable, "-m", "resdet", "train")
    assert comparison.programs.costs[-1] == f"data.root={folder / 'data'}"


def test_only_the_report_or_only_the_plan(folder, called, run) -> None:
    assert run(folder, "--report-only")[0] == 0
    assert [call[0] for call in called] == ["report"]
    assert run(folder, "--dry-run") == (0, "the plan\n")
    assert [call[0] for call in called] == ["report"]


def test_mistakes_end_with_a_line(folder, run) -> None:
    assert run(folder, "--jobs", "0") == (1, "error: --jobs takes a number from 1, got 0\n")
    _, said = run(folder, "solver.bas_lr=1")
    assert said == "error: variant 'plain': no config key 'solver.bas_lr'; did you mean 'solver.base_lr'?\n"
    assert (
        run(folder, "--costs", "other")[1] == "error: --costs other: the experiment has the variants plain, diverging\n"
    )
