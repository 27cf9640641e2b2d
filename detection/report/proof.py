"""Intervals, claims and planning of a comparison as the content of a JSON file: fractions 0..1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from detection.evaluation.heads import AcrossHeads
from detection.evaluation.inference import Claim, Comparison, Contrast, Interval, Pair, compare_samples
from detection.evaluation.jackknife import Sample, jackknife
from detection.evaluation.label_maps import LabelClasses, check_comparable_maps
from detection.evaluation.matching import check_comparable, match
from detection.evaluation.metrics import METRICS, deciding_key, named
from detection.evaluation.planning import (
    POWER,
    Design,
    SeedNoise,
    images_for,
    noise_of,
    seeds_for,
    visible_between_detectors,
    visible_gap,
)
from detection.evaluation.record import Record
from detection.evaluation.report import VocMetric
from detection.evaluation.run_figures import ERROR_KEYS, judged, run_statistic
from detection.evaluation.verdicts import heads_verdict, pair_verdict

__all__ = [
    "compare_runs",
    "deciding_figure",
    "heads_proof",
    "not_compared",
    "pair_proof",
    "plan_numbers",
    "planning",
    "sample_runs",
    "variant_proof",
]

Stated = TypeVar("Stated", Interval, Claim)

OF_CLASS = {"panoptic.PQ": "PQ", "semseg.mIoU": "IoU", "bbox.AP": "AP"}  # deciding figure -> figure of a class
NOT_OF_ALL = {"segm": "masks", "keypoints": "keypoints"}  # fields that detections may lack
WANTED_GAP = 0.01  # true gap that planning aims for


def compare_runs(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    class_names: Mapping[str, Sequence[str]],
    *,
    voc_metric: VocMetric = "area",
    boundary: bool = False,
    labels: LabelClasses | None = None,
    pool: bool = False,
) -> Comparison:
    """Compares every figure of ``runs``, with one pooled seed deviation if ``pool`` is set.

    Other arguments and errors as for ``sample_runs``.
    """
    samples = sample_runs(runs, class_names, voc_metric=voc_metric, boundary=boundary, labels=labels)
    return compare_samples(samples, pool=pool)


def sample_runs(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    class_names: Mapping[str, Sequence[str]],
    *,
    voc_metric: VocMetric = "area",
    boundary: bool = False,
    labels: LabelClasses | None = None,
) -> dict[str, list[Sample]]:
    """Returns the figures that all ``runs`` have, with the contribution of each image: name -> a sample per seed.

    Args:
        runs: name -> the records of each seed, of the same test images.
        class_names: name -> class names of its records.
        voc_metric: the definition behind "VOC mAP".
        boundary: also compute boundary AP of masks.
        labels: the classes of label maps; None: those of the records.

    Raises:
        ValueError: other images, objects, label maps or classes in two runs, or fewer than two images.
    """
    matches = {
        f"{name}, seed {number}": match(records, class_names[name])
        for name, seeds in runs.items()
        for number, records in enumerate(seeds, start=1)
    }
    check_comparable(matches)
    check_comparable_maps(
        {f"{name}, seed {number}": records for name, seeds in runs.items() for number, records in enumerate(seeds, 1)}
    )
    samples = {
        name: [
            jackknife(
                run_statistic(records, class_names[name], voc_metric=voc_metric, boundary=boundary, labels=labels),
                len(records),
            )
            for records in seeds
        ]
        for name, seeds in runs.items()
    }
    shared = set.intersection(*(set(sample.names) for seeds in samples.values() for sample in seeds))
    return {name: [sample.only(shared) for sample in seeds] for name, seeds in samples.items()}


def not_compared(runs: Mapping[str, Sequence[Sequence[Record]]]) -> dict[str, list[str]]:
    """Returns the fields, such as "masks", of which only some of ``runs`` have figures, and these runs."""
    known = {name: set.intersection(*(set(judged(records)) for records in seeds)) for name, seeds in runs.items()}
    having = {what: [name for name in runs if key in known[name]] for key, what in NOT_OF_ALL.items()}
    return {what: names for what, names in having.items() if 0 < len(names) < len(runs)}


def deciding_figure(comparison: Comparison) -> dict[str, str]:
    """Returns the figure of the verdicts: its "key", its printed "name", and the figure "of_class"."""
    key = deciding_key(next(iter(comparison.variants.values())).detectors)
    return {"key": key, "name": named(key).name, "of_class": OF_CLASS[key]}


def variant_proof(comparison: Comparison, name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the intervals of a variant: of its detectors and, with two or more seeds, of its method."""
    variant, figure = comparison.variants[name], deciding_figure(comparison)
    return {
        "intervals": _named(variant.detectors),
        "methods": None if variant.methods is None else _named(variant.methods),
        "class_ap": {label: variant.detectors[_class_key(figure, label)] for label in class_names},
        **_errors(variant.detectors),
    }


