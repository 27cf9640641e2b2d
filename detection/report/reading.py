"""Reads the folder of an experiment of resdet compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detection.config.load import parse_yaml

__all__ = ["ExperimentFolder", "RunFolder", "read_experiment", "read_metrics"]

State = Literal["done", "failed", "running", "not started"]

FOUND = ("detections.json", "segmentation.json")  # a run has at least one of them


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """One training of one variant."""

    variant: str
    seed: int
    folder: Path
    state: State
    error: str | None = None
    hours: float | None = None  # of training
    peak_memory_gib: float | None = None  # of training
    tested_on: tuple[str, ...] = ()  # card:split; empty without a result


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentFolder:
    """The plan of an experiment, the state of its runs, and the cost of each variant."""

    plan: dict[str, Any]  # experiment.json
    detections: dict[str, tuple[Path, ...]]  # untrained arm -> its files of detections
    variants: tuple[str, ...]
    runs: tuple[RunFolder, ...]  # every variant with every seed
    costs: dict[str, dict[str, Any]]  # variant -> costs/VARIANT.json, where it exists
    grid: Any  # grid.json; None without a search
    latency: tuple[dict[str, Any], ...]  # latency/PLACE.json
    leakage: Any  # leakage.json; None if copies were not searched for

    def done(self, variant: str) -> list[RunFolder]:
        """Returns its finished runs."""
        return [run for run in self.runs if run.variant == variant and run.state == "done"]

    @property
    def unfinished(self) -> list[RunFolder]:
        """Every run without a result."""
        return [run for run in self.runs if run.state != "done"]


def read_experiment(output: Path, needed: Sequence[str] = FOUND) -> ExperimentFolder:
    """Returns the experiment in the folder ``output``.

    A run counts as done with its result and one of the files ``needed``.  If results are from several test sets, only
    those on the planned set count.

    Raises:
        ValueError: no experiment there, or a file that can't be read.
    """
    plan = _read_json(output / "experiment.json")
    variants = tuple(plan["hashes"]["initial_weights"])
    runs = [_read_run(output, variant, seed, needed) for variant in variants for seed in plan["seeds"]]
    costs = {name: output / "costs" / f"{name}.json" for name in variants}
    grid, leakage = output / "grid.json", output / "leakage.json"
    return ExperimentFolder(
        plan=plan,
        detections={name: tuple(map(Path, files)) for name, files in plan.get("detections", {}).items()},
        variants=variants,
        runs=_on_one_set(runs, tuple(plan["base"]["data.test"])),
        costs={name: _read_json(path) for name, path in costs.items() if path.is_file()},
        grid=_read_json(grid) if grid.is_file() else None,
        latency=tuple(_read_json(path) for path in sorted((output / "latency").glob("*.json"))),
        leakage=_read_json(leakage) if leakage.is_file() else None,
    )


def read_metrics(run: Path, key: str, *, file: str = "metrics.jsonl") -> tuple[list[int], list[float]]:
    """Returns iterations and values of ``key`` in metrics.jsonl of the run; the last value of a repeated iteration.

    Skips a line that was truncated by a crash.
    """
    path, values = run / file, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry.get(key), (int, float)):
            values[int(entry["iteration"])] = float(entry[key])
    return sorted(values), [values[iteration] for iteration in sorted(values)]


def _read_run(output: Path, variant: str, seed: int, needed: Sequence[str]) -> RunFolder:
    folder = output / "runs" / variant / str(seed)
    if not (folder / "status.json").is_file():
        return RunFolder(variant=variant, seed=seed, folder=folder, state="not started")
    status = _read_json(folder / "status.json")
    state, error = status["state"], status.get("error")
    found = next((name for name in needed if (folder / name).is_file()), needed[0])
    missing = [name for name in ("config.yaml", "result.json", found) if not (folder / name).is_file()]
    if state == "done" and missing:
        state, error = "failed", f"marked as done, but {folder} holds no {' and no '.join(missing)}"
    return RunFolder(
        variant=variant,
        seed=seed,
        folder=folder,
        state=state,
        error=error,
        hours=status.get("hours"),
        peak_memory_gib=status.get("peak_memory_gib"),
        tested_on=_tested_on(folder) if state == "done" else (),
    )


def _on_one_set(runs: Sequence[RunFolder], planned: tuple[str, ...]) -> tuple[RunFolder, ...]:
    """Returns ``runs``; if results are from several test sets, marks those on sets other than ``planned`` as failed."""
    if len({run.tested_on for run in runs if run.state == "done"}) < 2:
        return tuple(runs)
    return tuple(
        replace(run, state="failed", error=f"tested on {', '.join(run.tested_on)}, not on {', '.join(planned)}")
        if run.state == "done" and run.tested_on != planned
        else run
        for run in runs
    )


def _tested_on(run: Path) -> tuple[str, ...]:
    """Returns the test sets of the result of ``run``; for results of earlier versions, those of its config."""
    result = _read_json(run / "result.json")
    if "tested_on" not in result:
        result = {"tested_on": parse_yaml((run / "config.yaml").read_text(encoding="utf-8"))["data"]["test"]}
    return tuple(result["tested_on"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read: {error}; a report is made of a folder that resdet compare wrote"
        ) from error
