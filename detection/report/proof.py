"""Intervals, claims and planning of a comparison as the content of a JSON file: fractions 0..1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from detection.evaluation.heads import AcrossHeads
from detection.evaluation.inference import Claim, Comparison, Contrast, Interval, Pair, compare_samples
from detection.evaluation.jackknife import Sample, jackknife
from detection.evaluation.matching import check_comparable, match
from detection.evaluation.metrics import METRICS
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
from detection.evaluation.run_figures import ERROR_KEYS, run_statistic
from detection.evaluation.verdicts import heads_verdict, pair_verdict

__all__ = [
    "DECIDING",
    "compare_runs",
    "heads_proof",
    "pair_proof",
    "plan_numbers",
    "planning",
    "sample_runs",
    "variant_proof",
]

Stated = TypeVar("Stated", Interval, Claim)

DECIDING = "bbox.AP"  # verdicts and planning are of this figure
WANTED_GAP = 0.01  # that planning asks for


def compare_runs(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    class_names: Mapping[str, Sequence[str]],
    *,
    voc_metric: VocMetric = "area",
    boundary: bool = False,
    pool: bool = False,
) -> Comparison:
    """Returns the comparison of every figure of ``runs``, with one seed deviation for all where ``pool`` is set.

    Other arguments and errors as ``sample_runs``.
    """
    return compare_samples(sample_runs(runs, class_names, voc_metric=voc_metric, boundary=boundary), pool=pool)


def sample_runs(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    class_names: Mapping[str, Sequence[str]],
    *,
    voc_metric: VocMetric = "area",
    boundary: bool = False,
) -> dict[str, list[Sample]]:
    """Returns every figure of ``runs``, and what the images contribute: name -> a sample of each seed.

    Args:
        runs: name -> the records of each seed, of the same test images.
        class_names: name -> those of its records.
        voc_metric: the definition behind "VOC mAP".
        boundary: also the figures of the boundaries of masks.

    Raises:
        ValueError: other images, objects or classes in two runs, or fewer than two images.
    """
    matches = {
        f"{name}, seed {number}": match(records, class_names[name])
        for name, seeds in runs.items()
        for number, records in enumerate(seeds, start=1)
    }
    check_comparable(matches)
    return {
        name: [
            jackknife(run_statistic(records, class_names[name], voc_metric=voc_metric, boundary=boundary), len(records))
            for records in seeds
        ]
        for name, seeds in runs.items()
    }


def variant_proof(comparison: Comparison, name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the intervals of a variant: of its detectors, and of its method where it has two seeds."""
    variant = comparison.variants[name]
    return {
        "intervals": _named(variant.detectors),
        "methods": None if variant.methods is None else _named(variant.methods),
        "class_ap": {label: variant.detectors[_class_key(label)] for label in class_names},
        "errors": {key.partition(".")[2]: variant.detectors[key] for key in ERROR_KEYS},
    }


def pair_proof(comparison: Comparison, pair: Pair, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the claims about a pair, its verdict and the true gap that would be seen.

    "class_ap" and "errors" answer the "question" of methods where it can be answered, else that of detectors.
    """
    visible = _visible(comparison, pair)
    claims = pair.detectors if pair.methods is None else pair.methods
    question = "detectors" if pair.methods is None else "methods"
    return {
        "a": pair.a,
        "b": pair.b,
        "detectors": _named(pair.detectors),
        "methods": None if pair.methods is None else _named(pair.methods),
        "missing": pair.missing,
        "question": question,
        "class_ap": {label: claims[_class_key(label)] for label in class_names},
        "errors": {key.partition(".")[2]: claims[key] for key in ERROR_KEYS},
        "visible": visible,
        "verdict": pair_verdict(pair, DECIDING, visible=visible[question] or math.inf),
    }


def heads_proof(across: AcrossHeads, heads: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Returns the mean gains over ``heads`` (head -> variant -> arm) with their verdicts, and the interactions."""
    means = []
    for mean in across.means:
        crossed = [found for found in across.interactions if (found.a, found.b) == (mean.a, mean.b)]
        verdict = heads_verdict(mean, crossed, DECIDING, small=WANTED_GAP)
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
    """Returns the noise of a difference in AP, the true gap that this experiment sees, and what would show 1 AP.

    "noise" is None without two seeds of two variants.
    """
    noise = noise_of([pair.noise[DECIDING] for pair in comparison.pairs], images)
    design = Design(
        variants=len(comparison.variants),
        seeds=seeds,
        images=images,
        confidence=comparison.confidence,
        pool=comparison.pooling is not None,
    )
    return plan_numbers(noise, design) | {"pooling": _pooling(comparison)}


def plan_numbers(noise: SeedNoise | None, design: Design, *, gap: float = WANTED_GAP) -> dict[str, Any]:
    """Returns what ``design`` sees, and the seeds or the images that show a true ``gap``, a fraction of AP."""
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
    noise, count = pair.noise[DECIDING], len(comparison.pairs)
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
    pooling = comparison.pooling
    if pooling is None:
        return None
    return {
        "deviation": pooling.deviation[DECIDING],
        "freedom": pooling.freedom,
        "equal_p": pooling.equal_p[DECIDING],
    }


def _named(figures: Mapping[str, Stated]) -> dict[str, Stated]:
    """Returns those of ``figures`` that the table of metrics has, under their printed names."""
    return {metric.name: figures[metric.key] for metric in METRICS if metric.key in figures}


def _class_key(label: str) -> str:
    return f"bbox.per_class.{label}.AP"
