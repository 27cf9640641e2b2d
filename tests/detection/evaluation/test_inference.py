"""Mirrors detection/evaluation/inference.py, on means over images, and against a brute-force double bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample, Statistic, jackknife

RNG = np.random.default_rng
IMAGES = 40
AP = "bbox.AP"


def sample(*figures: np.ndarray, names: Sequence[str] = (AP,), images: int | None = None) -> Sample:
    """One seed whose figures are means of numbers per image (N,)."""
    values = np.stack(figures, axis=1)
    statistic = Statistic(
        names=tuple(names),
        compute=lambda weights: weights @ values / weights.sum(axis=1, keepdims=True),
        images=np.full(len(names), len(values) if images is None else images),
    )
    return jackknife(statistic, len(values))


def seeds(rng: np.random.Generator, mean: float, *, count: int, deviation: float, own: float = 0.1) -> list[Sample]:
    """Trainings of one method: a deviation of each seed, and noise of its own on each image."""
    return [sample(mean + rng.normal(0, deviation) + rng.normal(0, own, IMAGES)) for _ in range(count)]


def test_values_are_means_over_seeds_and_pairs_are_second_less_first() -> None:
    arms = {name: seeds(RNG(i), 0.1 * i, count=2, deviation=0.0) for i, name in enumerate("abc")}
    found = compare_samples(arms)
    means = {name: np.mean([seed.values[0] for seed in arm]) for name, arm in arms.items()}
    assert found.variants["b"].detectors[AP].value == pytest.approx(means["b"])
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in found.pairs:
        assert pair.detectors[AP].value == pytest.approx(means[pair.b] - means[pair.a])
    assert (found.blocks, found.pooling) == (IMAGES, None)


def test_a_gap_far_above_the_noise_is_proven_and_none_is_not() -> None:
    arms = {name: seeds(RNG(i), 0.5 + 0.2 * i, count=3, deviation=0.005) for i, name in enumerate("ab")}
    for variants, proven in ((arms, True), ({"a": arms["a"], "b": arms["a"]}, False)):
        (pair,) = compare_samples(variants).pairs
        assert pair.methods is not None
        for claim in (pair.methods[AP], pair.detectors[AP]):
            assert claim.proven is proven
            assert (
                0 < claim.low < claim.value < claim.high if proven else (claim.value, claim.p) == pytest.approx((0, 1))
            )


def test_with_one_seed_nothing_is_said_of_methods() -> None:
    arms = {"a": seeds(RNG(0), 0.5, count=1, deviation=0), "b": seeds(RNG(1), 0.9, count=2, deviation=0)}
    found = compare_samples(arms)
    assert (found.pairs[0].methods, found.pairs[0].missing) == (None, "a second seed of a")
    assert found.pairs[0].detectors[AP].proven
    assert found.variants["a"].methods is None
    assert found.variants["b"].methods is not None


def test_claims_hold_for_all_pairs_together() -> None:
    rng = RNG(0)
    arms = {str(i): [sample(rng.normal(0, 1, IMAGES))] for i in range(7)}
    few = compare_samples({name: arms[name] for name in ("0", "1")}).pairs[0].detectors[AP]
    wide = compare_samples(arms).pairs[0].detectors[AP]
    assert wide.high - wide.low > 1.3 * (few.high - few.low)
    assert wide.p >= few.p


def test_what_is_proven_step_by_step_has_an_interval_on_one_side() -> None:
    rng = RNG(0)
    arms = {str(i): [sample(rng.normal(0.11 * i, 0.3, IMAGES))] for i in range(6)}
    claims = [pair.detectors[AP] for pair in compare_samples(arms).pairs]
    assert any(claim.proven and claim.low == 0 for claim in claims)  # by Holm, not by Bonferroni
    for claim in claims:
        assert claim.proven == (claim.p <= 0.05)
        assert not (claim.proven and claim.low < 0 < claim.high)


def test_classes_have_a_false_discovery_rate_over_all_pairs() -> None:
    names, rng = [f"bbox.per_class.{number}.AP" for number in range(20)], RNG(0)
    shift = np.where(np.arange(20) < 5, 0.5, 0)[:, None]
    arms = {name: [sample(*(rng.normal(0, 0.5, (20, IMAGES)) + i * shift), names=names)] for i, name in enumerate("ab")}
    claims = compare_samples(arms).pairs[0].detectors
    assert all(claims[key].proven for key in names[:5])
    for key in names:
        assert claims[key].proven == (claims[key].low > 0 or claims[key].high < 0)


def test_a_class_in_few_images_has_no_interval() -> None:
    arms = {name: [sample(RNG(i).normal(i, 0.1, IMAGES), images=5)] for i, name in enumerate("ab")}
    claim = compare_samples(arms).pairs[0].detectors[AP]
    assert claim.value == pytest.approx(1, abs=0.1)
    assert not claim.proven
    assert np.isnan([claim.p, claim.low]).all()


def test_pooling_finds_what_two_seeds_alone_do_not() -> None:
    arms = {str(i): seeds(RNG(i), 0.5 + 0.06 * i, count=2, deviation=0.01) for i in range(7)}
    alone, pooled = compare_samples(arms), compare_samples(arms, pool=True)
    unequal = compare_samples(arms | {"7": seeds(RNG(7), 0.5, count=2, deviation=5.0)}, pool=True).pooling
    assert pooled.pooling is not None
    assert unequal is not None
    assert pooled.pooling.freedom == 7
    deviation = math.sqrt(np.mean([np.var([seed.values[0] for seed in arm], ddof=1) for arm in arms.values()]))
    assert pooled.pooling.deviation[AP] == pytest.approx(deviation)
    assert unequal.equal_p[AP] < 0.01 < 0.05 < pooled.pooling.equal_p[AP]
    proven = [sum(pair.methods[AP].proven for pair in found.pairs if pair.methods) for found in (alone, pooled)]
    assert proven[0] < proven[1]


def double_bootstrap(arms: Mapping[str, np.ndarray], draws: int) -> np.ndarray:
    """Differences b - a (draws,) of means over drawn images and over drawn seeds; arms are (n, N)."""
    rng, found = RNG(5), np.empty(draws)
    for draw in range(draws):
        images = rng.integers(IMAGES, size=IMAGES)
        means = {name: arm[rng.integers(len(arm), size=len(arm))][:, images].mean() for name, arm in arms.items()}
        found[draw] = means["b"] - means["a"]
    return found


@pytest.mark.parametrize("deviation", [0.0, 0.3])
def test_the_noise_is_that_of_a_brute_force_double_bootstrap(deviation: float) -> None:
    rng, count = RNG(1), 6
    hard = rng.normal(0, 1, IMAGES)  # cancels
    arms = {
        name: sum((rng.normal(0, *of) for of in ((deviation, (count, 1)), (0.4, IMAGES), (0.4, (count, IMAGES)))), hard)
        for name in "ab"
    }
    (pair,) = compare_samples({name: [sample(seed) for seed in arm] for name, arm in arms.items()}).pairs
    noise = pair.noise[AP]
    # The bootstrap of n seeds has their variance times (n - 1) / n, and counts what seeds do to images in both draws.
    expected = noise.images + noise.seeds.sum() * (count - 1) / count
    assert double_bootstrap(arms, 4000).var() == pytest.approx(float(expected), rel=0.1)
    detectors = {name: arm.mean(axis=0, keepdims=True) for name, arm in arms.items()}
    assert double_bootstrap(detectors, 4000).std() == pytest.approx(math.sqrt(float(noise.images)), rel=0.08)


@pytest.mark.slow
def test_methods_that_are_equal_are_claimed_rarely_with_very_unequal_seeds() -> None:
    rng, false = RNG(0), 0
    for _ in range(300):
        deviations = zip("abcd", (0.02, 0.003) * 2, strict=True)
        arms = {name: seeds(rng, 0.5, count=2, deviation=deviation, own=0.005) for name, deviation in deviations}
        false += any((pair.methods or {})[AP].p <= 0.05 for pair in compare_samples(arms).pairs)
    assert false <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_impossible_requests_are_named() -> None:
    one = [sample(RNG(0).normal(0, 1, IMAGES))]
    for arms, options, message in (
        ({}, {}, "no variants"),
        ({"a": one, "b": []}, {}, "variant b has no runs, expected one or more"),
        ({"a": one}, {"confidence": 95}, r"confidence is a fraction between 0 and 1, got 95; 0\.95 is usual"),
        ({"a": one, "b": [sample(RNG(0).normal(0, 1, 30))]}, {}, "samples of other figures or of other sets"),
        ({"a": one, "b": one}, {"pool": True}, "takes a variant with two seeds or more"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_samples(arms, **options)
