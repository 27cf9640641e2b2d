"""Mirrors heads.py and verdicts.py, on means over images, and in a world without any interaction."""

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
from scipy.special import ndtri, stdtrit

from detection.evaluation.heads import AcrossHeads, Interaction, MeanGain, compare_heads, gains
from detection.evaluation.inference import Claim, Contrast, Pair, compare_samples
from detection.evaluation.jackknife import Sample
from detection.evaluation.verdicts import heads_verdict, pair_verdict

IMAGES = 40
HEADS = {head: {variant: f"{head}.{variant}" for variant in ("one", "two")} for head in "xyz"}
ARMS = [arm for named in HEADS.values() for arm in named.values()]
AP = "bbox.AP"


def sample(per_image: np.ndarray) -> Sample:
    """One seed whose figure is the mean over images (N,)."""
    n = len(per_image)
    influence = (per_image - per_image.mean())[:, None] / math.sqrt(n * (n - 1))
    return Sample(names=(AP,), values=per_image.mean(keepdims=True), influence=influence, images=np.array([n]))


def world(rng: np.random.Generator, gain: float, *, seeds: int = 3, deviation: float = 0.01, **means: float):
    """Trainings of every arm: images are hard for all, for an arm and for a seed, and a seed shifts its figure."""
    hard, own, found = rng.normal(0, 0.2, IMAGES), 0.02, {}
    for place, arm in enumerate(ARMS):  # the gain is the same under every head
        shared = means.get(arm.replace(".", "_"), 0.1 * (place // 2) + gain * (place % 2)) + hard
        shared = shared + rng.normal(0, own, IMAGES)
        drawn = [(rng.normal(0, deviation), rng.normal(0, own, IMAGES)) for _ in range(seeds)]
        found[arm] = [sample(shared + shift + noise) for shift, noise in drawn]
    return found


def constant(figures: Mapping[str, list[float]]) -> dict[str, list[Sample]]:
    """Seeds of arms whose images add nothing."""
    return {arm: [sample(np.full(IMAGES, value)) for value in values] for arm, values in figures.items()}


def claim(contrast: Contrast) -> Claim:
    assert contrast.methods is not None
    return contrast.methods[AP]


def test_values_are_the_mean_of_the_gains_and_their_differences() -> None:
    samples = world(np.random.default_rng(0), 0.05)
    found = compare_heads(samples, HEADS)
    mean = {arm: np.mean([seed.values[0] for seed in seeds]) for arm, seeds in samples.items()}
    gain = {head: mean[named["two"]] - mean[named["one"]] for head, named in HEADS.items()}
    crossed = {(i.first, i.second): claim(i.contrast).value for i in found.interactions}
    assert crossed == pytest.approx({(a, b): gain[b] - gain[a] for a, b in combinations("xyz", 2)})
    assert found.means[0].heads == ("x", "y", "z")
    assert claim(found.means[0].contrast).value == pytest.approx(np.mean([*gain.values()]))
    # Claims of gains are those of pairs under one head.
    pairs = [("x.one", "x.two"), ("y.one", "y.two"), ("z.one", "z.two")]
    assert gains(HEADS, ARMS) == pairs
    assert gains(HEADS, ["x.one", "y.one", "y.two"]) == [("y.one", "y.two")]
    own, every = compare_samples(samples, pairs=pairs), compare_samples(samples)
    assert [(pair.a, pair.b) for pair in own.pairs] == pairs
    same = next(pair for pair in every.pairs if (pair.a, pair.b) == pairs[0])
    few, many = ((pair.methods or {})[AP] for pair in (own.pairs[0], same))
    assert few.value == many.value
    assert few.high - few.low < many.high - many.low  # three claims instead of fifteen


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


def test_a_gain_under_one_head_alone_missing_seeds_and_missing_variants() -> None:
    found = compare_heads(world(np.random.default_rng(0), 0.0, deviation=0.002, z_two=0.9), HEADS)
    assert [claim(i.contrast).proven for i in found.interactions] == [False, True, True]
    samples = world(np.random.default_rng(0), 0.0)
    samples["y.two"] = samples["y.two"][:1]
    found = compare_heads(samples, HEADS)
    contrast = found.means[0].contrast  # with one seed it is of detectors
    assert (contrast.methods, contrast.missing) == (None, "a second seed of y.two")
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


PROVEN = Claim(0.05, 0.01, 0.09, 0.01, True)
LOST = Claim(-0.05, -0.09, -0.01, 0.01, True)
OPEN = Claim(0.01, -0.02, 0.04, 0.5, False)
UNKNOWN = Claim(0.01, math.nan, math.nan, math.nan, False)


def within(half: float) -> Claim:
    return Claim(0, -half, 0.005, 0.5, False)


def said(methods: Claim | None, detectors: Claim, visible: float = 0.031) -> str:
    of = {"detectors": {AP: detectors}, "methods": None if methods is None else {AP: methods}}
    pair = Pair(a="one", b="two", **of, missing=None if methods else "a second seed of one", noise={})
    return pair_verdict(pair, AP, visible=visible)


@pytest.mark.parametrize(
    ("own", "start", "contained"),
    [
        (PROVEN, "two is better than one", ["1.0 to 9.0 AP", "trained anew"]),
        (LOST, "one is better than two", ["1.0 to 9.0 AP", "trained anew"]),
        (OPEN, "no difference shown", ["trained anew", "3.1 AP"]),
        (UNKNOWN, "one and two cannot be compared", ["too few images"]),
    ],
)
def test_verdicts_of_methods_and_with_one_seed_of_detectors(own: Claim, start: str, contained: list[str]) -> None:
    assert said(own, OPEN).startswith(start)
    assert all(part in said(own, OPEN) for part in contained)
    assert "inf" not in said(own, OPEN, math.inf)  # a gap that is never seen
    assert "trained anew" not in said(None, own)
    for part in ("these detectors, on other images", "nothing is said of the methods", "a second seed of one"):
        assert part in said(None, own)


@pytest.mark.parametrize(
    ("gain", "claims", "contained"),
    [
        (PROVEN, [OPEN, LOST], ["heads differ", "1.0 to 9.0 AP more under x than under y"]),
        (PROVEN, [OPEN, PROVEN], ["heads differ", "1.0 to 9.0 AP more under y than under x"]),
        (PROVEN, [within(0.009)], ["+5.0 AP", "[+1.0, +9.0]", "agree within ±0.9 AP"]),
        (PROVEN, [within(0.011)], ["not shown", "1.1 AP apart"]),
        (OPEN, [within(0.004)], ["no gain shown", "agree within ±0.5 AP"]),
        (OPEN, [OPEN], ["no gain shown", "not shown", "4.0 AP apart"]),
        (OPEN, [UNKNOWN], ["too few images"]),
    ],
)
def test_heads_agree_within_the_gain(gain: Claim, claims: list[Claim], contained: list[str]) -> None:
    def contrast(own: Claim) -> Contrast:
        return Contrast(detectors={AP: own}, methods={AP: own}, missing=None, noise={})

    mean = MeanGain(a="one", b="two", heads=("x", "y"), contrast=contrast(gain))
    crossed = [Interaction(a="one", b="two", first="x", second="y", contrast=contrast(own)) for own in claims]
    found = heads_verdict(mean, crossed, AP, small=0.007)
    assert found.startswith("two over one")
    assert all(part in found for part in [*contained, "trained anew"])
