"""Mirrors detection/evaluation/heads.py, on means over images, and in a world without any interaction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
from scipy.special import ndtri, stdtrit

from detection.evaluation.heads import AcrossHeads, compare_heads, gains
from detection.evaluation.inference import Claim, Contrast, compare_samples
from detection.evaluation.jackknife import Sample

IMAGES = 40
HEADS = {head: {variant: f"{head}.{variant}" for variant in ("one", "two")} for head in "xyz"}
ARMS = [arm for named in HEADS.values() for arm in named.values()]


def sample(per_image: np.ndarray) -> Sample:
    """One seed whose figure is the mean over images (N,)."""
    n = len(per_image)
    influence = (per_image - per_image.mean()) / math.sqrt(n * (n - 1))
    values = per_image.mean(keepdims=True)
    return Sample(names=("bbox.AP",), values=values, influence=influence[:, None], images=np.array([n]))


def world(
    rng: np.random.Generator, gain: float, *, seeds: int = 3, deviation: float = 0.01, **means: float
) -> dict[str, list[Sample]]:
    """Trainings of every arm: images are hard for all, for an arm and for a seed, and a seed shifts its figure."""
    hard, own, found = rng.normal(0, 0.2, IMAGES), 0.02, {}
    for place, named in enumerate(HEADS.values()):
        for variant, arm in named.items():  # the gain is the same under every head
            mean = means.get(arm.replace(".", "_"), 0.1 * place + gain * (variant == "two"))
            shared = mean + hard + rng.normal(0, own, IMAGES)
            drawn = [(rng.normal(0, deviation), rng.normal(0, own, IMAGES)) for _ in range(seeds)]
            found[arm] = [sample(shared + shift + noise) for shift, noise in drawn]
    return found


def constant(figures: Mapping[str, list[float]]) -> dict[str, list[Sample]]:
    """Seeds of arms whose images add nothing."""
    return {arm: [sample(np.full(IMAGES, value)) for value in values] for arm, values in figures.items()}


def claim(contrast: Contrast) -> Claim:
    assert contrast.methods is not None
    return contrast.methods["bbox.AP"]


def test_values_are_the_mean_of_the_gains_and_their_differences() -> None:
    samples = world(np.random.default_rng(0), 0.05)
    found = compare_heads(samples, HEADS)
    mean = {arm: np.mean([seed.values[0] for seed in seeds]) for arm, seeds in samples.items()}
    gain = {head: mean[named["two"]] - mean[named["one"]] for head, named in HEADS.items()}
    assert [(i.first, i.second) for i in found.interactions] == list(combinations("xyz", 2))
    for interaction in found.interactions:
        assert claim(interaction.contrast).value == pytest.approx(gain[interaction.second] - gain[interaction.first])
    assert found.means[0].heads == ("x", "y", "z")
    assert claim(found.means[0].contrast).value == pytest.approx(np.mean([*gain.values()]))


def test_an_interval_by_hand() -> None:
    """Three seeds of each arm: their variance, with Student's quantile of 2 degrees of freedom."""
    figures = {"x.one": [0.1, 0.2, 0.3], "x.two": [0.4, 0.5, 0.6], "y.one": [0.3, 0.3, 0.3], "y.two": [0.5, 0.5, 0.8]}
    samples, heads = constant(figures), {head: HEADS[head] for head in "xy"}
    found = compare_heads(samples, heads)
    (interaction,), (mean,) = found.interactions, found.means
    variances = [np.var(values, ddof=1) for values in figures.values()]
    half = -stdtrit(2, 0.025) * math.sqrt(sum(variances) / 3)  # a family of one
    assert (claim(interaction.contrast).value, claim(interaction.contrast).high) == pytest.approx((0.0, half))
    assert claim(mean.contrast).high - claim(mean.contrast).value == pytest.approx(half / 2)
    pooled = compare_heads(samples, heads, pool=True)
    expected = -stdtrit(8, 0.025) * math.sqrt(np.mean(variances)) * math.sqrt(4 / 3)
    assert claim(pooled.interactions[0].contrast).high == pytest.approx(expected)
    # Three claims about six arms hold together, and no difference of two gains is larger than 2.
    found = compare_heads(constant({arm: [0.1, 0.2, 0.3] for arm in ARMS}), HEADS)
    critical = max(-stdtrit(2, 0.025 / 3), -ndtri(0.025 / 3))
    assert claim(found.interactions[0].contrast).high == pytest.approx(min(critical * math.sqrt(4 * 0.01 / 3), 2.0))


def test_a_gain_under_one_head_alone_is_an_interaction() -> None:
    found = compare_heads(world(np.random.default_rng(0), 0.0, deviation=0.002, z_two=0.9), HEADS)
    assert [claim(i.contrast).proven for i in found.interactions] == [False, True, True]


def test_missing_seeds_and_missing_variants() -> None:
    samples = world(np.random.default_rng(0), 0.0)
    samples["y.two"] = samples["y.two"][:1]
    found = compare_heads(samples, HEADS)
    assert found.means[0].contrast.methods is None  # with one seed it is of detectors
    assert found.means[0].contrast.missing == "a second seed of y.two"
    assert [i.contrast.methods is None for i in found.interactions] == [True, False, True]
    del samples["y.two"]
    found = compare_heads(samples, HEADS)
    assert found.means[0].heads == ("x", "z")
    assert [(i.first, i.second) for i in found.interactions] == [("x", "z")]
    assert compare_heads({"x.one": samples["x.one"]}, HEADS) == AcrossHeads(means=(), interactions=())


@pytest.mark.parametrize("pool", [False, True])
def test_without_an_interaction_heads_are_rarely_said_to_differ(pool: bool) -> None:
    """Gains, and AP of heads, are far from zero; in 100 worlds 5 % and three deviations are 11 at most."""
    rng, missed, mean_missed = np.random.default_rng(2), 0, 0
    for _ in range(100):
        found = compare_heads(world(rng, 0.05, seeds=2), HEADS, pool=pool)
        missed += any(claim(i.contrast).proven for i in found.interactions)
        mean = claim(found.means[0].contrast)
        mean_missed += not mean.low <= 0.05 <= mean.high
    assert max(missed, mean_missed) <= 11


def test_claims_of_gains_are_those_of_pairs_under_one_head() -> None:
    assert gains(HEADS, ["x.one", "y.one", "y.two"]) == [("y.one", "y.two")]
    samples = world(np.random.default_rng(0), 0.05)
    found, every = compare_samples(samples, pairs=gains(HEADS, ARMS)), compare_samples(samples)
    assert [(pair.a, pair.b) for pair in found.pairs] == [("x.one", "x.two"), ("y.one", "y.two"), ("z.one", "z.two")]
    same = next(pair for pair in every.pairs if (pair.a, pair.b) == ("x.one", "x.two"))
    (few, many) = (pair.methods["bbox.AP"] for pair in (found.pairs[0], same) if pair.methods)
    assert few.value == many.value
    assert few.high - few.low < many.high - many.low  # three claims instead of fifteen
