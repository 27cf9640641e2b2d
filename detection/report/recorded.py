"""Reads all that a run directory records about its detector, and names missing records.

Reads the checkpoint, manifest.json, result.json and detections.json (of RUN/test, else of RUN), export/*/export.json,
the cards of the data, and the costs of an experiment that the run belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from detection.config.detection import DetectionConfig
from detection.data.cards import load_card
from detection.engine.checkpoint import Checkpoint, read_checkpoint
from detection.engine.label_counts import label_classes
from detection.engine.manifest import read_manifest
from detection.evaluation.inference import Interval
from detection.evaluation.metrics import figures, named
from detection.report.numbers import voc_metric
from detection.report.proof import compare_runs, deciding_figure
from detection.tasks.robustness import corrupted_files
from detection.tasks.test import read_records

__all__ = ["DataSet", "Recorded", "Tested", "read_run"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # endings of names that are not parameters
SAME = 1e-6  # recomputed figures differ by less


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as its card describes it.

    Attributes:
        name: card:split, without the folder of the card.
        source: its origin and licence; None: the card can't be read or states none.
    """

    name: str
    source: str | None

    @property
    def card(self) -> str:
        """The name without the split."""
        return self.name.rpartition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """Facts that a test records about the weights.

    Attributes:
        folder: folder of the result.
        sets: the data sets of the test.
        result: the content of result.json.
        intervals: key of result.json -> 95 % interval over the choice of test images; empty: see ``no_intervals``.
        objects: test objects of each class; None: see ``no_intervals``.
        no_intervals: reason for missing intervals; None: they exist.
        corrupted: whether corrupted images were tested too.
    """

    folder: Path
    sets: Sequence[DataSet]
    result: Mapping[str, Any]
    intervals: Mapping[str, Interval]
    objects: Mapping[str, int] | None
    no_intervals: str | None
    corrupted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The records of a run.

    Attributes:
        checkpoint: the weights that the run stands for.
        parameters: number of parameters of the detector.
        data: train and val -> their data sets; those of the test are in ``tested``.
        starts: the entries of manifest.json.
        tested: the test of these weights; None: there is none.
        exports: folder below export/ -> its export.json.
        costs: costs of resdet compare; None: not measured.
        missing: missing records, each with the reason.
    """

    checkpoint: Checkpoint[DetectionConfig]
    parameters: int
    data: Mapping[str, Sequence[DataSet]]
    starts: Sequence[Mapping[str, Any]]
    tested: Tested | None
    exports: Mapping[str, Mapping[str, Any]]
    costs: Mapping[str, Any] | None
    missing: Sequence[str]

    @property
    def sets(self) -> list[DataSet]:
        """All data sets."""
        return [*self.data["train"], *self.data["val"], *(() if self.tested is None else self.tested.sets)]

    @property
    def hours(self) -> float | None:
        """Hours of all starts, including tests in between; None if a start has no recorded end."""
        spans = [(start["started"], start["ended"]) for start in self.starts if start.get("ended") is not None]
        if not spans or len(spans) < len(self.starts):
            return None
        return (
            sum((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() for begin, end in spans)
            / 3600
        )


def read_run(run: Path) -> Recorded:
    """Reads the records of the run directory ``run`` of a detector.

    Raises:
        ValueError: no weights, weights of another program, or a damaged file.
    """
    checkpoint, missing = read_checkpoint(run), list[str]()
    starts = read_manifest(run)
    if not starts:
        missing.append("manifest.json: number of training images, hardware, versions and training time")
    tested = _read_test(run, checkpoint, missing)
    if tested is not None and tested.no_intervals is not None:
        missing.append(f"intervals of the figures: {tested.no_intervals}")
    config = checkpoint.config.data
    costs = run.resolve().parent.parent.parent / "costs" / f"{run.resolve().parent.name}.json"
    return Recorded(
        checkpoint=checkpoint,
        parameters=sum(t.numel() for name, t in checkpoint.weights.items() if not name.endswith(STATISTICS)),
        data={key: [_data_set(spec) for spec in getattr(config, key)] for key in ("train", "val")},
        starts=starts,
        tested=tested,
        exports={path.parent.name: _read_json(path) for path in sorted(run.glob("export/*/export.json"))},
        costs=_read_json(costs) if costs.is_file() else None,
        missing=missing,
    )


def _read_test(run: Path, checkpoint: Checkpoint[DetectionConfig], missing: list[str]) -> Tested | None:
    """Returns the test of the weights of ``checkpoint``; adds the reason to ``missing`` if there is none."""
    others = list[str]()
    for folder in (run / "test", run):
        if not (folder / "result.json").is_file():
            continue
        result = _read_json(folder / "result.json")
        iteration = result.get("weights", {}).get("iteration")
        if iteration == checkpoint.iteration:
            return _with_intervals(folder, result, checkpoint)
        others.append(f"{folder.name}/result.json is of iteration {iteration}")
    why = f"; {', '.join(others)}" if others else ""
    missing.append(f"result.json of iteration {checkpoint.iteration}, which resdet test writes: all figures{why}")
    return None


def _with_intervals(folder: Path, result: Mapping[str, Any], checkpoint: Checkpoint[DetectionConfig]) -> Tested:
    names = checkpoint.class_names
    intervals, objects, why = dict[str, Interval](), None, None
    try:
        index, records = read_records(folder, say=lambda _: None)
        if not index.has_ground_truth or index.class_names != names:
            raise ValueError("the test set has no labels of the detector's classes")
        objects = dict(zip(names, np.bincount(index.labels[~index.ignore], minlength=len(names)).tolist(), strict=True))
        labels, boundary = label_classes(index), "boundary" in result
        compared = compare_runs(
            {"run": [records]}, {"run": names}, voc_metric=voc_metric(folder), labels=labels, boundary=boundary
        )
        intervals, metric = compared.variants["run"].detectors, named(deciding_figure(compared)["key"])
        before, now = figures(dict(result))[metric.key], intervals[metric.key].value
        if before is not None and not abs(before - now) < SAME:
            raise ValueError(
                f"{'box ' * metric.key.startswith('bbox.')}{metric.name} of the files is {100 * now:.2f} and was "
                f"{100 * before:.2f}: other labels now"
            )
    except (ValueError, OSError) as error:
        intervals, objects, why = {}, None, str(error)
    corrupted = corrupted_files(folder) is not None
    return Tested(
        folder=folder,
        sets=[_data_set(spec) for spec in result.get("tested_on", checkpoint.config.data.test)],
        result=result,
        intervals=intervals,
        objects=objects,
        no_intervals=why,
        corrupted=corrupted,
    )


def _data_set(spec: str) -> DataSet:
    card, _, split = spec.rpartition(":")
    try:
        found = load_card(card)
    except ValueError:
        return DataSet(f"{Path(card).stem}:{split}", None)
    return DataSet(f"{found.name}:{split}", " ".join(found.source.split()) or None)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}; remove it, or write it again") from error
