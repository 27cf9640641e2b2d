"""Computes the intervals and claims of a report from the noise of images and of seeds in each figure.

Two questions are kept apart.  *These detectors on other images*: would these detectors differ as much on other images
of the same kind?  *These methods, trained anew*: would other seeds give the same result?  The latter needs two seeds of
each arm; with one seed there is no claim about methods.

Every figure with a ``Statistic`` has the same analysis: AP, by size and class, AR, VOC mAP, mask AP, types of errors.
Claims hold for all pairs of variants together; claims about classes and types of errors control the false discovery
rate.  ``tools/simulate_claims.py`` measures the coverage of intervals and the rate of false claims; docs/claims.md has
the table.  A claim is about a contrast, a weighted sum of arms; the simplest is the difference of a pair.

Shapes: n seeds, G sets of images, M figures, P contrasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.claims import discoveries, family, is_discovered, single_level, step_down
from detection.evaluation.jackknife import Sample
from detection.evaluation.noise import (
    Noise,
    arm_noise,
    contrast_noise,
    equal_deviation_p,
    half_width,
    images_half_width,
    images_p_value,
    p_value,
    pool_seeds,
)

__all__ = [
    "Claim",
    "Comparison",
    "Contrast",
    "Interval",
    "Pair",
    "Pooling",
    "Variant",
    "check_confidence",
    "claim_contrasts",
    "compare_samples",
]

Floats = NDArray[np.float64]
Arms = Mapping[str, tuple[Floats, Floats]]  # values (n, M) and influence (n, G, M)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure on the test images, and its confidence interval; NaN if there is nothing to find."""

    value: float  # a fraction 0..1
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A difference and its interval, which holds jointly with those of its family of claims."""

    value: float
    low: float
    high: float
    p: float  # adjusted for its family; NaN: no test, as there are too few images or no value
    proven: bool  # p is at most 1 - confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Figures of a variant by key, as means over its seeds; intervals are not adjusted for other figures."""

    seeds: int
    detectors: dict[str, Interval]
    methods: dict[str, Interval] | None  # None: a single seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The claims about a weighted sum of variants, by key."""

    detectors: dict[str, Claim]
    methods: dict[str, Claim] | None
    missing: str | None  # what is missing for claims about methods
    noise: dict[str, Noise]  # of scalars, not pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Contrast):
    """Figures of variant ``b`` minus those of variant ``a``."""

    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """A common deviation over seeds for all variants, used for claims about methods."""

    deviation: dict[str, float]  # of one seed, by key
    freedom: int
    equal_p: dict[str, float]  # p-value of equal deviations by key; if small, pooling is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of ``compare_samples``."""

    blocks: int  # number of jackknife sets of images: one per image, or random halves
    confidence: float  # 0..1
    pooling: Pooling | None
    variants: dict[str, Variant]
    pairs: tuple[Pair, ...]  # in the order of the variants


