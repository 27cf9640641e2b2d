"""Mirrors detection/evaluation/noise.py: known values, and how often claims are false in a world that is known."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_1samp

from detection.evaluation.noise import (
    Noise,
    arm_noise,
    equal_deviation_p,
    half_width,
    images_half_width,
    images_p_value,
    p_value,
    pair_noise,
    pool_seeds,
)

RNG = np.random.default_rng
IMAGES = np.array([40])


def quantile(freedom: float, alpha: float = 0.05) -> float:
    return -float(stdtrit(freedom, alpha / 2))


def arm(per_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, 1) and influence (n, N, 1) of seeds whose figure is the mean over images (n, N)."""
    n = per_image.shape[1]
    centred = per_image - per_image.mean(axis=1, keepdims=True)
    return per_image.mean(axis=1)[:, None], centred[..., None] / math.sqrt(n * (n - 1))


def flat(*values: float) -> tuple[np.ndarray, np.ndarray]:
    """Seeds whose figure is the same on every image."""
    return arm(np.repeat(np.array(values)[:, None], 40, axis=1))


def test_of_detectors_it_is_students_t_on_the_differences_of_images() -> None:
    a, b = (RNG(i).normal(0.4 * i, 1, (1, 40)) for i in (0, 1))
    noise = pair_noise(arm(a), arm(b), IMAGES)
    expected: Any = ttest_1samp((b - a)[0], 0)
    assert images_p_value(noise, np.array([(b - a).mean()]))[0] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert images_half_width(noise, 0.05)[0] == pytest.approx((interval.high - interval.low) / 2)


def test_of_methods_without_noise_of_images_each_arm_has_its_own_quantile() -> None:
    noise = pair_noise(flat(0.1, 0.3), flat(0.2, 0.5, 0.5), IMAGES)
    expected = math.sqrt(quantile(1) ** 2 * 0.02 / 2 + quantile(2) ** 2 * 0.03 / 3)
    assert half_width(noise, 0.05)[0] == pytest.approx(expected)
    pooled = pool_seeds(pair_noise(flat(0.1, 0.3), flat(0.2, 0.5), IMAGES), np.array([0.04]), 7, np.array([2, 2]))
    assert half_width(pooled, 0.05)[0] == pytest.approx(quantile(7) * 0.2)  # the degrees of freedom of all arms


def test_what_a_seed_does_to_single_images_counts_once() -> None:
    count, rng = 200_000, RNG(0)
    noise = arm_noise(*arm(rng.normal(0, 1, (3, count)) + rng.normal(0, 2, count)), np.array([count]))
    assert noise.own[0] * count == pytest.approx(1 / 3, rel=0.02)
    assert noise.shared[0] * count == pytest.approx(4, rel=0.02)
    assert noise.images[0] == pytest.approx(noise.own[0] + noise.shared[0])


def test_seeds_that_agree_by_luck_do_not_narrow_the_interval_below_that_of_detectors() -> None:
    values, influence = arm(RNG(0).normal(0, 1, (2, 40)))
    noise = arm_noise(np.full_like(values, 0.5), influence, IMAGES)
    assert noise.seeds[0, 0] == 0
    assert half_width(noise, 0.05)[0] > images_half_width(noise, 0.05)[0]


def test_too_few_seeds_or_images_have_no_p_value() -> None:
    noise = pair_noise(flat(0.1), flat(0.9, 0.8), IMAGES)  # a single seed says nothing of methods
    assert np.isnan([half_width(noise, 0.05), p_value(noise, np.array([0.75]))]).all()
    assert np.isfinite(images_p_value(noise, np.array([0.75]))).all()
    for images, expected in ((5, math.nan), (8, 2.0**-7)):
        found = images_p_value(pair_noise(flat(0), flat(0.5), np.array([images])), np.array([0.5]))[0]
        assert found == pytest.approx(expected, nan_ok=True)


