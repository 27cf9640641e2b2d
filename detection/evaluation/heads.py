"""Tests whether gains carry over between heads: mean gains and interactions.

A gain is the difference between two variants under the same head; an interaction is the difference of a gain between
two heads.  Both are contrasts of arms, with the same noise of images (paired, as all arms see the same images) and of
seeds as a pair.  Mean gains are one family of claims and interactions another, each with its own 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from detection.evaluation.inference import Claim, Contrast, claim_contrasts
from detection.evaluation.jackknife import Sample

__all__ = ["AcrossHeads", "Interaction", "MeanGain", "bound", "claims_of", "compare_heads", "gains"]

Heads = Mapping[str, Mapping[str, str]]  # head -> variant -> arm


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanGain:
    """The gain of variant ``b`` over variant ``a``, averaged over ``heads``."""

    a: str
    b: str
    heads: tuple[str, ...]
    contrast: Contrast


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """The gain of variant ``b`` over variant ``a`` under head ``second`` minus that under head ``first``."""

    a: str
    b: str
    first: str
    second: str
    contrast: Contrast


@dataclass(frozen=True, slots=True, kw_only=True)
class AcrossHeads:
    """The claims about pairs of variants that at least two heads have."""

    means: tuple[MeanGain, ...]
    interactions: tuple[Interaction, ...]


def gains(heads: Heads, arms: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of ``arms`` under the same head, in the order of heads and variants."""
    return [pair for named in heads.values() for pair in combinations([a for a in named.values() if a in arms], 2)]


def compare_heads(
    samples: Mapping[str, Sequence[Sample]], heads: Heads, *, confidence: float = 0.95, pool: bool = False
) -> AcrossHeads:
    """Returns the mean gains and interactions of all pairs of variants that at least two heads have in ``samples``.

    Other arguments and errors are those of ``compare_samples``.
    """
    variants = dict.fromkeys(variant for named in heads.values() for variant in named)
    known = {
        (a, b): shared
        for a, b in combinations(variants, 2)
        if len(shared := [head for head, named in heads.items() if named[a] in samples and named[b] in samples]) > 1
    }
    crossed = [(pair, *two) for pair, shared in known.items() for two in combinations(shared, 2)]
    means = claim_contrasts(
        samples, [_mean(pair, shared, heads) for pair, shared in known.items()], confidence=confidence, pool=pool
    )
    interactions = claim_contrasts(
        samples,
        [_gain(pair, heads[second], 1.0) | _gain(pair, heads[first], -1.0) for pair, first, second in crossed],
        confidence=confidence,
        pool=pool,
    )
    return AcrossHeads(
        means=tuple(
            MeanGain(a=a, b=b, heads=tuple(shared), contrast=contrast)
            for ((a, b), shared), contrast in zip(known.items(), means, strict=True)
        ),
        interactions=tuple(
            Interaction(a=a, b=b, first=first, second=second, contrast=contrast)
            for ((a, b), first, second), contrast in zip(crossed, interactions, strict=True)
        ),
    )


def claims_of(contrasts: Sequence[Contrast], key: str) -> tuple[list[Claim], bool]:
    """Returns the claims about the figure ``key`` and whether they are of methods; else they are of detectors."""
    methods = [contrast.methods[key] for contrast in contrasts if contrast.methods is not None]
    if len(methods) == len(contrasts):
        return methods, True
    return [contrast.detectors[key] for contrast in contrasts], False


def bound(claims: Sequence[Claim]) -> float:
    """Returns the largest absolute end of the intervals of ``claims``; NaN if one has no interval."""
    ends = [max(abs(claim.low), abs(claim.high)) for claim in claims]
    return math.nan if any(map(math.isnan, ends)) else max(ends)


def _gain(pair: tuple[str, str], arms: Mapping[str, str], weight: float) -> dict[str, float]:
    a, b = pair
    return {arms[a]: -weight, arms[b]: weight}


def _mean(pair: tuple[str, str], shared: Sequence[str], heads: Heads) -> dict[str, float]:
    return {arm: weight for head in shared for arm, weight in _gain(pair, heads[head], 1 / len(shared)).items()}