def compare_samples(
    variants: Mapping[str, Sequence[Sample]],
    *,
    confidence: float = 0.95,
    pool: bool = False,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Comparison:
    """Returns the figures of each variant and of the pairs' differences, with intervals and claims.

    Args:
        variants: name -> one sample per training seed, all of the same figures and images.
        confidence: level of intervals, and 1 minus the rate of false claims.
        pool: estimate one variance of seeds from all variants.
        pairs: pairs to test, in one family; default: all pairs.

    Raises:
        ValueError: there is no variant, a variant has no seeds, figures or images differ, ``confidence`` is outside
            (0, 1), or ``pool`` is set and no variant has two seeds.
    """
    names = list(combinations(variants, 2)) if pairs is None else pairs
    found = claim_contrasts(variants, [{a: -1.0, b: 1.0} for a, b in names], confidence=confidence, pool=pool)
    first, arms = next(iter(variants.values()))[0], _stacked(variants)
    return Comparison(
        blocks=len(first.influence),
        confidence=confidence,
        pooling=_pooling(arms, first.names) if pool else None,
        variants={name: _variant(arm, first, confidence) for name, arm in arms.items()},
        pairs=tuple(
            Pair(a=a, b=b, detectors=c.detectors, methods=c.methods, missing=c.missing, noise=c.noise)
            for (a, b), c in zip(names, found, strict=True)
        ),
    )


def claim_contrasts(
    variants: Mapping[str, Sequence[Sample]],
    contrasts: Sequence[Mapping[str, float]],
    *,
    confidence: float = 0.95,
    pool: bool = False,
) -> list[Contrast]:
    """Returns the claims about ``contrasts``, which map variants to weights, as one family.

    Other arguments and errors are those of ``compare_samples``.
    """
    check_confidence(confidence)
    _check(variants)
    first, arms = next(iter(variants.values()))[0], _stacked(variants)
    weights = [np.array([*contrast.values()]) for contrast in contrasts]
    own = [
        contrast_noise([arms[name] for name in contrast], row.tolist(), first.images)
        for contrast, row in zip(contrasts, weights, strict=True)
    ]
    noises = own
    if pool:
        deviation, freedom = _pooled_deviation(arms)
        counts = [np.array([len(arms[name][0]) for name in contrast]) for contrast in contrasts]
        noises = [
            pool_seeds(noise, deviation**2, freedom, count / row**2)
            for noise, count, row in zip(own, counts, weights, strict=True)
        ]
    return _contrasts(contrasts, arms, noises, own, first.names, 1 - confidence)


def check_confidence(confidence: float) -> None:
    """Raises ValueError unless ``confidence`` is a fraction inside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}; 0.95 is usual")


def _check(variants: Mapping[str, Sequence[Sample]]) -> None:
    without = [name for name, seeds in variants.items() if not seeds]
    if without or not variants:
        raise ValueError(f"variant {without[0]} has no runs, expected one or more" if without else "no variants")
    samples = [seed for seeds in variants.values() for seed in seeds]
    if any(seed.names != samples[0].names or len(seed.influence) != len(samples[0].influence) for seed in samples):
        raise ValueError("samples of other figures or of other sets of images; make all of them of the same images")


def _variant(arm: tuple[Floats, Floats], first: Sample, confidence: float) -> Variant:
    values, influence = arm
    noise, mean = arm_noise(values, influence, first.images), values.mean(axis=0)
    several = len(values) > 1
    return Variant(
        seeds=len(values),
        detectors=_intervals(first.names, mean, images_half_width(noise, 1 - confidence)),
        methods=_intervals(first.names, mean, half_width(noise, 1 - confidence)) if several else None,
    )


def _intervals(names: Sequence[str], values: Floats, halves: Floats) -> dict[str, Interval]:
    low, high = np.maximum(values - halves, np.minimum(values, 0)), np.minimum(values + halves, np.maximum(values, 1))
    rows = zip(names, values.tolist(), low.tolist(), high.tolist(), strict=True)
    return {key: Interval(*row) for key, *row in rows}


def _stacked(variants: Mapping[str, Sequence[Sample]]) -> Arms:
    return {
        name: (np.stack([seed.values for seed in seeds]), np.stack([seed.influence for seed in seeds]))
        for name, seeds in variants.items()
    }


def _contrasts(
    contrasts: Sequence[Mapping[str, float]],
    arms: Arms,
    noises: Sequence[Noise],
    own: Sequence[Noise],
    keys: Sequence[str],
    alpha: float,
) -> list[Contrast]:
    """Returns the claims from ``noises``, which may be pooled; contrasts keep their ``own`` noise."""
    if not contrasts:
        return []
    # sum() starts at 0, so the difference b - a of two arms is -a + b, equal to the last bit.
    values = np.stack([sum(w * arms[name][0].mean(axis=0) for name, w in row.items()) for row in contrasts])
    limits = [sum(map(abs, row.values())) / 2 for row in contrasts]
    seeded = [row for row, noise in zip(contrasts, noises, strict=True) if _is_seeded(noise)]
    size = (max(len({name for row in seeded for name in row}), 2), max(len(seeded), 1))
    detectors = _claims(values, noises, keys, alpha, limits, size=None)
    methods = _claims(values, noises, keys, alpha, limits, size=size)
    found = []
    for row, contrast in enumerate(contrasts):
        missing = _missing({name: len(arms[name][0]) for name in contrast}, noises[row])
        found.append(
            Contrast(
                detectors=detectors[row],
                methods=None if missing else methods[row],
                missing=missing,
                noise={key: own[row].figure(column) for column, key in enumerate(keys)},
            )
        )
    return found


def _claims(
    values: Floats,
    noises: Sequence[Noise],
    keys: Sequence[str],
    alpha: float,
    limits: Sequence[float],
    *,
    size: tuple[int, int] | None,
) -> list[dict[str, Claim]]:
    """Returns the claims about contrasts (P, M) by key; each family of keys is adjusted over all contrasts.

    Claims are about methods, in a family of ``size`` (arms, claims), or about these detectors (None).  ``limits`` (P,)
    are the largest possible values of the contrasts of fractions.
    """
    adjusted, halves = np.empty_like(values), np.empty_like(values)
    families = np.array([family(key) for key in keys])
    for name in dict.fromkeys(families):
        columns = np.flatnonzero(families == name)
        own = [noise.figure(columns) for noise in noises]
        adjust = _adjust_discoveries if is_discovered(keys[int(columns[0])]) else _adjust_all
        adjusted[:, columns], halves[:, columns] = adjust(values[:, columns], own, alpha, size)
    halves[np.isnan(adjusted)] = np.nan
    return [
        {key: _claim(*row, alpha=alpha, limit=limit) for key, row in zip(keys, zip(*rows, strict=True), strict=True)}
        for *rows, limit in zip(values.tolist(), halves.tolist(), adjusted.tolist(), limits, strict=True)
    ]


def _adjust_all(
    values: Floats, noises: Sequence[Noise], alpha: float, size: tuple[int, int] | None
) -> tuple[Floats, Floats]:
    """Returns p-values and half intervals (P, m) that hold for all differences jointly."""
    if size is not None:
        arms, claims = size
        p = [p_value(noise, row, arms=arms, claims=claims) for noise, row in zip(noises, values, strict=True)]
        return np.stack(p), np.stack([half_width(noise, alpha, arms=arms, claims=claims) for noise in noises])
    p = np.stack([images_p_value(noise, row) for noise, row in zip(noises, values, strict=True)])
    level = single_level(p.ravel(), alpha, discovered=False)
    return step_down(p.ravel()).reshape(p.shape), np.stack([images_half_width(noise, level) for noise in noises])


def _adjust_discoveries(
    values: Floats, noises: Sequence[Noise], alpha: float, size: tuple[int, int] | None
) -> tuple[Floats, Floats]:
    """Returns p-values and half intervals (P, m) that control the false discovery rate."""
    test, width = (images_p_value, images_half_width) if size is None else (p_value, half_width)
    p = np.stack([test(noise, row) for noise, row in zip(noises, values, strict=True)])
    level = single_level(p.ravel(), alpha, discovered=True)
    return discoveries(p.ravel()).reshape(p.shape), np.stack([width(noise, level) for noise in noises])


def _claim(value: float, half: float, p: float, *, alpha: float, limit: float) -> Claim:
    """Returns a difference with its interval.

    If Holm proves a difference whose Bonferroni interval contains zero, the interval is cut at zero.  It is also cut at
    ``limit``, the largest possible difference of fractions, which is 1 for a pair.
    """
    low, high, proven = max(value - half, min(value, -limit)), min(value + half, max(value, limit)), p <= alpha
    if proven:
        low, high = (max(low, 0.0), high) if value > 0 else (low, min(high, 0.0))
    return Claim(value, low, high, p, proven)


def _is_seeded(noise: Noise) -> bool:
    """Returns whether the noise of the seeds of all arms is known."""
    return bool((noise.seed_freedom > 0).all())


def _missing(seeds: Mapping[str, int], noise: Noise) -> str | None:
    """Returns what is missing for claims about methods, or None; pooled seeds may come from other variants."""
    if _is_seeded(noise):
        return None
    single = [name for name, count in seeds.items() if count < 2]
    return f"a second seed of {' and of '.join(single)}"


def _pooled_deviation(arms: Arms) -> tuple[Floats, int]:
    """Returns the deviation (M,) over seeds, pooled over ``arms``, and its degrees of freedom."""
    counts, variances = _seed_variances(arms)
    freedom = int((counts - 1).sum())
    return np.sqrt((variances * (counts - 1)[:, None]).sum(axis=0) / freedom), freedom


def _seed_variances(arms: Arms) -> tuple[NDArray[np.integer], Floats]:
    """Returns the number of seeds (A,) and the variance over them (A, M) of each arm with several."""
    several = [values for values, _ in arms.values() if len(values) > 1]
    if not several:
        raise ValueError("pooling needs a variant with at least two seeds; every variant has one")
    return np.array([len(values) for values in several]), np.stack([values.var(axis=0, ddof=1) for values in several])


def _pooling(arms: Arms, keys: Sequence[str]) -> Pooling:
    (counts, variances), (deviation, freedom) = _seed_variances(arms), _pooled_deviation(arms)
    equal = [equal_deviation_p(column, counts) if len(counts) > 1 else 1.0 for column in variances.T]
    return Pooling(
        deviation=dict(zip(keys, deviation.tolist(), strict=True)),
        freedom=freedom,
        equal_p=dict(zip(keys, equal, strict=True)),
    )
