"""Mirrors detection/experiments/protocols.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig
from detection.config.sections import SolverConfig
from detection.evaluation.metrics import Metric
from detection.experiments.protocols import choose_rates, grow, over_budget, scale_solver, time_step
from detection.experiments.runs import Placement, Programs, Run, write_status

# Writes metrics of steps that take longer and longer, and what it was asked for beside itself.
TRAINER = """
import json, pathlib, sys, yaml
option = dict(zip(sys.argv[2::2], sys.argv[3::2]))
config = yaml.safe_load(open(sys.argv[1]))
if config["backbone"]["name"] == "broken":
    sys.exit("error: no such data")
run = pathlib.Path(option["--output-dir"])
run.mkdir()
pathlib.Path("asked.json").write_text(json.dumps([config["solver"], config["data"]["test"]]))
call = pathlib.Path("calls")
number = len(call.read_text()) if call.exists() else 0
call.write_text("x" * (number + 1))
seconds = [9] * 5 + [s + number / 10 for s in [1, 2, 3, 2, 50] * 3]
lines = [{"iteration": i, "seconds_per_step": s} for i, s in enumerate(seconds, 1)]
lines.append({"iteration": 20, "bbox.AP": 0.0})
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    return Programs((sys.executable, str(path)), ())


def test_milestones_and_warm_up_keep_their_places() -> None:
    solver = SolverConfig(iterations=1000, steps=(600, 800), warmup_iterations=50, base_lr=0.3)
    scaled = scale_solver(solver, 250)
    assert (scaled.iterations, scaled.steps, scaled.warmup_iterations, scaled.base_lr) == (250, (150, 200), 12, 0.3)
    assert scale_solver(scaled, 250) == scaled


def test_the_time_of_a_step_is_the_median_of_repeated_trainings_after_warm_up(
    programs: Programs, tmp_path: Path
) -> None:
    config = DetectionConfig(
        solver=DetectorSolverConfig(iterations=90000, log_every=20, checkpoint_every=10, evaluate_every=10)
    )
    time = time_step(config, programs, Placement())
    assert (time.seconds, time.spread) == (2.1, pytest.approx(0.2 / 2.1))  # medians of 2.0, 2.1 and 2.2
    solver, test = json.loads((tmp_path / "asked.json").read_text())
    assert (solver["iterations"], solver["log_every"]) == (20, 1)
    assert (solver["checkpoint_every"], solver["evaluate_every"], test) == (0, 0, [])
    assert solver["base_lr"] < 1e-6  # so that nothing diverges


def test_a_training_that_does_not_start_says_why(programs: Programs) -> None:
    config = DetectionConfig(backbone=DetectorBackboneConfig(name="broken"))
    with pytest.raises(ValueError, match="a training with backbone broken does not start: no such data"):
        time_step(config, programs, Placement())


def grid_run(folder: Path, variant: str, factor: str, ap: float | None) -> Run:
    """A finished run of a search; one that failed if ``ap`` is None."""
    run = Run(
        variant,
        factor,
        DetectionConfig(solver=DetectorSolverConfig(base_lr=float(factor) / 100)),
        folder / variant / factor,
    )
    write_status(run.folder, "done" if ap is not None else "failed", code="")
    if ap is not None:
        (run.folder / "result.json").write_text(json.dumps({"bbox": {"AP": None if ap < 0 else ap}}))
    return run


def test_the_best_rate_of_each_variant_is_chosen(tmp_path: Path) -> None:
    runs = [
        grid_run(tmp_path, variant, factor, ap)
        for variant, values in {"a": (0.2, 0.4, 0.4), "b": (None, -1.0, 0.0), "c": (None, None, None)}.items()
        for factor, ap in zip(("0.5", "1", "2"), values, strict=True)
    ]
    grid = choose_rates(runs, "bbox.AP")
    assert grid["metric"] == "bbox.AP"
    assert grid["variants"] == {
        "a": {"scores": {"0.5": 0.2, "1": 0.4, "2": 0.4}, "chosen": 1.0, "base_lr": 0.01, "edge": False},
        "b": {"scores": {"0.5": None, "1": None, "2": 0.0}, "chosen": 2.0, "base_lr": 0.02, "edge": True},
        "c": {"scores": {"0.5": None, "1": None, "2": None}, "chosen": None, "base_lr": None, "edge": False},
    }


def test_the_rate_of_the_lowest_error_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = Metric("bbox.AP", "error", lower_is_better=True)
    monkeypatch.setattr("detection.evaluation.metrics.METRICS", (error,))
    runs = [grid_run(tmp_path, "a", factor, value) for factor, value in (("0.5", 0.2), ("1", 0.1), ("2", 0.3))]
    assert choose_rates(runs, "bbox.AP")["variants"]["a"]["chosen"] == 1.0


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([1.0, 1.0], ()),
        ([1.0, 2.0], (4.0,)),
        ([0.5, None], (0.25,)),
        ([0.5, 2.0], (0.25, 4.0)),
        ([None, None], ()),
    ],
)
def test_a_grid_grows_for_all_beyond_the_edge_that_one_chose(
    chosen: list[float | None], expected: tuple[float, ...]
) -> None:
    assert grow((0.5, 2.0, 1.0), {str(number): {"chosen": best} for number, best in enumerate(chosen)}) == expected


def test_a_grid_of_one_rate_has_no_edge(tmp_path: Path) -> None:
    assert grow((1.0,), {"a": {"chosen": 1.0}}) == ()
    assert choose_rates([grid_run(tmp_path, "a", "1", 0.3)], "bbox.AP")["variants"]["a"]["edge"] is False


def test_runs_that_take_notably_longer_than_allowed_are_over_the_budget() -> None:
    assert over_budget(10, {"a/0": 10.9 / 60, "b/0": 11.2 / 60}) == {"b/0": pytest.approx(11.2)}
