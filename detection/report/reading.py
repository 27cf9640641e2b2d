"""The folder of a backbone experiment, as resdet compare leaves it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["ExperimentFolder", "RunFolder", "read_experiment", "read_metrics"]

State = Literal["done", "failed", "running", "not started"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentFolder:
    """What was planned, what became of it, and what each variant costs."""

    plan: dict[str, Any]  # experiment.json
    detections: dict[str, tuple[Path, ...]]  # arm that is not trained -> its files of detections
    variants: tuple[str, ...]
    runs: tuple[RunFolder, ...]  # every variant with every seed
    costs: dict[str, dict[str, Any]]  # variant -> costs/VARIANT.json, where it exists
    grid: Any  # grid.json; None without a search
    latency: tuple[dict[str, Any], ...]  # latency/PLACE.json

    def done(self, variant: str) -> list[RunFolder]:
        """Its finished runs."""
        return [run for run in self.runs if run.variant == variant and run.state == "done"]

    @property
    def unfinished(self) -> list[RunFolder]:
        """Every run without a result."""
        return [run for run in self.runs if run.state != "done"]


def read_experiment(output: Path) -> ExperimentFolder:
    """The experiment in the folder ``output``.

    A run counts as done only with its result and its detections.

    Raises:
        ValueError: no experiment there, or a file that can't be read.
    """
    plan = _read_json(output / "experiment.json")
    variants = tuple(plan["hashes"]["initial_weights"])
    costs = {name: output / "costs" / f"{name}.json" for name in variants}
    grid = output / "grid.json"
    return ExperimentFolder(
        plan=plan,
        detections={name: tuple(map(Path, files)) for name, files in plan.get("detections", {}).items()},
        variants=variants,
        runs=tuple(_read_run(output, variant, seed) for variant in variants for seed in plan["seeds"]),
        costs={name: _read_json(path) for name, path in costs.items() if path.is_file()},
        grid=_read_json(grid) if grid.is_file() else None,
        latency=tuple(_read_json(path) for path in sorted((output / "latency").glob("*.json"))),
    )


def read_metrics(run: Path, key: str) -> tuple[list[int], list[float]]:
    """Iterations and values of ``key`` in the run's metrics.jsonl; of an iteration that was repeated, the last.

    A line that a crash cut short is left out.
    """
    path, values = run / "metrics.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry.get(key), (int, float)):
            values[int(entry["iteration"])] = float(entry[key])
    return sorted(values), [values[iteration] for iteration in sorted(values)]


def _read_run(output: Path, variant: str, seed: int) -> RunFolder:
    folder = output / "runs" / variant / str(seed)
    if not (folder / "status.json").is_file():
        return RunFolder(variant=variant, seed=seed, folder=folder, state="not started")
    status = _read_json(folder / "status.json")
    state, error = status["state"], status.get("error")
    missing = [name for name in ("config.yaml", "result.json", "detections.json") if not (folder / name).is_file()]
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
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read: {error}; a report is made of a folder that resdet compare wrote"
        ) from error
