"""Mirrors noise.py and planning.py: known values, and simulated experiments of a world that is known."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_1samp

from detection.evaluation import noise as noises
from detection.evaluation import planning
from detection.evaluation.noise import Noise, half_width, images_half_width, images_p_value, p_value, pair_noise
from detection.evaluation.planning import Design, SeedNoise, visible_gap

RNG = np.random.default_rng
IMAGES = np.array([40])
NOISE = SeedNoise(seed=0.01, shared=0.05, own=0.1)
DESIGN = Design(variants=2, seeds=5, images=100)


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
    pair = pair_noise(flat(0.1, 0.3), flat(0.2, 0.5), IMAGES)
    pooled = noises.pool_seeds(pair, np.array([0.04]), 7, np.array([2, 2]))
    assert half_width(pooled, 0.05)[0] == pytest.approx(quantile(7) * 0.2)  # the degrees of freedom of all arms
    many = flat(*np.linspace(0, 1, 2000).tolist())  # critical values of many arms are those of all pairs
    noise = pair_noise(many, many, IMAGES)
    ratio = half_width(noise, 0.05, arms=7) / half_width(noise, 0.05)
    assert ratio[0] == pytest.approx(quantile(1e9, 0.05 / 21) / quantile(1e9), rel=1e-3)


def test_what_a_seed_does_to_single_images_counts_once() -> None:
    count, rng = 200_000, RNG(0)
    noise = noises.arm_noise(*arm(rng.normal(0, 1, (3, count)) + rng.normal(0, 2, count)), np.array([count]))
    assert (noise.own[0] * count, noise.shared[0] * count) == pytest.approx((1 / 3, 4), rel=0.02)
    assert noise.images[0] == pytest.approx(noise.own[0] + noise.shared[0])
    # Seeds that agree by luck do not narrow the interval below that of detectors.
    values, influence = arm(RNG(0).normal(0, 1, (2, 40)))
    noise = noises.arm_noise(np.full_like(values, 0.5), influence, IMAGES)
    assert noise.seeds[0, 0] == 0
    assert half_width(noise, 0.05)[0] > images_half_width(noise, 0.05)[0]


def test_the_p_value_is_where_the_interval_ends_at_zero_and_too_few_seeds_or_images_have_none() -> None:
    noise = pair_noise(arm(RNG(0).normal(0, 1, (3, 40))), arm(RNG(1).normal(0, 1, (5, 40))), IMAGES)
    for alpha in (0.5, 0.05, 0.05 / 21):
        assert p_value(noise, half_width(noise, alpha))[0] == pytest.approx(alpha)
    none = pair_noise(flat(0.5, 0.5), flat(0.5, 0.5), IMAGES)  # no difference is no claim without noise too
    assert images_p_value(none, np.zeros(1))[0] == 1
    assert p_value(none, np.zeros(1))[0] == pytest.approx(1)
    noise = pair_noise(flat(0.1), flat(0.9, 0.8), IMAGES)  # a single seed says nothing of methods
    assert np.isnan([half_width(noise, 0.05), p_value(noise, np.array([0.75]))]).all()
    assert np.isfinite(images_p_value(noise, np.array([0.75]))).all()
    for images, expected in ((5, math.nan), (8, 2.0**-7)):
        found = images_p_value(pair_noise(flat(0), flat(0.5), np.array([images])), np.array([0.5]))[0]
        assert found == pytest.approx(expected, nan_ok=True)


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
def test_a_pair_of_many_is_claimed_in_one_of_twenty_at_most(seeds: int, deviations, arms: int) -> None:
    runs, own = 4000, 0.3
    of_seeds = RNG(seeds).normal(0, 1, (runs, arms, seeds)) * np.hypot(np.resize(deviations, arms), own)[:, None]
    a, b = np.array(list(combinations(range(arms), 2))).T
    variances, means = of_seeds.var(axis=2, ddof=1) / seeds, of_seeds.mean(axis=2)
    images = np.full((runs, len(a)), 2 * own**2 / seeds)
    noise = noise_of(images, np.stack([variances[:, a], variances[:, b]], axis=2), seeds, own)
    false = (np.abs(means[:, b] - means[:, a]) > half_width(noise, 0.05, arms=arms)).any(axis=1).mean()
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_equal_deviations_are_told_from_unequal_ones() -> None:
    rng, counts, told = RNG(0), np.full(4, 5), noises.equal_deviation_p
    equal = [told(rng.normal(0, 1, (4, 5)).var(axis=1, ddof=1), counts, draws=500) for _ in range(300)]
    assert np.mean(np.array(equal) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert told(np.array([0.09, 0.09, 0.09, 4.0]), counts) < 0.01
    assert told(np.zeros(4), counts) == 1


def gap_of(**changes: int | bool) -> float:
    return visible_gap(NOISE, replace(DESIGN, **changes))


def test_the_visible_gap_is_claimed_in_8_of_10_experiments_of_the_noise_that_is_read_off_them() -> None:
    arms: Any = []
    rng, images, runs = RNG(1), DESIGN.images, 1000
    for mean in (0.0, gap_of()):
        seed, own = rng.normal(0, NOISE.seed, (runs, DESIGN.seeds, 1)), NOISE.own
        per_image = mean + seed + rng.normal(0, own, (runs, DESIGN.seeds, images))
        per_image += rng.normal(0, NOISE.shared / math.sqrt(2), (runs, 1, images))
        influence = np.moveaxis(per_image - per_image.mean(axis=2, keepdims=True), 0, 2)
        arms.append((per_image.mean(axis=2).T, influence / math.sqrt(images * (images - 1))))
    noise = pair_noise(arms[0], arms[1], np.full(runs, images))
    difference = arms[1][0].mean(axis=0) - arms[0][0].mean(axis=0)
    assert (difference > half_width(noise, 0.05)).mean() == pytest.approx(0.8, abs=0.04)
    found = planning.noise_of([noise.figure(run) for run in range(300)], DESIGN.images)
    assert found is not None
    assert (found.seed, found.shared) == pytest.approx((NOISE.seed, NOISE.shared), rel=0.1)
    assert found.own == pytest.approx(NOISE.own, rel=0.05)


def test_more_seeds_more_images_and_fewer_variants_show_smaller_gaps() -> None:
    assert max(gap_of(seeds=10), gap_of(images=400)) < gap_of() < gap_of(variants=7) < gap_of(seeds=1) == math.inf
    assert gap_of(variants=4, seeds=2, pool=True) < 0.2 * gap_of(variants=4, seeds=2)
    seeds, images = planning.seeds_for(0.02, NOISE, DESIGN), planning.images_for(0.025, NOISE, DESIGN)
    assert seeds is not None
    assert gap_of(seeds=seeds) <= 0.02 < gap_of(seeds=seeds - 1)  # just enough
    assert images is not None
    assert gap_of(images=images) <= 0.025 < gap_of(images=images // 2)
    assert planning.images_for(0.01, replace(NOISE, seed=0.05), DESIGN) is None  # no number helps against seeds
    assert planning.seeds_for(0.001, NOISE, DESIGN) is None
    # Of detectors it is quantile and power times the deviation.
    variances = {"images": np.array(0.0004), "shared": np.array(0.0004), "own": np.array(0.0)}
    noise = Noise(**variances, seeds=np.full(2, np.nan), seed_freedom=np.zeros(2), image_freedom=np.array(1e6))
    assert planning.visible_between_detectors(noise, 0.05) == pytest.approx((1.96 + 0.8416) * 0.02, rel=1e-3)
    assert planning.noise_of([noise], 100) is None
