"""Mirrors detection/evaluation/verdicts.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detection.evaluation.heads import Interaction, MeanGain
from detection.evaluation.inference import Claim, Contrast, Pair
from detection.evaluation.verdicts import heads_verdict, pair_verdict

PROVEN = Claim(0.05, 0.01, 0.09, 0.01, True)
LOST = Claim(-0.05, -0.09, -0.01, 0.01, True)
OPEN = Claim(0.01, -0.02, 0.04, 0.5, False)
UNKNOWN = Claim(0.01, math.nan, math.nan, math.nan, False)


def said(methods: Claim | None, detectors: Claim) -> str:
    pair = Pair(
        a="one",
        b="two",
        detectors={"bbox.AP": detectors},
        methods=None if methods is None else {"bbox.AP": methods},
        missing=None if methods else "a second seed of one",
        noise={},
    )
    return pair_verdict(pair, "bbox.AP", visible=0.031)


@pytest.mark.parametrize(
    ("claim", "start", "contained"),
    [
        (PROVEN, "two is better than one", ["1.0 to 9.0 AP", "trained anew"]),
        (LOST, "one is better than two", ["1.0 to 9.0 AP", "trained anew"]),
        (OPEN, "no difference shown", ["trained anew", "3.1 AP"]),
        (UNKNOWN, "one and two cannot be compared", ["too few images"]),
    ],
)
def test_of_methods(claim: Claim, start: str, contained: list[str]) -> None:
    found = said(claim, OPEN)
    assert found.startswith(start)
    assert all(part in found for part in contained)


@pytest.mark.parametrize("claim", [PROVEN, LOST, OPEN, UNKNOWN])
def test_with_one_seed_it_is_of_detectors_and_says_what_is_missing(claim: Claim) -> None:
    found = said(None, claim)
    assert "trained anew" not in found
    assert "these detectors, on other images" in found
    assert "nothing is said of the methods" in found
    assert "a second seed of one" in found


def contrast(claim: Claim) -> Contrast:
    return Contrast(detectors={"bbox.AP": claim}, methods={"bbox.AP": claim}, missing=None, noise={})


@pytest.mark.parametrize(
    ("gain", "claims", "contained"),
    [
        (PROVEN, [OPEN, LOST], ["heads differ", "1.0 to 9.0 AP more under x than under y"]),
        (PROVEN, [OPEN, PROVEN], ["heads differ", "1.0 to 9.0 AP more under y than under x"]),
        (PROVEN, [Claim(0, -0.009, 0.005, 0.5, False)], ["+5.0 AP", "[+1.0, +9.0]", "agree within ±0.9 AP"]),
        (PROVEN, [Claim(0, -0.011, 0.005, 0.5, False)], ["not shown", "1.1 AP apart"]),
        (OPEN, [Claim(0, -0.004, 0.005, 0.5, False)], ["no gain shown", "agree within ±0.5 AP"]),
        (OPEN, [OPEN], ["no gain shown", "not shown", "4.0 AP apart"]),
        (OPEN, [UNKNOWN], ["too few images"]),
    ],
)
def test_heads_agree_where_they_differ_by_less_than_the_gain(
    gain: Claim, claims: list[Claim], contained: list[str]
) -> None:
    mean = MeanGain(a="one", b="two", heads=("x", "y"), contrast=contrast(gain))
    crossed = [Interaction(a="one", b="two", first="x", second="y", contrast=contrast(claim)) for claim in claims]
    found = heads_verdict(mean, crossed, "bbox.AP", small=0.007)
    assert found.startswith("two over one")
    assert all(part in found for part in [*contained, "trained anew"])


def test_a_gap_that_is_never_seen_is_not_printed() -> None:
    pair = Pair(a="a", b="b", detectors={"bbox.AP": OPEN}, methods={"bbox.AP": OPEN}, missing=None, noise={})
    assert "inf" not in pair_verdict(pair, "bbox.AP", visible=np.inf)
