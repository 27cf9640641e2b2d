"""The plan of a table: missing data and weights, with the command that gets them, iterations and hours."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from backbones.weights.packages import find_packaged, packaged_file
from detection.config.sections import BackboneConfig
from detection.data.cards import Card, data_root, load_card
from detection.engine.device import choose_device
from detection.engine.latency import describe_device
from detection.experiments.runs import write_json
from detection.hub import parse_address
from detection.reproduction.jobs import Job, Training
from detection.reproduction.tables import PaperTable

__all__ = ["Missing", "format_plan", "measure_steps", "missing"]

WARM_UP, TIMED_STEPS = 5, 15  # iterations of a timed training: caches fill, workers of the loader start
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that a job needs and that is missing.

    Attributes:
        what: its name in configs and tables.
        where: the place where it was searched for.
        repair: a command, or where to get it.
        of_a_job: whether it is the run of an earlier job.
    """

    what: str
    where: str
    repair: str
    of_a_job: bool = False

    def __str__(self) -> str:
        return f"{self.what}, which is not {self.where}: {self.repair}"


@dataclass(frozen=True, slots=True)
class _Hours:
    """Remaining hours of training; None if the time of an iteration is unknown."""

    left: float | None
    source: str


def missing(job: Job) -> list[Missing]:
    """Returns what ``job`` needs and is missing."""
    data = job.config.data
    trained_on = data.train if job.trainings else ()
    specs = dict.fromkeys((*trained_on, *data.val, *data.test))
    found = [lack for spec in specs if (lack := _missing_split(spec, data.root)) is not None]
    if job.trainings and not job.program.init:
        found += _missing_weights(job.config.backbone)
    waited = (name for name, other in job.before.items() if not other.is_done)
    return found + [Missing(name, "done", "it comes before in this table", of_a_job=True) for name in waited]


def measure_steps(jobs: Sequence[Job], output: Path) -> None:
    """Times a training iteration of each of ``jobs`` whose data exist, and writes OUTPUT/times.json.

    Raises:
        ValueError: a training does not start.
    """
    path = output / "times.json"
    times = _read_times(path)
    for job in jobs:
        if not job.trainings or not all(lack.of_a_job for lack in missing(job)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            short = job.shortened(Path(folder), WARM_UP + TIMED_STEPS)
            short.run()
            seconds = {training.name: _steady(training) for training in short.trainings}
        device = describe_device(choose_device(job.config.device))
        write_json(path, times := times | {job.program.name: {"device": device, "seconds_per_step": seconds}})


def format_plan(table: PaperTable, jobs: Sequence[Job], output: Path) -> str:
    """Returns the plan of ``table``: for each job its command, data, weights, iterations, hours and missing parts."""
    times = _read_times(output / "times.json")
    hours = [_hours(job, times) for job in jobs]
    device = describe_device(choose_device(jobs[0].config.device))
    lines = [f"table {table.table}: {table.title}", f"on {device}, in {output}", ""]
    lacking: dict[str, None] = {}
    for job, left in zip(jobs, hours, strict=True):
        lacks = [] if job.is_done else missing(job)
        lines += [*_job_lines(job, left, lacks), ""]
        lacking |= dict.fromkeys(f"  {lack.repair}" for lack in lacks if not lack.of_a_job)
    trained = [entry for job, entry in zip(jobs, hours, strict=True) if job.trainings]
    known = [entry.left for entry in trained if entry.left is not None]
    unknown = len(trained) - len(known)
    total = f"{sum(known):.1f} hours of training left on one such device" if known else f"hours: {NOT_MEASURED}"
    lines.append(total + (f", {unknown} of {len(trained)} runs {NOT_MEASURED}" if known and unknown else ""))
    if unknown:
        lines.append(
            "--time measures a step of each run whose data are there; tests and stored proposals are not counted"
        )
    lines += ["", "to get what is missing:", *lacking] if lacking else []
    return "\n".join(lines)


def _job_lines(job: Job, hours: _Hours, lacks: Sequence[Missing]) -> list[str]:
    data, weights = job.config.data, job.config.backbone.weights
    start = f"the run {job.program.init}" if job.program.init else weights or "random"
    steps = " + ".join(str(training.config.solver.iterations) for training in job.trainings)
    done = sum(min(training.done, training.config.solver.iterations) for training in job.trainings)
    lines = [f"{job.program.name}: {job.program.row or job.program.run}", f"  run      resdet {_command(job)}"]
    if job.trainings:
        lines += [
            f"  train    {', '.join(data.train)}",
            f"  weights  {start}{'' if job.program.init else _note(job.config.backbone)}",
            f"  steps    {steps}, {done} done",
            f"  hours    {hours.source if hours.left is None else f'{hours.left:.1f} left, {hours.source}'}",
        ]
    lines.append(f"  test     {', '.join(data.test) or job.program.server or 'none'}")
    lacking = ", ".join(lack.what for lack in lacks)
    return [*lines, f"  missing  {lacking}" if lacking else f"  state    {'done' if job.is_done else 'to do'}"]


def _command(job: Job) -> str:
    words = [job.program.run, Path(job.program.config).as_posix().removeprefix("../"), *job.program.changes]
    return " ".join(words)


def _hours(job: Job, times: Mapping[str, Any]) -> _Hours:
    """Returns the remaining hours of ``job``, from its own iterations or from ``times``."""
    if not job.trainings or job.is_done:
        return _Hours(0.0, "nothing to train" if not job.trainings else "done")
    measured = times.get(job.program.name, {})
    beforehand = measured.get("seconds_per_step", {})
    left = 0.0
    for training in job.trainings:
        steps = max(0, training.config.solver.iterations - training.done)
        seconds = training.seconds_per_step or beforehand.get(training.name)
        if steps and seconds is None:
            return _Hours(None, NOT_MEASURED)
        left += steps * (seconds or 0.0) / 3600
    began = any(training.done for training in job.trainings)
    return _Hours(left, "by the steps so far" if began else f"by a measured step on {measured['device']}")


def _steady(training: Training) -> float:
    lines = (training.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line).get("seconds_per_step") for line in lines]
    return statistics.median(time for time in times[WARM_UP:] if time is not None)


