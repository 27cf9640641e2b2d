"""What a comparison says of two variants, in plain words, with AP in percent."""

from __future__ import annotations

import math

from detection.evaluation.inference import Claim, Pair

__all__ = ["pair_verdict"]


def pair_verdict(pair: Pair, key: str, *, visible: float) -> str:
    """Returns the sentence on ``pair`` by the figure ``key``: of methods, and of these detectors only without them.

    Args:
        pair: of a comparison.
        key: such as bbox.AP.
        visible: the true gap, a fraction, that is claimed 8 times in 10.
    """
    if pair.methods is not None:
        return _said(pair, pair.methods[key], "trained anew", visible)
    said = _said(pair, pair.detectors[key], "these detectors, on other images", visible)
    return f"{said}; nothing is said of the methods, which takes {pair.missing}"


def _said(pair: Pair, claim: Claim, what: str, visible: float) -> str:
    low, high = 100 * claim.low, 100 * claim.high
    if math.isnan(claim.p):
        return f"{pair.a} and {pair.b} cannot be compared: too few images with objects to find ({what})"
    if claim.proven and claim.value > 0:
        return f"{pair.b} is better than {pair.a} by {low:.1f} to {high:.1f} AP ({what})"
    if claim.proven:
        return f"{pair.a} is better than {pair.b} by {-high:.1f} to {-low:.1f} AP ({what})"
    seen = f"a true gap of {100 * visible:.1f} AP would be seen 8 times in 10" if 0 < visible < 1 else ""
    return f"no difference shown between {pair.a} and {pair.b} ({what})" + (f"; {seen}" if seen else "")
