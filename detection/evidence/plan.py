"""The list of experiments that documents cite, with finished runs and the hours of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detection.config.load import build_dataclass, parse_yaml
from detection.config.schema import checked
from detection.evaluation.text_table import text_table
from detection.experiments.experiment import load_experiment
from detection.experiments.runs import read_status
from detection.packaged import find_config

__all__ = ["EXPERIMENTS", "Evidence", "Planned", "format_plan", "load_evidence", "plan_evidence"]

EXPERIMENTS = Path("docs") / "experiments"


@checked
class Cited:
    """An experiment of the list.

    Attributes:
        file: file of configs/, such as experiments/bccd.
        minutes: expected minutes of training per run on one core, from timed iterations; finished runs replace them.
    """

    file: str
    minutes: float


@checked
class Evidence:
    """The keys of configs/evidence.yaml.

    Attributes:
        budget_hours: core hours for the training of all runs.
        run_minutes: core minutes that a run may take.
        experiments: the experiments, in the order in which they run.
    """

    budget_hours: float
    run_minutes: float
    experiments: tuple[Cited, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """The finished runs of an experiment, and the hours of the others.

    Attributes:
        name: name of the experiment, and of its folder in docs/experiments.
        path: its file.
        hours: hours of the finished runs by VARIANT/SEED, including searches of learning rates.
        left: runs that are not done.
        expected: expected hours of these runs.
    """

    name: str
    path: Path
    hours: dict[str, float]
    left: tuple[str, ...]
    expected: float


def load_evidence(name: str) -> Evidence:
    """Returns the list in the config file ``name``.

    Raises:
        ValueError: no such file, or an unknown key or value.
    """
    path = find_config(name)
    try:
        return build_dataclass(Evidence, dict(parse_yaml(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def plan_evidence(evidence: Evidence, root: Path) -> list[Planned]:
    """Returns the plan of each experiment of ``evidence`` by the records in the checkout ``root``.

    Raises:
        ValueError: an experiment file that can't be used.
    """
    planned = list[Planned]()
    for cited in evidence.experiments:
        path = find_config(cited.file)
        experiment = load_experiment(path)
        folder = root / EXPERIMENTS / experiment.name
        # A grid that grows at its edges has more runs than these.
        runs = [f"grid/{arm}/{factor:g}" for arm in experiment.arms for factor in experiment.protocol.factors]
        runs += [f"runs/{arm}/{seed}" for arm in experiment.arms for seed in experiment.seeds]
        found = {run: read_status(folder / run) for run in runs}
        done = {run: status.get("hours") or 0.0 for run, status in found.items() if status.get("state") == "done"}
        left = tuple(run for run in runs if run not in done)
        expected = sum(_expected(run, done, cited.minutes / 60) for run in left)
        planned.append(Planned(experiment.name, path, done, left, expected))
    return planned


def format_plan(evidence: Evidence, planned: Sequence[Planned]) -> str:
    """Returns the plan as a table, with the total, the budget and the runs that took too long."""
    header = ("experiment", "runs", "done", "hours spent", "to do", "hours expected")
    rows = [_row(plan) for plan in planned]
    spent, expected = sum(sum(p.hours.values()) for p in planned), sum(p.expected for p in planned)
    slow = [
        f"warning: {p.name} {run} took {60 * hours:.1f} minutes of training, {evidence.run_minutes:g} were allowed"
        for p in planned
        for run, hours in p.hours.items()
        if 60 * hours > evidence.run_minutes
    ]
    total = (
        f"{spent:.1f} hours spent and {expected:.1f} expected of a budget of {evidence.budget_hours:g}, of training on "
        "one core; tests not counted"
    )
    return "\n".join([text_table(header, rows), total, *slow])


def _row(plan: Planned) -> tuple[str, ...]:
    done, left = len(plan.hours), len(plan.left)
    return plan.name, f"{done + left}", f"{done}", f"{sum(plan.hours.values()):.2f}", f"{left}", f"{plan.expected:.2f}"


def _expected(run: str, done: dict[str, float], stated: float) -> float:
    """Returns the hours of ``run``: the mean of the done runs of its arm, else ``stated``."""
    known = [hours for other, hours in done.items() if other.rpartition("/")[0] == run.rpartition("/")[0]]
    return sum(known) / len(known) if known else stated