def pair_proof(comparison: Comparison, pair: Pair, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the claims about a pair, its verdict and the true gap that can be shown.

    "class_ap" and "errors" answer the "question" of methods if possible, else that of detectors.
    """
    visible, figure = _visible(comparison, pair), deciding_figure(comparison)
    claims = pair.detectors if pair.methods is None else pair.methods
    question = "detectors" if pair.methods is None else "methods"
    return {
        "a": pair.a,
        "b": pair.b,
        "detectors": _named(pair.detectors),
        "methods": None if pair.methods is None else _named(pair.methods),
        "missing": pair.missing,
        "question": question,
        "class_ap": {label: claims[_class_key(figure, label)] for label in class_names},
        **_errors(claims),
        "visible": visible,
        "verdict": pair_verdict(pair, figure["key"], visible=visible[question] or math.inf),
    }


def heads_proof(across: AcrossHeads, heads: Mapping[str, Mapping[str, str]], key: str) -> dict[str, Any]:
    """Returns mean gains over ``heads`` (head -> variant -> arm) with their verdicts by ``key``, and interactions."""
    means = []
    for mean in across.means:
        crossed = [found for found in across.interactions if (found.a, found.b) == (mean.a, mean.b)]
        verdict = heads_verdict(mean, crossed, key, small=WANTED_GAP)
        of_pair = {"a": mean.a, "b": mean.b, "heads": list(mean.heads)}
        means.append(of_pair | _contrast_proof(mean.contrast) | {"verdict": verdict})
    interactions = [
        {"a": found.a, "b": found.b, "first": found.first, "second": found.second} | _contrast_proof(found.contrast)
        for found in across.interactions
    ]
    return {"arms": heads, "means": means, "interactions": interactions}


def _contrast_proof(contrast: Contrast) -> dict[str, Any]:
    return {
        "detectors": _named(contrast.detectors),
        "methods": None if contrast.methods is None else _named(contrast.methods),
        "missing": contrast.missing,
    }


def planning(comparison: Comparison, *, images: int, seeds: int) -> dict[str, Any]:
    """Returns the noise of a difference in the deciding figure, the true gap it can show, and what a gap of 0.01 needs.

    "noise" is None without two seeds of two variants.
    """
    noise = noise_of([pair.noise[deciding_figure(comparison)["key"]] for pair in comparison.pairs], images)
    design = Design(
        variants=len(comparison.variants),
        seeds=seeds,
        images=images,
        confidence=comparison.confidence,
        pool=comparison.pooling is not None,
    )
    return plan_numbers(noise, design) | {"pooling": _pooling(comparison)}


def plan_numbers(noise: SeedNoise | None, design: Design, *, gap: float = WANTED_GAP) -> dict[str, Any]:
    """Returns the gap that ``design`` can show, and the seeds or images that show a true ``gap``, a fraction of AP."""
    known = noise is not None and design.seeds > 1
    return {
        "noise": None if noise is None else asdict(noise),
        "design": asdict(design),
        "power": POWER,
        "gap": gap,
        "visible": visible_gap(noise, design) if noise is not None and known else None,
        "seeds": None if noise is None else seeds_for(gap, noise, design),
        "images": images_for(gap, noise, design) if noise is not None and known else None,
    }


def _visible(comparison: Comparison, pair: Pair) -> dict[str, float | None]:
    noise, count = pair.noise[deciding_figure(comparison)["key"]], len(comparison.pairs)
    detectors = visible_between_detectors(noise, (1 - comparison.confidence) / count)
    images = int(noise.image_freedom) + 1
    of_seeds = noise_of([noise], images)
    if pair.methods is None or of_seeds is None:
        return {"detectors": detectors, "methods": None}
    seeds = min(comparison.variants[name].seeds for name in (pair.a, pair.b))
    design = Design(
        variants=len(comparison.variants),
        seeds=seeds,
        images=images,
        confidence=comparison.confidence,
        pool=comparison.pooling is not None,
    )
    return {"detectors": detectors, "methods": visible_gap(of_seeds, design)}


def _pooling(comparison: Comparison) -> dict[str, Any] | None:
    pooling, key = comparison.pooling, deciding_figure(comparison)["key"]
    if pooling is None:
        return None
    return {
        "deviation": pooling.deviation[key],
        "freedom": pooling.freedom,
        "equal_p": pooling.equal_p[key],
    }


def _named(figures: Mapping[str, Stated]) -> dict[str, Stated]:
    """Returns the ``figures`` in the table of metrics, by their printed names."""
    return {metric.name: figures[metric.key] for metric in METRICS if metric.key in figures}


def _errors(figures: Mapping[str, Stated]) -> dict[str, dict[str, Stated]]:
    """Returns the error types of runs that find objects."""
    errors = {key.partition(".")[2]: figures[key] for key in ERROR_KEYS if key in figures}
    return {"errors": errors} if errors else {}


def _class_key(figure: Mapping[str, str], label: str) -> str:
    return f"{figure['key'].partition('.')[0]}.per_class.{label}.{figure['of_class']}"
