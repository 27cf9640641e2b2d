"""Experiments with classifiers: their kind and their report.

OUTPUT/report/report.md, comparison.json  see detection/classification/compare.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from detection.classification.compare import PER_IMAGE, compare_classifiers
from detection.classification.config import ClassificationConfig
from detection.classification.costs import measure_classifier_costs
from detection.classification.task import build_classifier, read_images
from detection.experiments.kind import Kind, network_facts
from detection.files import digest
from detection.report.reading import ExperimentFolder, RunFolder, read_experiment, read_metrics

__all__ = ["CLASSIFIERS", "write_classifier_report"]

LAST = 0.1  # last part of the training, over which the shown loss is averaged


def _facts(config: ClassificationConfig, num_classes: int) -> dict[str, Any]:
    with torch.device("meta"):  # shapes are enough
        model = build_classifier(config, num_classes, pretrained=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        **network_facts(model, config.backbone, model.network.input_stats),
    }


def _hash_weights(config: ClassificationConfig, num_classes: int) -> str:
    torch.manual_seed(config.seed)
    return digest(build_classifier(config, num_classes).state_dict())


CLASSIFIERS = Kind(
    schema=ClassificationConfig,
    command="pretrain",
    metric=lambda _: "classification.top1",
    read=read_images,
    facts=_facts,
    hash_weights=_hash_weights,
    measure_costs=measure_classifier_costs,
)


def write_classifier_report(output: Path, *, say: Callable[[str], None]) -> Path | None:
    """Writes the report on the finished runs of the experiment in the folder ``output``; returns its path.

    With fewer than two variants there is nothing to compare: reports that to ``say`` and returns None.

    Raises:
        ValueError: no experiment there, an unreadable file, or runs tested on different images.
    """
    experiment = read_experiment(output, [PER_IMAGE])
    done = {variant: runs for variant in experiment.variants if (runs := experiment.done(variant))}
    if len(done) < 2:
        say(f"no report: it takes runs of two variants, done are those of {', '.join(done) or 'none'}")
        return None
    several = max(map(len, done.values())) > 1
    compare_classifiers(
        {variant: [run.folder for run in runs] for variant, runs in done.items()},
        output / "report",
        pool=experiment.plan["pool_seeds"] and several,
        title=experiment.plan["name"],
        sections=[*_costs(experiment, done), *_proof(experiment.plan), *_warnings(experiment)],
    )
    return output / "report" / "report.md"


def _costs(experiment: ExperimentFolder, done: dict[str, list[RunFolder]]) -> list[str]:
    header = ("variant", "parameters, M", "multiply-adds, M", "ms an image, p50", "hours a run", "training loss")
    rows = []
    for variant, runs in done.items():
        costs = experiment.costs.get(variant, {})
        size = [f"{costs['parameters'] / 1e6:.2f}", f"{1000 * costs['gflops']:.1f}"] if costs else ["-", "-"]
        latency = f"{costs['latency_ms']['p50']:.1f}" if costs else "-"
        hours = _mean([run.hours for run in runs if run.hours], 2)
        rows.append([variant, *size, latency, hours, _mean([x for run in runs for x in _last_loss(run.folder)], 3)])
    devices = {costs["latency_ms"]["device"] for costs in experiment.costs.values()}
    note = (
        f"Training loss: the mean of the last tenth of a run. ±: deviation of the seeds. Latency: {', '.join(devices)}."
    )
    return ["## Costs and training", "", *_table(header, rows), "", note]


def _last_loss(run: Path) -> list[float]:
    """Returns the mean loss of the last tenth of ``run``; empty if no loss was logged."""
    steps, losses = read_metrics(run, "loss/total")
    last = [loss for step, loss in zip(steps, losses, strict=True) if step > (1 - LAST) * steps[-1]]
    return [statistics.fmean(last)] if last else []


def _proof(plan: dict[str, Any]) -> list[str]:
    """Returns lines on equal settings, on settings that change with the variant, and on the environment of the runs."""
    environment = plan["environment"]
    lines = ["", "## What was equal", ""]
    lines += [f"Protocol {plan['protocol']['name']}, seeds {', '.join(map(str, plan['seeds']))}. "]
    lines[-1] += (
        f"Variants may differ in {', '.join(f'`{key}`' for key in plan['allowed']) or 'nothing'}; all else is equal."
    )
    lines += ["", f"Made on {environment['cpu']}, torch {environment['torch']}; code {plan['hashes']['code'][:12]}."]
    if plan["also_changes"]:
        header = ("what else changes", *plan["hashes"]["initial_weights"])
        rows = [[entry["what"], *map(str, entry["values"].values())] for entry in plan["also_changes"]]
        lines += ["", *_table(header, rows)]
    return lines


def _warnings(experiment: ExperimentFolder) -> list[str]:
    lines = [
        f"- {run.variant}, seed {run.seed}: {run.state}{f': {run.error}' if run.error else ''}"
        for run in experiment.unfinished
    ]
    for kind, what in (("copies", "the same as"), ("near_copies", "nearly the same as")):
        found = (experiment.leakage or {}).get(kind)
        if found and found["count"]:
            lines.append(f"- {found['count']:,} test images are {what} one of training")
    return ["", "## Warnings", "", *lines] if lines else []


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
