"""Plans the power of an experiment from the noise of a pilot or from stated noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detection.evaluation.planning import (
    MAX_SEEDS,
    POWER,
    Design,
    SeedNoise,
    images_for,
    seeds_for,
    visible_gap,
)
from detection.evaluation.text_table import text_table

__all__ = ["format_plan", "read_pilot", "stated_noise"]

SEEDS = (2, 3, 5, 8, 12, 20)
IMAGE_FACTORS = (1, 2, 5, 10)
SHARE = f"{10 * POWER:g} times in 10"


def read_pilot(path: Path) -> tuple[SeedNoise, int]:
    """Returns the noise of the experiment whose report.json is at ``path``, and its number of test images.

    Raises:
        ValueError: no such file, or fewer than two variants with two seeds in it.
    """
    if not path.is_file():
        raise ValueError(
            f"no pilot {path}: give --pilot REPORT.JSON of a finished experiment, or --noise SEED IMAGES (standard "
            "deviations in AP) with --images N"
        )
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        images = int(numbers["images"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"pilot {path} is no report.json with results: {error!r}; resdet compare writes one"
        ) from error
    found = numbers["planning"]["noise"] if "planning" in numbers else _older_noise(numbers, images)
    if found is None:
        raise ValueError(
            f"pilot {path} has no two variants with two seeds each, so that the noise of seeds is unknown; run a "
            "second seed, or state it with --noise"
        )
    return SeedNoise(**found), images


def stated_noise(seed: float, image: float, images: int) -> SeedNoise:
    """Returns the noise for deviations in points: of a training, and of a difference over the choice of ``images``."""
    return SeedNoise(seed=seed / 100, shared=image / 100 * math.sqrt(images), own=0.0)


def format_plan(noise: SeedNoise, design: Design, *, gap: float, figure: str = "AP") -> str:
    """Returns the gap in ``figure`` that ``design`` can show, and the seeds and images for other gaps and ``gap``."""
    images = [factor * design.images for factor in IMAGE_FACTORS]
    rows = [[str(n), *(_points(visible_gap(noise, replace(design, seeds=n, images=m))) for m in images)] for n in SEEDS]
    by_image = math.sqrt(design.images)
    return "\n".join(
        [
            f"noise in {figure}: {_points(noise.seed)} of a training; of {design.images:,} images "
            f"{_points(noise.shared / by_image)} of a difference, and {_points(noise.own / by_image)} of each training",
            _seen(noise, design, figure),
            "",
            f"true gap in {figure} that is claimed {SHARE}",
            text_table(["seeds", *(f"{count:,} images" for count in images)], rows),
            "",
            _taken(noise, design, gap, figure),
        ]
    )


def _seen(noise: SeedNoise, design: Design, figure: str) -> str:
    if design.seeds < 2:
        return "with 1 seed nothing is said of methods, which takes two seeds of each variant"
    seen, pooled = (_points(visible_gap(noise, replace(design, pool=pool))) for pool in (design.pool, True))
    return (
        f"with {design.seeds} seeds of {design.variants} variants a true gap of {seen} {figure} between two methods is "
        f"claimed {SHARE}" + ("" if design.pool else f"; with pool_seeds {pooled} {figure}")
    )


def _taken(noise: SeedNoise, design: Design, gap: float, figure: str) -> str:
    seeds = seeds_for(gap / 100, noise, design)
    images = images_for(gap / 100, noise, design) if design.seeds > 1 else None
    ways = [
        f"{seeds} seeds on these images" if seeds else f"not with {MAX_SEEDS} seeds on these images",
        f"{images:,} images with these seeds" if images else "not with these seeds, whatever the images",
    ]
    return f"to see {gap:g} {figure}: {'; '.join(ways)}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _older_noise(numbers: Mapping[str, Any], images: int) -> dict[str, float] | None:
    """Reads the noise from a report with percentile intervals, which do not separate seeds from images."""
    deviations = [variant["metrics"]["AP"]["sd"] for variant in numbers["variants"].values()]
    intervals: Sequence[Mapping[str, float]] = [pair["AP"] for pair in numbers["pairs"]]
    if len(deviations) < 2 or None in deviations or not intervals:
        return None
    halves = [(interval["high"] - interval["low"]) / 2 for interval in intervals]
    return {
        "seed": float(np.sqrt(np.mean(np.square(deviations)))),
        "shared": float(np.sqrt(np.mean(np.square(halves)))) / 1.96 * math.sqrt(images),
        "own": 0.0,
    }
