"""All numbers of a report, as the content of its JSON file: fractions 0..1, None without a value."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.index import AnnotationIndex
from detection.engine.evaluate import evaluate
from detection.engine.label_counts import label_classes
from detection.evaluation.confusion import found_objects
from detection.evaluation.curves import (
    best_threshold,
    class_curves,
    f1_by_threshold,
    mean_precision,
    score_of_as_many,
)
from detection.evaluation.heads import AcrossHeads, compare_heads, gains
from detection.evaluation.inference import Comparison, Pair, compare_samples
from detection.evaluation.metrics import figures, shown_in
from detection.evaluation.record import Record, has_objects, judged_maps
from detection.evaluation.report import VocMetric, describe_choice
from detection.report.paper import accept_from, paper_cells
from detection.report.proof import (
    deciding_figure,
    heads_proof,
    not_compared,
    pair_proof,
    planning,
    sample_runs,
    variant_proof,
)
from detection.report.reading import ExperimentFolder
from detection.report.splits import split_numbers
from detection.report.training import training_numbers
from detection.report.verdict import fronts
from detection.tasks.evaluate import read_detections
from detection.tasks.test import read_records

__all__ = [
    "Evidence",
    "Shown",
    "as_json",
    "experiment_numbers",
    "gather",
    "has_boundaries",
    "metric_numbers",
    "over_seeds",
    "pair_numbers",
    "read_found",
    "result_numbers",
    "run_numbers",
    "show_objects",
    "tested_weights",
    "voc_metric",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Curves, thresholds and matched objects of one run."""

    records: Sequence[Record]
    precision: NDArray[np.float64]  # at curves.RECALLS, mean over classes
    f1: NDArray[np.float64]  # at curves.THRESHOLDS, mean over classes
    threshold: float  # score threshold of the best F1
    equal_score: float  # score threshold at which there are as many detections as objects, to compare runs
    found: Sequence[NDArray[np.bool_]]  # (G,) per image: objects found above the latter threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The test images, and the detections of the finished runs of each variant."""

    index: AnnotationIndex
    shown: Mapping[str, Shown]  # of the first finished seed, if it finds objects
    comparison: Comparison  # of every finished seed; with heads, of the pairs under each
    across: AcrossHeads | None  # of an experiment with heads
    results: Mapping[str, Sequence[dict[str, Any]]]  # untrained arm -> result of each of its files

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the classes of the deciding figure: those of label maps if there are any, else of objects."""
        return self.index.class_names if self.index.label_maps is None else self.index.label_maps.class_names


def gather(
    experiment: ExperimentFolder, *, say: Callable[[str], None], index: AnnotationIndex | None = None
) -> Evidence | None:
    """Reads the detections of the variants with a finished run; None without a finished run.

    ``index`` has the tested images; by default they are read from the data set.

    Raises:
        ValueError: broken files, or a data set other than the tested one.
    """
    done = {variant: runs for variant in experiment.variants if (runs := experiment.done(variant))}
    if not done:
        return None
    read = {variant: [read_found(run.folder, index, say) for run in runs] for variant, runs in done.items()}
    index, metric = next(iter(read.values()))[0][0], voc_metric(next(iter(done.values()))[0].folder)
    arms = {name: _read_arm(index, files) for name, files in experiment.detections.items()}
    records = {variant: [found for _, found in seeds] for variant, seeds in read.items()} | arms
    classes = {variant: seeds[0][0].class_names for variant, seeds in read.items()}
    labels = label_classes(index)
    boundary = all(has_boundaries(run.folder) for runs in done.values() for run in runs)
    class_names = classes | dict.fromkeys(arms, index.class_names)
    samples = sample_runs(records, class_names, voc_metric=metric, labels=labels, boundary=boundary)
    # A plan may be older than the key, and second seeds may not have finished.
    pool = experiment.plan.get("pool_seeds", False) and any(len(seeds) > 1 for seeds in records.values())
    heads = experiment.plan.get("heads", {})
    return Evidence(
        index=index,
        shown=show_objects(records, len(index.class_names)),
        comparison=compare_samples(samples, pool=pool, pairs=gains(heads, [*samples]) if heads else None),
        across=compare_heads(samples, heads, pool=pool) if heads else None,
        results={
            name: [evaluate(seed, index.class_names, metric, labels=labels, boundary=boundary) for seed in seeds]
            for name, seeds in arms.items()
        },
    )


def read_found(
    run: Path, index: AnnotationIndex | None, say: Callable[[str], None]
) -> tuple[AnnotationIndex, list[Record]]:
    """Returns the test images of ``run`` (those of ``index`` if given) and the detections in them.

    Raises:
        ValueError: broken files, or detections on other images.
    """
    if index is None:
        return read_records(run, say=say)
    return index, read_detections(index, run / "detections.json", source="the labels that were kept")


def _read_arm(index: AnnotationIndex, files: Sequence[Path]) -> list[list[Record]]:
    """Returns the records of each file of detections of another program."""
    return [read_detections(index, path, source="the experiment's data.test") for path in files]


def show_objects(runs: Mapping[str, Sequence[Sequence[Record]]], num_classes: int) -> dict[str, Shown]:
    """Returns ``show`` of the first seed of each of ``runs`` that finds objects."""
    return {name: show(seeds[0], num_classes) for name, seeds in runs.items() if has_objects(judged_maps(seeds[0]))}


def show(records: Sequence[Record], num_classes: int) -> Shown:
    """Returns the curves, thresholds and matched objects of ``records``."""
    curves = class_curves(records, num_classes)
    f1 = f1_by_threshold(curves)
    equal_score = score_of_as_many(records)
    return Shown(
        records=records,
        precision=mean_precision(curves),
        f1=f1,
        threshold=best_threshold(f1),
        equal_score=equal_score,
        found=[found_objects(record, min_score=equal_score) for record in records],
    )


def experiment_numbers(experiment: ExperimentFolder, evidence: Evidence | None) -> dict[str, Any]:
    """Returns the content of report.json."""
    plan = experiment.plan
    heads = ["heads"] if "heads" in plan else []
    numbers: dict[str, Any] = {
        "name": plan["name"],
        "protocol": plan["protocol"],
        "seeds": plan["seeds"],
        "fairness": {name: plan[name] for name in ("allowed", "differences", "also_changes", "hashes", *heads)},
        "base": plan["base"],
        "environment": plan["environment"],
        "grid": experiment.grid,
        "latency": experiment.latency,
        "leakage": experiment.leakage,
        "splits": split_numbers(experiment),
        "unfinished": [
            {"variant": run.variant, "seed": run.seed, "state": run.state, "error": run.error}
            for run in experiment.unfinished
        ],
        "variants": {},
        "pairs": [],
    }
    if evidence is None:
        return as_json(numbers)
    comparison, names = evidence.comparison, evidence.class_names
    images = len(evidence.index)
    numbers |= {
        "images": images,
        "blocks": comparison.blocks,
        "confidence": comparison.confidence,
        "class_names": names,
        "deciding": deciding_figure(comparison),
        "planning": planning(comparison, images=images, seeds=min(v.seeds for v in comparison.variants.values())),
    }
    numbers["variants"] = {name: _variant(experiment, name, evidence) for name in comparison.variants}
    numbers["pairs"] = [pair_numbers(comparison, pair, evidence.shown, names) for pair in comparison.pairs]
    if few := not_compared({name: [shown.records] for name, shown in evidence.shown.items()}):
        numbers["not_compared"] = few
    if evidence.across is not None:
        numbers["heads"] = heads_proof(evidence.across, plan["heads"], numbers["deciding"]["key"])
    found = as_json(numbers)
    _mark_fronts(found)
    return found


def as_json(value: Any) -> Any:
    """Converts dataclasses, arrays and NaN in ``value`` to types of JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def run_numbers(
    comparison: Comparison, name: str, shown: Mapping[str, Shown], class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the numbers of a variant: intervals over all its seeds, and the curves of one run."""
    proof = variant_proof(comparison, name, class_names)
    return proof | _curves(shown[name]) if name in shown else proof


def _curves(shown: Shown) -> dict[str, Any]:
    return {
        "threshold": shown.threshold,
        "equal_score": shown.equal_score,
        "precision_at_recall": shown.precision,
        "f1_at_score": shown.f1,
    }


def pair_numbers(
    comparison: Comparison, pair: Pair, shown: Mapping[str, Shown], class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the differences of two variants and, if both find objects, the objects that only one of them finds."""
    proof = pair_proof(comparison, pair, class_names)
    if pair.a not in shown or pair.b not in shown:
        return proof
    a, b = shown[pair.a], shown[pair.b]
    only_a, only_b = (
        sum(int(np.count_nonzero(x & ~y)) for x, y in zip(first.found, second.found, strict=True))
        for first, second in ((a, b), (b, a))
    )
    return proof | {
        "objects": {
            "only_a": only_a,
            "only_b": only_b,
            "all": sum(int(np.count_nonzero(~record.gt_ignore)) for record in a.records),
        },
    }


def metric_numbers(runs: Sequence[Path]) -> dict[str, Any]:
    """Returns the reported metrics by name, over the results of ``runs``, which differ only in their seed."""
    return result_numbers([json.loads((run / "result.json").read_text(encoding="utf-8")) for run in runs])


def result_numbers(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the reported metrics by name, over ``results`` that differ only in their seed.

    Leaves out metrics of sections that no result has.
    """
    known = [figures(result) for result in results]
    sections = {name for result in results for name in result}
    # .get: a result may be older than a metric
    return {
        metric.name: over_seeds([result.get(metric.key) for result in known])
        for metric in shown_in("report")
        if metric.key.partition(".")[0] in sections
    }


def tested_weights(run: Path) -> str:
    """Returns a phrase for the weights that ``run`` tested."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return describe_choice(result) if "weights" in result else "weights of an earlier version, its last"


def _variant(experiment: ExperimentFolder, name: str, evidence: Evidence) -> dict[str, Any]:
    runs, costs = experiment.done(name), experiment.costs.get(name, {})
    files = experiment.detections.get(name, ())
    metrics = metric_numbers([run.folder for run in runs]) if runs else result_numbers(evidence.results[name])
    figure = deciding_figure(evidence.comparison)
    worth = metrics[figure["name"]]["mean"]
    numbers = {
        "seeds": [run.seed for run in runs] or list(range(1, len(files) + 1)),
        "files": list(map(str, files)),
        "weights": sorted({tested_weights(run.folder) for run in runs}),
        "configs": [f"runs/{name}/{run.seed}/config.yaml" for run in runs],
        "metrics": metrics,
        "costs": costs,
        "hours": over_seeds([run.hours for run in runs]),
        "training_memory_gib": over_seeds([run.peak_memory_gib for run in runs]),
        "ap_per_gflop": _ratio(worth, costs.get("gflops")),
        "ap_per_ms": _ratio(worth, costs.get("latency_ms", {}).get("p50")),
        "training": [training_numbers(run, figure) for run in runs],
        "paper": _paper(runs[0].folder, metrics) if runs else [],
    }
    return numbers | run_numbers(evidence.comparison, name, evidence.shown, evidence.class_names)


def voc_metric(run: Path) -> VocMetric:
    """Returns the definition behind "VOC mAP" in the result of ``run``."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return result.get("voc", {}).get("metric", "area")  # missing without objects


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Returns mean and sample standard deviation; the latter is None for a single value."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def _ratio(value: float | None, cost: float | None) -> float | None:
    return None if value is None or not cost else value / cost


def _paper(run: Path, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the paper's figures for the detector of ``run``, ours, and whether ours is accepted (None: no band)."""
    config = load_config(DetectionConfig, run / "config.yaml")
    rows = []
    for cell in paper_cells(config.backbone.name, config.data.train, config.data.test):
        if cell.metric not in metrics:
            continue
        ours = metrics[cell.metric]["mean"]
        limit = accept_from(cell, len(metrics[cell.metric]["values"]))
        accepted = None if limit is None or ours is None else ours >= limit
        rows.append(
            {
                "table": cell.table,
                "metric": cell.metric,
                "paper": cell.value,
                "accept_from": limit,
                "ours": ours,
                "accepted": accepted,
            }
        )
    return rows


def _mark_fronts(numbers: dict[str, Any]) -> None:
    """Marks each variant on the Pareto front of its figure against a cost; see ``verdict.fronts``."""
    costs = {name: variant["costs"] for name, variant in numbers["variants"].items()}
    by_flops = fronts(numbers, {name: known.get("gflops") for name, known in costs.items()})
    by_latency = fronts(numbers, {name: known.get("latency_ms", {}).get("p50") for name, known in costs.items()})
    for name, variant in numbers["variants"].items():
        variant["pareto"] = {"gflops": by_flops[name], "latency": by_latency[name]}


def has_boundaries(run: Path) -> bool:
    """Returns whether ``run`` was tested with boundary AP (test.boundary)."""
    return "boundary" in json.loads((run / "result.json").read_text(encoding="utf-8"))