def _read_times(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _missing_split(spec: str, configured: str | None) -> Missing | None:
    """Returns the missing part of the data set ``spec`` on this machine; None if nothing is missing."""
    name, _, split = spec.rpartition(":")
    card, root = load_card(name), data_root(configured)
    if split not in card.splits:
        return Missing(spec, "in its card", f"card {card.name!r} has the splits {', '.join(card.splits)}")
    folder, described = card.folder(root), card.splits[split]
    for entry in described if isinstance(described, list) else [described]:
        for place in ("list", "annotations", "images"):
            if place in entry and not _is_there(folder, entry[place]):
                return Missing(spec, f"at {folder / entry[place]}", _repair(card, name, configured))
    return None if folder.is_dir() else Missing(spec, f"at {folder}", _repair(card, name, configured))


def _is_there(folder: Path, pattern: str) -> bool:
    path = folder / pattern
    return path.exists() or any(path.parent.glob(path.name))


def _repair(card: Card, name: str, root: str | None) -> str:
    if card.download:
        return f"resdet download {name}" + (f" --root {root}" if root else "")
    return f"{name}: {' '.join(card.source.split()) or 'its card does not say where it comes from'}"


def _missing_weights(backbone: BackboneConfig) -> list[Missing]:
    weights, key = backbone.weights, "backbone.weights"
    if (packaged := find_packaged(weights, backbone.name)) is not None:
        try:
            packaged_file(packaged)
        except ValueError as error:
            return [Missing(f"{key} {weights}", "installed", str(error))]
    elif weights not in (None, "torchvision", "timm") and parse_address(weights) is None and not Path(weights).exists():
        return [Missing(key, f"at {weights}", f"give the path of a file: {key}=FILE")]
    return []


def _note(backbone: BackboneConfig) -> str:
    """Returns a note on ``backbone.weights`` before a training reads them."""
    if backbone.weights != "torchvision":
        return ""
    url = get_model_weights(backbone.name.removeprefix("torchvision:"))["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return (
        f", {path}" if path.is_file() else f", which the first training downloads; without a network: {url} as {path}"
    )
