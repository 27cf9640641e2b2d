"""Protocols of an experiment: timed iterations, scaled schedules, chosen learning rates."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detection.config.load import dump_config
from detection.config.sections import ProgramConfig, SolverConfig
from detection.evaluation.metrics import is_better, read_metric
from detection.experiments.runs import Placement, Programs, Run, child_environment, is_done, last_error

__all__ = ["StepTime", "choose_rates", "grow", "over_budget", "scale_solver", "time_step"]

WARM_UP, TIMED_STEPS = 5, 15  # iterations of a timed training: caches fill, workers of the loader start
REPEATS = 3  # processes, as the load by other programs varies
BUDGET_SLACK = 0.1  # share of the minutes by which a run may take longer


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds per training iteration."""

    seconds: float  # the median of the medians of several trainings
    spread: float  # the largest minus the smallest of these medians, as a share of ``seconds``


def scale_solver(solver: SolverConfig, iterations: int) -> SolverConfig:
    """Returns ``solver`` with ``iterations``, and with milestones and warm-up at the same fractions."""
    factor = iterations / solver.iterations
    return replace(
        solver,
        iterations=iterations,
        steps=tuple(round(step * factor) for step in solver.steps),
        warmup_iterations=round(solver.warmup_iterations * factor),
    )


def choose_rates(runs: Sequence[Run], key: str) -> dict[str, Any]:
    """Returns the content of grid.json: each variant's best learning rate by the figure ``key`` of result.json.

    A failed run has no figure, and a variant without figures has no rate.  "edge": the best rate is the smallest or
    largest of several, so that a better one may lie beyond.
    """
    variants: dict[str, dict[str, Any]] = {}
    best: dict[str, float | None] = {}  # by variant
    for run in runs:
        result = json.loads((run.folder / "result.json").read_text(encoding="utf-8")) if is_done(run.folder) else None
        value = None if result is None else read_metric(result, key)
        entry = variants.setdefault(run.variant, {"scores": {}, "chosen": None, "base_lr": None, "edge": False})
        entry["scores"][run.name] = value
        if is_better(key, value, best.get(run.variant)):
            best[run.variant] = value
            entry |= {"chosen": float(run.name), "base_lr": run.config.solver.base_lr}
    for entry in variants.values():
        tried = [float(factor) for factor in entry["scores"]]
        entry["edge"] = len(tried) > 1 and entry["chosen"] in (min(tried), max(tried))
    return {"metric": key, "variants": variants}


def grow(factors: Sequence[float], variants: Mapping[str, Mapping[str, Any]]) -> tuple[float, ...]:
    """Returns new factors beyond the edges of the grid at which the best rate of any of ``variants`` lies.

    All variants try them, so that the number of tries stays equal.  ``variants`` are those of ``choose_rates``.
    """
    chosen, ordered = {entry["chosen"] for entry in variants.values()}, sorted(factors)
    if len(ordered) < 2:
        return ()
    lower = (ordered[0] ** 2 / ordered[1],) if ordered[0] in chosen else ()
    upper = (ordered[-1] ** 2 / ordered[-2],) if ordered[-1] in chosen else ()
    return (*lower, *upper)


def over_budget(minutes: float, hours: Mapping[str, float]) -> dict[str, float]:
    """Returns the minutes of the runs in ``hours`` that took notably longer than ``minutes``, by name."""
    return {name: 60 * taken for name, taken in hours.items() if 60 * taken > (1 + BUDGET_SLACK) * minutes}


def time_step(config: ProgramConfig, programs: Programs, placement: Placement) -> StepTime:
    """Measures the time of a training iteration of ``config``, after warm-up, in several separate processes.

    Raises:
        ValueError: the training does not start; the message has its last output.
    """
    medians = [_median_step(config, programs, placement) for _ in range(REPEATS)]
    seconds = statistics.median(medians)
    return StepTime(seconds, (max(medians) - min(medians)) / seconds)


def _median_step(config: ProgramConfig, programs: Programs, placement: Placement) -> float:
    """Returns the median seconds per iteration of a short training."""
    steps = WARM_UP + TIMED_STEPS
    solver = replace(config.solver, iterations=steps, log_every=1, checkpoint_every=0, evaluate_every=0, base_lr=1e-9)
    short = replace(config, solver=solver, data=replace(config.data, test=()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(short), encoding="utf-8")
        command = [*programs.train, str(path), "--output-dir", f"{folder}/run"]
        environment = child_environment(placement)
        done = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8", env=environment)
        if done.returncode:
            raise ValueError(
                f"a training with backbone {config.backbone.name} does not start: "
                f"{last_error(done.stdout + done.stderr, done.returncode)}"
            )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line).get("seconds_per_step") for line in lines]
    return statistics.median(time for time in times[WARM_UP:] if time is not None)
