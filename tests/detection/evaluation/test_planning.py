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


def experiments(rng: np.random.Generator, gap: float, runs: int) -> tuple[Noise, np.ndarray]:
    """Noise and differences (runs,) of two methods that are ``gap`` apart, as DESIGN would measure them."""
    shape = (runs, DESIGN.seeds, DESIGN.images)
    arms = []
    for mean in (0.0, gap):
        per_image = mean + rng.normal(0, NOISE.seed, (runs, DESIGN.seeds, 1)) + rng.normal(0, NOISE.own, shape)
        arms.append(per_image + rng.normal(0, NOISE.shared / math.sqrt(2), (runs, 1, DESIGN.images)))
    values = [arm.mean(axis=2).T for arm in arms]
    influence = [
        np.moveaxis(arm - arm.mean(axis=2, keepdims=True), 0, 2) / math.sqrt(DESIGN.images * (DESIGN.images - 1))
        for arm in arms
    ]
    noise = pair_noise((values[0], influence[0]), (values[1], influence[1]), np.full(runs, DESIGN.images))
    return noise, values[1].mean(axis=0) - values[0].mean(axis=0)


def test_the_visible_gap_is_claimed_in_8_of_10_experiments() -> None:
    gap = visible_gap(NOISE, DESIGN)
    noise, difference = experiments(np.random.default_rng(1), gap, 1000)
    assert (difference > half_width(noise, 0.05)).mean() == pytest.approx(0.8, abs=0.04)


def test_the_noise_is_read_off_experiments() -> None:
    noise, _ = experiments(np.random.default_rng(0), 0.0, 300)
    found = noise_of([noise.figure(run) for run in range(300)], DESIGN.images)
    assert found is not None
    assert found.seed == pytest.approx(NOISE.seed, rel=0.1)
    assert found.own == pytest.approx(NOISE.own, rel=0.05)
    assert found.shared == pytest.approx(NOISE.shared, rel=0.1)


def test_more_seeds_more_images_and_fewer_variants_show_smaller_gaps() -> None:
    gap = visible_gap(NOISE, DESIGN)
    assert visible_gap(NOISE, replace(DESIGN, seeds=10)) < gap
    assert visible_gap(NOISE, replace(DESIGN, images=400)) < gap
    assert visible_gap(NOISE, replace(DESIGN, variants=7)) > gap
    assert visible_gap(NOISE, replace(DESIGN, seeds=1)) == math.inf


def test_the_least_seeds_and_images_are_just_enough() -> None:
    seeds = seeds_for(0.02, NOISE, DESIGN)
    assert seeds is not None
    assert (
        visible_gap(NOISE, replace(DESIGN, seeds=seeds)) <= 0.02 < visible_gap(NOISE, replace(DESIGN, seeds=seeds - 1))
    )
    images = images_for(0.025, NOISE, DESIGN)
    assert images is not None
    assert (
        visible_gap(NOISE, replace(DESIGN, images=images))
        <= 0.025
        < visible_gap(NOISE, replace(DESIGN, images=images // 2))
    )


def test_no_number_of_images_helps_against_seeds_and_the_other_way_round() -> None:
    assert images_for(0.01, replace(NOISE, seed=0.05), DESIGN) is None
    assert seeds_for(0.001, NOISE, DESIGN) is None


def test_of_detectors_it_is_quantile_and_power_times_the_deviation() -> None:
    noise = Noise(
        images=np.array(0.0004),
        shared=np.array(0.0004),
        own=np.array(0.0),
        seeds=np.array([np.nan, np.nan]),
        seed_freedom=np.zeros(2),
        image_freedom=np.array(1e6),
    )
    assert visible_between_detectors(noise, 0.05) == pytest.approx((1.96 + 0.8416) * 0.02, rel=1e-3)
    assert noise_of([noise], 100) is None


def test_pooled_seeds_show_smaller_gaps() -> None:
    few = Design(variants=4, seeds=2, images=100)
    assert visible_gap(NOISE, replace(few, pool=True)) < 0.2 * visible_gap(NOISE, few)
