"""Reads records of runs and measurements for the templates of docs/evidence.

docs/runs/NAME/          a single run: config.yaml, result.json, metrics.jsonl and, for newer runs, manifest.json
docs/experiments/NAME/   an experiment of resdet compare, without weights
docs/measured/NAME.json  a measurement of a tool: command, hardware, values
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from detection.config.load import parse_yaml
from detection.evaluation.metrics import figures
from detection.report.reading import read_metrics

__all__ = ["Records", "RunRecord", "Spent"]


@dataclass(frozen=True)
class RunRecord:
    """The files of a run."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as nested dicts."""
        return _read_yaml(self.folder / "config.yaml")

    @property
    def steps(self) -> int:
        """Number of iterations of the schedule."""
        return self.config["solver"]["iterations"]

    def figure(self, key: str, *, file: str = "result.json") -> float:
        """Returns the figure ``key`` of the result in ``file``, such as bbox.AP: a fraction 0..1, or a count.

        Raises:
            ValueError: the result has no such figure.
        """
        known = figures(_read_json(self.folder / file))
        value = known.get(key)
        if value is None:
            listed = ", ".join(name for name in known if ".per_class." not in name)
            raise ValueError(f"{self.folder / file} has no figure {key!r}; it has {listed}")
        return value

    def minutes(self, *, file: str = "metrics.jsonl") -> float:
        """Returns the minutes of training from ``seconds_per_step``, without tests."""
        steps, seconds = read_metrics(self.folder, "seconds_per_step", file=file)
        return sum(b * (now - before) for before, now, b in zip([0, *steps[:-1]], steps, seconds, strict=True)) / 60

    def logged(self, key: str, *, last: int = 1) -> float:
        """Returns the mean of the ``last`` values of ``key`` in metrics.jsonl.

        Raises:
            ValueError: there are fewer values.
        """
        values = read_metrics(self.folder, key)[1]
        if len(values) < last:
            raise ValueError(f"{self.folder / 'metrics.jsonl'} has {len(values)} values of {key!r}, expected {last}")
        return statistics.fmean(values[-last:])

    def value_at(self, key: str, iteration: int) -> float:
        """Returns the value of ``key`` in metrics.jsonl at ``iteration``.

        Raises:
            ValueError: no value there.
        """
        known = dict(zip(*read_metrics(self.folder, key), strict=True))
        if iteration not in known:
            raise ValueError(f"{self.folder / 'metrics.jsonl'} has no {key!r} at iteration {iteration}")
        return known[iteration]


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of experiments: their number, that of their finished runs, and core hours of training."""

    experiments: int
    runs: int
    hours: float


@dataclass
class Records:
    """Finds records in the checkout ``root`` and notes which files were read.

    Attributes:
        root: folder of README.md and docs/.
        read: folders and files of records that a template has used, relative to ``root``.
    """

    root: Path
    read: set[str] = field(default_factory=set)

    def run(self, name: str) -> RunRecord:
        """Returns the run docs/runs/NAME.

        Raises:
            ValueError: no such record.
        """
        return RunRecord(self._find(f"docs/runs/{name}"))

    def trained(self, experiment: str, variant: str) -> list[RunRecord]:
        """Returns the runs of a variant in docs/experiments/EXPERIMENT, one per seed.

        Raises:
            ValueError: no such record.
        """
        folder = self._find(f"docs/experiments/{experiment}/runs/{variant}")
        return [RunRecord(path.parent) for path in sorted(folder.glob("*/config.yaml"))]

    def report(self, name: str) -> dict[str, Any]:
        """Returns the numbers of the report of docs/experiments/NAME: report.json, or comparison.json of classifiers.

        Raises:
            ValueError: no such record.
        """
        folder = self._find(f"docs/experiments/{name}")
        places = [folder / "report" / name for name in ("report.json", "comparison.json")] + [folder / "report.json"]
        return _read_json(next((path for path in places if path.is_file()), places[0]))

    def measured(self, name: str) -> dict[str, Any]:
        """Returns the values in docs/measured/NAME.json.

        Raises:
            ValueError: no such record.
        """
        return _read_json(self._find(f"docs/measured/{name}.json"))

    def spent(self, *names: str) -> Spent:
        """Returns the cost of the finished runs of the experiments ``names``, or of all experiments without names."""
        folders = [self._find(f"docs/experiments/{name}") for name in names]
        folders = folders or sorted(path.parent for path in self.root.glob("docs/experiments/*/runs"))
        paths = [
            path for folder in folders for kind in ("runs", "grid") for path in folder.glob(f"{kind}/*/*/status.json")
        ]
        done = [status for path in sorted(paths) if (status := _read_json(path))["state"] == "done"]
        return Spent(len(folders), len(done), sum(status["hours"] or 0.0 for status in done))

    def without_manifest(self) -> int:
        """Returns the number of runs in docs/runs without manifest.json (data digest, code version, hardware)."""
        runs = {path.parent for path in self.root.glob("docs/runs/*/result.json")}
        return sum(not (run / "manifest.json").is_file() for run in runs)

    def _find(self, place: str) -> Path:
        path = self.root / place
        if not path.exists():
            known = sorted(found.stem if found.is_file() else found.name for found in path.parent.glob("*"))
            raise ValueError(
                f"no record {place}; {path.parent.relative_to(self.root)} has {', '.join(known) or 'none'}"
            )
        self.read.add(place)
        return path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"record {path} can't be read: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"record {path} can't be read: {error}") from error
