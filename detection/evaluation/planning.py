"""Power analysis: the smallest gap between two methods that an experiment detects, and the size needed for less.

Shapes: R simulated experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, stdtrit

from detection.evaluation.noise import Noise, half_width

__all__ = [
    "POWER",
    "Design",
    "SeedNoise",
    "images_for",
    "noise_of",
    "seeds_for",
    "visible_between_detectors",
    "visible_gap",
]

POWER = 0.8
DRAWS = 4000
MAX_SEEDS = 100
MAX_IMAGES = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedNoise:
    """Standard deviations of the noise of a difference between two similar methods, as fractions of AP."""

    seed: float  # of one training run, beyond the noise of single images
    shared: float  # of the difference on one image, common to all seeds
    own: float  # of one training run on one image


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The size of an experiment."""

    variants: int
    seeds: int
    images: int
    confidence: float = 0.95
    pool: bool = False  # one seed deviation for all variants


def noise_of(pairs: Sequence[Noise], images: int) -> SeedNoise | None:
    """Returns the mean noise of ``pairs`` of arms, measured on ``images`` images; None if no arm has two seeds.

    The pairs' noise is of scalars; arms with a single seed are left out of the noise of seeds.
    """
    known = [pair for pair in pairs if (pair.seed_freedom > 0).all()]
    if not known:
        return None
    counts = [pair.seed_freedom + 1 for pair in known]
    # Of one seed: its variance on these images, less the part that the images explain.
    total = np.mean([(pair.seeds * n).mean() for pair, n in zip(known, counts, strict=True)])
    own = np.mean([pair.own / (1 / n).sum() for pair, n in zip(known, counts, strict=True)])
    shared = np.mean([pair.shared for pair in known])
    return SeedNoise(
        seed=math.sqrt(max(float(total - own), 0.0)),
        shared=math.sqrt(float(shared) * images),
        own=math.sqrt(float(own) * images),
    )


def visible_gap(noise: SeedNoise, design: Design, *, power: float = POWER) -> float:
    """Returns the true gap, a fraction of AP, that the experiment proves with this ``power``; infinite for one seed.

    The gap is simulated with random seeds and intervals of ``noise.half_width``.
    """
    if design.seeds < 2:
        return math.inf
    rng, n = np.random.default_rng(0), design.seeds
    shared, own = noise.shared**2 / design.images, noise.own**2 / design.images
    seed = (noise.seed**2 + own) / n  # of the mean of an arm
    freedom, parts = (design.variants * (n - 1.0), 1) if design.pool else (n - 1.0, 2)
    drawn = Noise(
        images=np.full(DRAWS, shared + 2 * own / n),
        shared=np.full(DRAWS, shared),
        own=np.full(DRAWS, 2 * own / n),
        seeds=2 / parts * seed * rng.chisquare(freedom, (DRAWS, parts)) / freedom,
        seed_freedom=np.full(parts, freedom),
        image_freedom=np.array(design.images - 1.0),
    )
    luck = rng.normal(0, math.sqrt(shared + 2 * seed), DRAWS)
    halves = half_width(drawn, 1 - design.confidence, arms=max(design.variants, 2))
    return float(np.quantile(halves - luck, power))


def visible_between_detectors(noise: Noise, alpha: float, *, power: float = POWER) -> float:
    """Returns the true gap between two given detectors that as many other images would show with this ``power``."""
    return float((-stdtrit(noise.image_freedom, alpha / 2) + ndtri(power)) * np.sqrt(noise.images))


def seeds_for(gap: float, noise: SeedNoise, design: Design, *, power: float = POWER) -> int | None:
    """Returns the smallest number of seeds per arm that shows a true ``gap`` on these images; None above MAX_SEEDS."""
    return _least(2, MAX_SEEDS, lambda n: visible_gap(noise, replace(design, seeds=n), power=power) <= gap)


def images_for(gap: float, noise: SeedNoise, design: Design, *, power: float = POWER) -> int | None:
    """Returns the smallest number of images that shows a true ``gap`` with these seeds; None above MAX_IMAGES."""
    return _least(6, MAX_IMAGES, lambda m: visible_gap(noise, replace(design, images=m), power=power) <= gap)


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int | None:
    """Returns the smallest number from ``low`` to ``high`` that is ``enough``, by bisection; None if none is."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
