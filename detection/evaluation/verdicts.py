"""The verdict on two variants, under one head or across heads, in plain words with figures in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detection.evaluation.heads import Interaction, MeanGain, bound, claims_of
from detection.evaluation.inference import Claim, Pair
from detection.evaluation.metrics import named

__all__ = ["heads_verdict", "pair_verdict"]


def pair_verdict(pair: Pair, key: str, *, visible: float) -> str:
    """Returns the sentence on ``pair`` for the figure ``key``, about methods if possible, else about these detectors.

    Args:
        pair: a pair of a comparison.
        key: key of a figure, such as bbox.AP.
        visible: true gap, a fraction, that is proven with probability 0.8.
    """
    if pair.methods is not None:
        return _said(pair, pair.methods[key], named(key).name, "trained anew", visible)
    said = _said(pair, pair.detectors[key], named(key).name, "these detectors, on other images", visible)
    return f"{said}; nothing is said of the methods, which takes {pair.missing}"


def heads_verdict(mean: MeanGain, interactions: Sequence[Interaction], key: str, *, small: float) -> str:
    """Returns the sentence on the mean gain in the figure ``key`` and on the agreement of heads.

    Heads differ if an interaction is proven.  They agree if the intervals of all interactions are within the proven
    gain, so that it has the same sign under every head, or within ``small``, a fraction.

    Args:
        mean: mean gain of a pair of variants.
        interactions: interactions of the same pair.
        key: key of a figure, such as bbox.AP.
        small: a negligible difference.
    """
    (gain,), methods = claims_of([mean.contrast], key)
    claims, _ = claims_of([interaction.contrast for interaction in interactions], key)
    scope = "trained anew" if methods else "these detectors, on other images"
    if math.isnan(gain.p) or math.isnan(within := bound(claims)):
        return f"{mean.b} over {mean.a}: too few images with objects to find ({scope})"
    low, high = 100 * gain.low, 100 * gain.high
    name = named(key).name
    said = f"{mean.b} over {mean.a}: {100 * gain.value:+.1f} {name} in the mean of {len(mean.heads)} heads"
    said += f" [{low:+.1f}, {high:+.1f}]" + ("" if gain.proven else ", no gain shown")
    differing = [
        _differing(interaction, claim, name)
        for interaction, claim in zip(interactions, claims, strict=True)
        if claim.proven
    ]
    least = min(abs(gain.low), abs(gain.high)) if gain.proven else 0.0
    if differing:
        answer = f"heads differ: {'; '.join(differing)}"
    elif within <= max(least, small):
        answer = f"heads agree within ±{100 * within:.1f} {name}"
    else:
        answer = f"whether heads agree is not shown, their gains may be up to {100 * within:.1f} {name} apart"
    return f"{said}; {answer} ({scope})"


def _differing(interaction: Interaction, claim: Claim, name: str) -> str:
    more, less = interaction.second, interaction.first
    low, high = 100 * claim.low, 100 * claim.high
    if claim.value < 0:
        more, less, low, high = less, more, -high, -low
    return f"{low:.1f} to {high:.1f} {name} more under {more} than under {less}"


def _said(pair: Pair, claim: Claim, name: str, what: str, visible: float) -> str:
    low, high = 100 * claim.low, 100 * claim.high
    if math.isnan(claim.p):
        return f"{pair.a} and {pair.b} cannot be compared: too few images with objects to find ({what})"
    if claim.proven and claim.value > 0:
        return f"{pair.b} is better than {pair.a} by {low:.1f} to {high:.1f} {name} ({what})"
    if claim.proven:
        return f"{pair.a} is better than {pair.b} by {-high:.1f} to {-low:.1f} {name} ({what})"
    seen = f"a true gap of {100 * visible:.1f} {name} would be seen 8 times in 10" if 0 < visible < 1 else ""
    return f"no difference shown between {pair.a} and {pair.b} ({what})" + (f"; {seen}" if seen else "")
