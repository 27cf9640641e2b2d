"""What the protocols of an experiment need: steps that are timed, schedules that are scaled, rates that are chosen."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detection.config.detection import DetectionConfig
from detection.config.load import dump_config
from detection.config.sections import SolverConfig
from detection.evaluation.metrics import is_better, read_metric
from detection.experiments.runs import Placement, Programs, Run, child_environment, is_done, last_error

__all__ = ["choose_rates", "scale_solver", "time_step"]

TIMED_STEPS = 6  # of which the first two warm up


def scale_solver(solver: SolverConfig, iterations: int) -> SolverConfig:
    """``solver`` with its milestones and warm-up at the same fractions of ``iterations`` steps."""
    factor = iterations / solver.iterations
    return replace(
        solver,
        iterations=iterations,
        steps=tuple(round(step * factor) for step in solver.steps),
        warmup_iterations=round(solver.warmup_iterations * factor),
    )


def choose_rates(runs: Sequence[Run], key: str) -> dict[str, Any]:
    """The content of grid.json: each variant's best learning rate by the figure ``key`` of result.json.

    A run that failed has no figure; without any the variant has no rate.
    """
    variants: dict[str, dict[str, Any]] = {}
    best: dict[str, float | None] = {}  # by variant
    for run in runs:
        result = json.loads((run.folder / "result.json").read_text(encoding="utf-8")) if is_done(run.folder) else None
        value = None if result is None else read_metric(result, key)
        entry = variants.setdefault(run.variant, {"scores": {}, "chosen": None, "base_lr": None})
        entry["scores"][run.name] = value
        if is_better(key, value, best.get(run.variant)):
            best[run.variant] = value
            entry |= {"chosen": float(run.name), "base_lr": run.config.solver.base_lr}
    return {"metric": key, "variants": variants}


def time_step(config: DetectionConfig, programs: Programs, placement: Placement) -> float:
    """Seconds of a training step of ``config``: the median of a few, in a process of its own.

    Raises:
        ValueError: the training does not start; with its last words.
    """
    solver = replace(
        config.solver, iterations=TIMED_STEPS, log_every=1, checkpoint_every=0, evaluate_every=0, base_lr=1e-9
    )
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
    return statistics.median(time for time in times[2:] if time is not None)
