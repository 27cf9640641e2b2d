"""Mirrors detection/evaluation/verdicts.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detection.evaluation.inference import Claim, Pair
from detection.evaluation.verdicts import pair_verdict

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


def test_a_gap_that_is_never_seen_is_not_printed() -> None:
    pair = Pair(a="a", b="b", detectors={"k": OPEN}, methods={"k": OPEN}, missing=None, noise={})
    assert "inf" not in pair_verdict(pair, "k", visible=np.inf)
