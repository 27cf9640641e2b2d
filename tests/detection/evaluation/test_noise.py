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

IMAGES = np.array([40])


def quantile(freedom: float, alpha: float = 0.05) -> float:
    return -float(stdtrit(freedom, alpha / 2))


def arm(per_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, 1) and influence (n, N, 1) of seeds whose figure is the mean over images (n, N)."""
    n = per_image.shape[1]
    centred = per_image - per_image.mean(axis=1, keepdims=True)
    return per_image.mean(axis=1)[:, None], centred[..., None] / math.sqrt(n * (n - 1))


def flat(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Seeds whose figure is the same on every image."""
    return arm(np.repeat(np.array(values)[:, None], 40, axis=1))


def test_of_detectors_it_is_students_t_on_the_differences_of_images() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (1, 40)), rng.normal(0.4, 1, (1, 40))
    noise = pair_noise(arm(a), arm(b), IMAGES)
    expected: Any = ttest_1samp((b - a)[0], 0)
    found = images_p_value(noise, np.array([(b - a).mean()]))
    assert found[0] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert images_half_width(noise, 0.05)[0] == pytest.approx((interval.high - interval.low) / 2)


def test_of_methods_without_noise_of_images_each_arm_has_its_own_quantile() -> None:
    noise = pair_noise(flat([0.1, 0.3]), flat([0.2, 0.5, 0.5]), IMAGES)
    expected = math.sqrt(quantile(1) ** 2 * 0.02 / 2 + quantile(2) ** 2 * 0.03 / 3)
    assert half_width(noise, 0.05)[0] == pytest.approx(expected)


def test_what_a_seed_does_to_single_images_counts_once() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0, 1, (3, 200_000))
    shared = rng.normal(0, 2, 200_000)
    noise = arm_noise(*arm(shared + own), np.array([200_000]))
    assert noise.own[0] * 200_000 == pytest.approx(1 / 3, rel=0.02)
    assert noise.shared[0] * 200_000 == pytest.approx(4, rel=0.02)
    assert noise.images[0] == pytest.approx(noise.own[0] + noise.shared[0])


def test_seeds_that_agree_by_luck_do_not_narrow_the_interval_below_that_of_detectors() -> None:
    rng = np.random.default_rng(0)
    values, influence = arm(rng.normal(0, 1, (2, 40)))
    noise = arm_noise(np.full_like(values, 0.5), influence, IMAGES)
    assert noise.seeds[0, 0] == 0
    assert half_width(noise, 0.05)[0] > images_half_width(noise, 0.05)[0]


def test_a_single_seed_says_nothing_of_methods() -> None:
    noise = pair_noise(flat([0.1]), flat([0.9, 0.8]), IMAGES)
    assert np.isnan(half_width(noise, 0.05)).all()
    assert np.isnan(p_value(noise, np.array([0.75]))).all()
    assert np.isfinite(images_p_value(noise, np.array([0.75]))).all()


def test_the_p_value_is_where_the_interval_ends_at_zero() -> None:
    rng = np.random.default_rng(0)
    noise = pair_noise(arm(rng.normal(0, 1, (3, 40))), arm(rng.normal(0, 1, (5, 40))), IMAGES)
    for alpha in (0.5, 0.05, 0.05 / 21):
        assert p_value(noise, half_width(noise, alpha))[0] == pytest.approx(alpha)


def test_few_images_have_no_p_value_and_some_no_small_one() -> None:
    values = np.full((1, 40), 0.5)
    for images, expected in ((5, None), (8, 2.0**-7)):
        found = images_p_value(pair_noise(arm(0 * values), arm(values), np.array([images])), np.array([0.5]))[0]
        assert math.isnan(found) if expected is None else found == pytest.approx(expected)


def test_no_difference_is_no_claim_without_noise_too() -> None:
    noise = pair_noise(flat([0.5, 0.5]), flat([0.5, 0.5]), IMAGES)
    assert images_p_value(noise, np.zeros(1))[0] == 1
    assert p_value(noise, np.zeros(1))[0] == pytest.approx(1)


