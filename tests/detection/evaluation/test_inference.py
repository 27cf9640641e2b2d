"""Mirrors inference.py, jackknife.py and claims.py, on means over images and against a double bootstrap."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from detection.evaluation.claims import discoveries, family, is_discovered, single_level, step_down
from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample, Statistic, image_sets, jackknife

RNG = np.random.default_rng
IMAGES = 40
AP = "bbox.AP"
P = np.array([0.01, 0.04, np.nan, 0.02, 0.5])


def means(values: np.ndarray, *, names: Sequence[str] = (), images: int | None = None, step: float = 0.0) -> Statistic:
    """The weighted means of ``values`` (N, M), rounded to ``step``."""

    def compute(weights: np.ndarray) -> np.ndarray:
        found = weights @ values / weights.sum(axis=1, keepdims=True)
        return np.round(found / step) * step if step else found

    count, width = values.shape
    known = np.full(width, count if images is None else images)
    return Statistic(names=tuple(names or map(str, range(width))), compute=compute, images=known)


def sample(*figures: np.ndarray, names: Sequence[str] = (AP,), images: int | None = None) -> Sample:
    """One seed whose figures are means of numbers per image (N,)."""
    return jackknife(means(np.stack(figures, axis=1), names=names, images=images), len(figures[0]))


def seeds(rng: np.random.Generator, mean: float, *, count: int, deviation: float, own: float = 0.1) -> list[Sample]:
    """Trainings of one method: a deviation of each seed, and noise of its own on each image."""
    return [sample(mean + rng.normal(0, deviation) + rng.normal(0, own, IMAGES)) for _ in range(count)]


def test_the_variance_of_a_mean_is_the_textbooks_also_from_halves() -> None:
    values = RNG(0).normal(0, [1.0, 3.0], (50, 2))
    found = jackknife(means(values), 50)
    np.testing.assert_allclose(found.values, values.mean(axis=0))
    np.testing.assert_allclose(found.influence.T @ found.influence, np.cov(values.T) / 50)
    # Steps are coarse for one image and fine for half of them, as AP is by its 101 recalls.
    for count, step, rel in ((507, 0.0, 0.03), (400, 0.005, 0.1)):
        influence = jackknife(means(RNG(1).normal(0, 1, (count, 300)), step=step), count).influence
        assert influence.shape == (100, 300)
        assert (influence**2).sum(axis=0).mean() == pytest.approx(1 / count, rel=rel)
    sets = image_sets(507)  # which lack half of the images, or one
    assert sets.shape == (100, 507)
    assert set(sets.sum(axis=1).tolist()) == {253}
    assert abs(np.corrcoef(sets[0], sets[1])[0, 1]) < 0.2
    np.testing.assert_array_equal(image_sets(3), [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    with pytest.raises(ValueError, match="takes at least 2 images, got 1"):
        jackknife(means(values[:1]), 1)


def test_a_figure_without_a_value_on_some_halves_has_a_variance() -> None:
    plain = means(RNG(0).normal(0, 1, (200, 1)))

    def some(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, :2].any(axis=1, keepdims=True), plain.compute(weights), np.nan)

    influence = jackknife(Statistic(names=("some",), compute=some, images=np.array([2])), 200).influence
    assert np.isfinite(influence).all()
    assert (influence**2).sum() > 0


def test_corrections_by_hand() -> None:
    # 4 x 0.01, 3 x 0.02, 2 x 0.04 and 0.5.
    np.testing.assert_allclose(step_down(P), [0.04, 0.08, np.nan, 0.06, 0.5])
    np.testing.assert_allclose(step_down(np.array([0.03, 0.02])), [0.04, 0.04])  # never below a smaller one's
    # 4 / 1 x 0.01, 4 / 2 x 0.02, 4 / 3 x 0.04 and 0.5; never above a larger one's.
    np.testing.assert_allclose(discoveries(P), [0.04, 4 / 3 * 0.04, np.nan, 0.04, 0.5])
    nothing = np.full(3, np.nan)
    assert np.isnan([step_down(nothing), discoveries(nothing)]).all()
    assert step_down(np.empty(0)).shape == (0,)
    assert single_level(nothing, 0.05, discovered=True) == 0.05
    assert single_level(P, 0.05, discovered=False) == pytest.approx(0.05 / 4)
    level = single_level(P, 0.05, discovered=True)  # intervals leave out zero where a discovery is
    np.testing.assert_array_equal(level >= P, discoveries(P) <= 0.05)
    equal = RNG(0).random((4000, 21))  # variants of which a pair is rarely claimed
    assert np.mean([(step_down(row) <= 0.05).any() for row in equal]) == pytest.approx(0.05, abs=0.012)
    keys = [AP, "bbox.per_class.a.b.AP50", "tide.Cls", "tide.AP50"]  # which figures are claimed together
    assert [*map(family, keys)] == [AP, "bbox.per_class.*.AP50", "tide.*", "tide.AP50"]
    assert [*map(is_discovered, keys)] == [False, True, True, False]


def test_values_are_means_over_seeds_and_pairs_are_second_less_first() -> None:
    arms = {name: seeds(RNG(i), 0.1 * i, count=2, deviation=0.0) for i, name in enumerate("abc")}
    found = compare_samples(arms)
    mean = {name: np.mean([seed.values[0] for seed in arm]) for name, arm in arms.items()}
    assert found.variants["b"].detectors[AP].value == pytest.approx(mean["b"])
    gaps = {pair.a + pair.b: pair.detectors[AP].value for pair in found.pairs}
    assert gaps == pytest.approx({a + b: mean[b] - mean[a] for a, b in ("ab", "ac", "bc")})
    assert (found.blocks, found.pooling) == (IMAGES, None)


def test_a_gap_far_above_the_noise_is_proven_none_is_not_and_one_seed_says_nothing_of_methods() -> None:
    arms = {name: seeds(RNG(i), 0.5 + 0.2 * i, count=3, deviation=0.005) for i, name in enumerate("ab")}
    for variants, proven in ((arms, True), ({"a": arms["a"], "b": arms["a"]}, False)):
        (pair,) = compare_samples(variants).pairs
        assert pair.methods is not None
        for claim in (pair.methods[AP], pair.detectors[AP]):
            assert claim.proven is proven
            assert (
                0 < claim.low < claim.value < claim.high if proven else (claim.value, claim.p) == pytest.approx((0, 1))
            )
    found = compare_samples({"a": arms["a"][:1], "b": arms["b"]})
    assert (found.pairs[0].methods, found.pairs[0].missing) == (None, "a second seed of a")
    assert found.pairs[0].detectors[AP].proven
    assert [found.variants[name].methods is None for name in "ab"] == [True, False]


def test_claims_hold_for_all_pairs_together_and_are_proven_step_by_step() -> None:
    rng = RNG(0)
    arms = {str(i): [sample(rng.normal(0.11 * i, 0.3, IMAGES))] for i in range(6)}
    few = compare_samples({name: arms[name] for name in "01"}).pairs[0].detectors[AP]
    claims = [pair.detectors[AP] for pair in compare_samples(arms).pairs]
    assert claims[0].high - claims[0].low > 1.3 * (few.high - few.low)
    assert claims[0].p >= few.p
    assert any(claim.proven and claim.low == 0 for claim in claims)  # by Holm, not by Bonferroni: on one side
    for claim in claims:
        assert claim.proven == (claim.p <= 0.05)
        assert not (claim.proven and claim.low < 0 < claim.high)


def test_classes_have_a_false_discovery_rate_over_all_pairs_and_none_in_few_images() -> None:
    names, rng = [f"bbox.per_class.{number}.AP" for number in range(20)], RNG(0)
    shift = np.where(np.arange(20) < 5, 0.5, 0)[:, None]
    arms = {name: [sample(*(rng.normal(0, 0.5, (20, IMAGES)) + i * shift), names=names)] for i, name in enumerate("ab")}
    claims = compare_samples(arms).pairs[0].detectors
    assert all(claims[key].proven for key in names[:5])
    for key in names:
        assert claims[key].proven == (claims[key].low > 0 or claims[key].high < 0)
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
        drawn = {name: arm[rng.integers(len(arm), size=len(arm))][:, images].mean() for name, arm in arms.items()}
        found[draw] = drawn["b"] - drawn["a"]
    return found


@pytest.mark.parametrize("deviation", [0.0, 0.3])
def test_the_noise_is_that_of_a_brute_force_double_bootstrap(deviation: float) -> None:
    rng, count = RNG(1), 6
    hard, parts = rng.normal(0, 1, IMAGES), ((deviation, (count, 1)), (0.4, IMAGES), (0.4, (count, IMAGES)))
    arms = {name: sum((rng.normal(0, *part) for part in parts), hard) for name in "ab"}  # what is hard cancels
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
    cases: list[tuple[Any, Any, str]] = [
        ({}, {}, "no variants"),
        ({"a": one, "b": []}, {}, "variant b has no runs, expected one or more"),
        ({"a": one}, {"confidence": 95}, r"confidence is a fraction between 0 and 1, got 95; 0\.95 is usual"),
        ({"a": one, "b": [sample(RNG(0).normal(0, 1, 30))]}, {}, "samples of other figures or of other sets"),
        ({"a": one, "b": one}, {"pool": True}, "needs a variant with at least two seeds"),
    ]
    for arms, options, message in cases:
        with pytest.raises(ValueError, match=message):
            compare_samples(arms, **options)
