"""Mirrors detection/evaluation/planning.py: what is promised is what simulated experiments see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.noise import Noise, half_width, pair_noise
from detection.evaluation.planning import (
    Design,
    SeedNoise,
    images_for,
    noise_of,
    seeds_for,
    visible_between_detectors,
    visible_gap,
)

NOISE = SeedNoise(seed=0.01, shared=0.05, own=0.1)
DESIGN = Design(variants=2, seeds=5, images=100)


def gap_of(**changes: int | bool) -> float:
    return visible_gap(NOISE, replace(DESIGN, **changes))


def experiments(rng: np.random.Generator, gap: float, runs: int) -> tuple[Noise, np.ndarray]:
    """Noise and differences (runs,) of two methods that are ``gap`` apart, as DESIGN would measure them."""
    images, arms = DESIGN.images, []
    for mean in (0.0, gap):
        seed, own = rng.normal(0, NOISE.seed, (runs, DESIGN.seeds, 1)), NOISE.own
        per_image = mean + seed + rng.normal(0, own, (runs, DESIGN.seeds, images))
        per_image += rng.normal(0, NOISE.shared / math.sqrt(2), (runs, 1, images))
        influence = np.moveaxis(per_image - per_image.mean(axis=2, keepdims=True), 0, 2)
        arms.append((per_image.mean(axis=2).T, influence / math.sqrt(images * (images - 1))))
    return pair_noise(*arms, np.full(runs, images)), arms[1][0].mean(axis=0) - arms[0][0].mean(axis=0)


def test_the_visible_gap_is_claimed_in_8_of_10_experiments() -> None:
    noise, difference = experiments(np.random.default_rng(1), gap_of(), 1000)
    assert (difference > half_width(noise, 0.05)).mean() == pytest.approx(0.8, abs=0.04)


def test_the_noise_is_read_off_experiments() -> None:
    noise, _ = experiments(np.random.default_rng(0), 0.0, 300)
    found = noise_of([noise.figure(run) for run in range(300)], DESIGN.images)
    assert found is not None
    assert (found.seed, found.shared) == pytest.approx((NOISE.seed, NOISE.shared), rel=0.1)
    assert found.own == pytest.approx(NOISE.own, rel=0.05)


def test_more_seeds_more_images_and_fewer_variants_show_smaller_gaps() -> None:
    assert max(gap_of(seeds=10), gap_of(images=400)) < gap_of() < gap_of(variants=7) < gap_of(seeds=1) == math.inf
    few = {"variants": 4, "seeds": 2}
    assert gap_of(**few, pool=True) < 0.2 * gap_of(**few)


def test_the_least_seeds_and_images_are_just_enough() -> None:
    seeds, images = seeds_for(0.02, NOISE, DESIGN), images_for(0.025, NOISE, DESIGN)
    assert seeds is not None
    assert gap_of(seeds=seeds) <= 0.02 < gap_of(seeds=seeds - 1)
    assert images is not None
    assert gap_of(images=images) <= 0.025 < gap_of(images=images // 2)
    assert images_for(0.01, replace(NOISE, seed=0.05), DESIGN) is None  # no number helps against seeds
    assert seeds_for(0.001, NOISE, DESIGN) is None


def test_of_detectors_it_is_quantile_and_power_times_the_deviation() -> None:
    variances = {"images": np.array(0.0004), "shared": np.array(0.0004), "own": np.array(0.0)}
    noise = Noise(**variances, seeds=np.full(2, np.nan), seed_freedom=np.zeros(2), image_freedom=np.array(1e6))
    assert visible_between_detectors(noise, 0.05) == pytest.approx((1.96 + 0.8416) * 0.02, rel=1e-3)
    assert noise_of([noise], 100) is None