def drawn(seeds: int, deviations: tuple[float, float], own: float, runs: int) -> tuple[Noise, np.ndarray]:
    """The noise (runs,) and the difference of equal methods: normal seeds, images that are a seed's own."""
    rng = np.random.default_rng(seeds)
    of_seeds = rng.normal(0, 1, (runs, 2, seeds)) * np.hypot(np.array(deviations), own)[:, None]
    noise = Noise(
        images=2 * own**2 / seeds * rng.chisquare(71, runs) / 71,
        shared=np.zeros(runs),
        own=np.full(runs, 2 * own**2 / seeds),
        seeds=of_seeds.var(axis=2, ddof=1) / seeds,
        seed_freedom=np.array([seeds - 1.0, seeds - 1.0]),
        image_freedom=np.array(71.0),
    )
    return noise, of_seeds.mean(axis=2) @ [-1, 1]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("deviations", [(0.3, 2.0), (1.0, 1.0), (0.0, 3.0)])
@pytest.mark.parametrize("own", [0.05, 1.0])
def test_equal_methods_are_claimed_in_one_of_twenty_at_most(
    seeds: int, deviations: tuple[float, float], own: float
) -> None:
    noise, difference = drawn(seeds, deviations, own, 20_000)
    for alpha in (0.05, 0.05 / 21):
        false = (np.abs(difference) > half_width(noise, alpha)).mean()
        assert false <= alpha + 3 * math.sqrt(alpha / 20_000)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("deviations", [(0.3, 2.0), (1.0, 1.0), (0.0, 10.0)])
@pytest.mark.parametrize("arms", [4, 7])
def test_some_pair_of_many_equal_methods_is_claimed_in_one_of_twenty_at_most(
    seeds: int, deviations: tuple[float, float], arms: int
) -> None:
    rng, runs, own = np.random.default_rng(seeds), 4000, 0.3
    of_seeds = rng.normal(0, 1, (runs, arms, seeds)) * np.hypot(np.resize(deviations, arms), own)[:, None]
    a, b = np.array(list(combinations(range(arms), 2))).T
    variances = of_seeds.var(axis=2, ddof=1) / seeds
    noise = Noise(
        images=np.full((runs, len(a)), 2 * own**2 / seeds),
        shared=np.zeros((runs, len(a))),
        own=np.full((runs, len(a)), 2 * own**2 / seeds),
        seeds=np.stack([variances[:, a], variances[:, b]], axis=2),
        seed_freedom=np.array([seeds - 1.0, seeds - 1.0]),
        image_freedom=np.array(71.0),
    )
    means = of_seeds.mean(axis=2)
    false = (np.abs(means[:, b] - means[:, a]) > half_width(noise, 0.05, arms=arms)).any(axis=1).mean()
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_critical_values_of_many_arms_with_many_seeds_are_those_of_all_pairs() -> None:
    arm = flat(np.linspace(0, 1, 2000).tolist())
    noise = pair_noise(arm, arm, IMAGES)
    ratio = half_width(noise, 0.05, arms=7) / half_width(noise, 0.05)
    assert ratio[0] == pytest.approx(quantile(1e9, 0.05 / 21) / quantile(1e9), rel=1e-3)


def test_pooled_seeds_have_the_degrees_of_freedom_of_all_arms() -> None:
    noise = pool_seeds(pair_noise(flat([0.1, 0.3]), flat([0.2, 0.5]), IMAGES), np.array([0.04]), 7, np.array([2, 2]))
    assert half_width(noise, 0.05)[0] == pytest.approx(quantile(7) * 0.2)


def test_equal_deviations_are_told_from_unequal_ones() -> None:
    rng = np.random.default_rng(0)
    counts = np.full(4, 5)
    equal = [equal_deviation_p(rng.normal(0, 1, (4, 5)).var(axis=1, ddof=1), counts, draws=500) for _ in range(300)]
    assert np.mean(np.array(equal) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert equal_deviation_p(np.array([0.09, 0.09, 0.09, 4.0]), counts) < 0.01
    assert equal_deviation_p(np.zeros(4), counts) == 1