def test_the_p_value_is_where_the_interval_ends_at_zero() -> None:
    noise = pair_noise(arm(RNG(0).normal(0, 1, (3, 40))), arm(RNG(1).normal(0, 1, (5, 40))), IMAGES)
    for alpha in (0.5, 0.05, 0.05 / 21):
        assert p_value(noise, half_width(noise, alpha))[0] == pytest.approx(alpha)
    none = pair_noise(flat(0.5, 0.5), flat(0.5, 0.5), IMAGES)  # no difference is no claim without noise too
    assert images_p_value(none, np.zeros(1))[0] == 1
    assert p_value(none, np.zeros(1))[0] == pytest.approx(1)


def noise_of(images: np.ndarray, seeds: np.ndarray, count: int, own: float) -> Noise:
    """The noise of arms with ``count`` seeds, whose variance over images is ``own`` squared."""
    freedom = {"seed_freedom": np.full(2, count - 1.0), "image_freedom": np.array(71.0)}
    parts = {"shared": np.zeros_like(images), "own": np.full_like(images, 2 * own**2 / count)}
    return Noise(images=images, seeds=seeds, **parts, **freedom)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("deviations", [(0.3, 2.0), (1.0, 1.0), (0.0, 3.0)])
def test_equal_methods_are_claimed_in_one_of_twenty_at_most(seeds: int, deviations: tuple[float, float]) -> None:
    for own in (0.05, 1.0):
        rng, runs = RNG(seeds), 20_000
        of_seeds = rng.normal(0, 1, (runs, 2, seeds)) * np.hypot(np.array(deviations), own)[:, None]
        images = 2 * own**2 / seeds * rng.chisquare(71, runs) / 71
        noise, difference = noise_of(images, of_seeds.var(axis=2, ddof=1) / seeds, seeds, own), of_seeds.mean(axis=2)
        for alpha in (0.05, 0.05 / 21):
            false = (np.abs(difference @ [-1, 1]) > half_width(noise, alpha)).mean()
            assert false <= alpha + 3 * math.sqrt(alpha / runs)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("deviations", [(0.3, 2.0), (1.0, 1.0), (0.0, 10.0)])
@pytest.mark.parametrize("arms", [4, 7])
def test_some_pair_of_many_equal_methods_is_claimed_in_one_of_twenty_at_most(
    seeds: int, deviations: tuple[float, float], arms: int
) -> None:
    runs, own = 4000, 0.3
    of_seeds = RNG(seeds).normal(0, 1, (runs, arms, seeds)) * np.hypot(np.resize(deviations, arms), own)[:, None]
    a, b = np.array(list(combinations(range(arms), 2))).T
    variances, means = of_seeds.var(axis=2, ddof=1) / seeds, of_seeds.mean(axis=2)
    images = np.full((runs, len(a)), 2 * own**2 / seeds)
    noise = noise_of(images, np.stack([variances[:, a], variances[:, b]], axis=2), seeds, own)
    false = (np.abs(means[:, b] - means[:, a]) > half_width(noise, 0.05, arms=arms)).any(axis=1).mean()
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_critical_values_of_many_arms_with_many_seeds_are_those_of_all_pairs() -> None:
    many = flat(*np.linspace(0, 1, 2000).tolist())
    noise = pair_noise(many, many, IMAGES)
    ratio = half_width(noise, 0.05, arms=7) / half_width(noise, 0.05)
    assert ratio[0] == pytest.approx(quantile(1e9, 0.05 / 21) / quantile(1e9), rel=1e-3)


def test_equal_deviations_are_told_from_unequal_ones() -> None:
    rng, counts = RNG(0), np.full(4, 5)
    equal = [equal_deviation_p(rng.normal(0, 1, (4, 5)).var(axis=1, ddof=1), counts, draws=500) for _ in range(300)]
    assert np.mean(np.array(equal) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert equal_deviation_p(np.array([0.09, 0.09, 0.09, 4.0]), counts) < 0.01
    assert equal_deviation_p(np.zeros(4), counts) == 1
