"""Mirrors detection/evaluation/verdicts.py."""

from __future__ import annotations

import math

import pytest

from detection.evaluation.heads import Interaction, MeanGain
from detection.evaluation.inference import Claim, Contrast, Pair
from detection.evaluation.verdicts import heads_verdict, pair_verdict

PROVEN = Claim(0.05, 0.01, 0.09, 0.01, True)
LOST = Claim(-0.05, -0.09, -0.01, 0.01, True)
OPEN = Claim(0.01, -0.02, 0.04, 0.5, False)
UNKNOWN = Claim(0.01, math.nan, math.nan, math.nan, False)


def within(half: float) -> Claim:
    return Claim(0, -half, 0.005, 0.5, False)


def said(methods: Claim | None, detectors: Claim, visible: float = 0.031) -> str:
    of = {"detectors": {"bbox.AP": detectors}, "methods": None if methods is None else {"bbox.AP": methods}}
    pair = Pair(a="one", b="two", **of, missing=None if methods else "a second seed of one", noise={})
    return pair_verdict(pair, "bbox.AP", visible=visible)


@pytest.mark.parametrize(
    ("claim", "start", "contained"),
    [
        (PROVEN, "two is better than one", ["1.0 to 9.0 AP", "trained anew"]),
        (LOST, "one is better than two", ["1.0 to 9.0 AP", "trained anew"]),
        (OPEN, "no difference shown", ["trained anew", "3.1 AP"]),
        (UNKNOWN, "one and two cannot be compared", ["too few images"]),
    ],
)
def test_of_methods_and_with_one_seed_of_detectors(claim: Claim, start: str, contained: list[str]) -> None:
    found = said(claim, OPEN)
    assert found.startswith(start)
    assert all(part in found for part in contained)
    assert "inf" not in said(claim, OPEN, math.inf)  # a gap that is never seen
    found = said(None, claim)
    assert "trained anew" not in found
    for part in ("these detectors, on other images", "nothing is said of the methods", "a second seed of one"):
        assert part in found


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
def test_heads_agree_where_they_differ_by_less_than_the_gain(
    gain: Claim, claims: list[Claim], contained: list[str]
) -> None:
    def contrast(claim: Claim) -> Contrast:
        return Contrast(detectors={"bbox.AP": claim}, methods={"bbox.AP": claim}, missing=None, noise={})

    mean = MeanGain(a="one", b="two", heads=("x", "y"), contrast=contrast(gain))
    crossed = [Interaction(a="one", b="two", first="x", second="y", contrast=contrast(claim)) for claim in claims]
    found = heads_verdict(mean, crossed, "bbox.AP", small=0.007)
    assert found.startswith("two over one")
    assert all(part in found for part in [*contained, "trained anew"])
