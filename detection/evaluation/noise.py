"""The noise of a difference between two arms, from the test images and from the training seeds, and what it proves.

The mean over n seeds of an arm has the variance m + (p + q) / n: m of the images, the same for all seeds; q of the
images, a seed's own, for two detectors trained alike err on different images; p of the seeds alone.  *These detectors
on other images* have m + q / n.  *These methods, trained anew* also have p, and what is known of p + q are the n
figures of the seeds: n - 1 degrees of freedom.  A difference of more than two arms, such as a gain under one head less
that under another, is a weighted sum of arms, and each counts with the square of its weight.

Half an interval for methods is sqrt(c_G^2 m + sum over arms of c_n^2 s^2 / n), each variance with a critical value of
its own degrees of freedom.  For a single claim that is Student's quantile, and the interval covers at least as often as
it says, whatever the deviations of the seeds are; Welch's degrees of freedom do not at two and three seeds.  For
several claims it is the larger of Student's quantile at alpha / arms (or claims, if fewer), for the noise of few seeds
is the arms' and not the pairs', and the normal quantile at alpha / claims.  Seeds that agree by luck prove nothing: the
second term is at least FLOOR times what the images alone explain of it.

Source: Banerjee, "On confidence interval for two-means problem based on separate estimates of variances and tabulated
values of t-table", Sankhya A, 1961; jackknife-t: Efron and Tibshirani, 1993, chapter 11.

Shapes: n seeds, G sets of images; "..." stands for any further axes, such as pairs and figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

__all__ = [
    "FLOOR",
    "MIN_IMAGES",
    "Noise",
    "arm_noise",
    "contrast_noise",
    "equal_deviation_p",
    "half_width",
    "images_half_width",
    "images_p_value",
    "p_value",
    "pair_noise",
    "pool_seeds",
]

# With fewer images the signs of their differences can't reach p = 0.05: 2^-4.
MIN_IMAGES = 6
FLOOR = 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Variances of a figure of one arm, or of a weighted sum of several, such as a difference; A arms."""

    images: Floats  # (...) over the choice of images, of these very detectors
    shared: Floats  # (...) the part of it that all seeds of an arm have in common, m above
    own: Floats  # (...) the rest of it, q / n above
    seeds: Floats  # (..., A) of the weighted mean over seeds of each arm, NaN where it has a single one
    seed_freedom: Floats  # (..., A) degrees of freedom of ``seeds``, 0 for a single seed
    image_freedom: Floats  # (...) degrees of freedom of ``images``

    def figure(self, column: int | NDArray[np.integer]) -> Noise:
        """Returns the noise of one figure, or of some, whose axis is the last of (...)."""
        return Noise(
            images=self.images[..., column],
            shared=self.shared[..., column],
            own=self.own[..., column],
            seeds=self.seeds[..., column, :],
            seed_freedom=self.seed_freedom[..., column, :],
            image_freedom=self.image_freedom[..., column],
        )


def arm_noise(values: Floats, influence: Floats, images: NDArray[np.integer]) -> Noise:
    """Returns the noise of the mean over the seeds of one arm.

    Args:
        values: (n, ...) of each seed.
        influence: (n, G, ...) as in ``Sample``.
        images: (...) number of images that hold an object.
    """
    mean = influence.mean(axis=0)
    variance, own = (mean**2).sum(axis=0), _own(influence)
    n = len(values)
    seeds = values.var(axis=0, ddof=1) / n if n > 1 else np.full(values.shape[1:], np.nan)
    return Noise(
        images=variance,
        shared=np.maximum(variance - own, 0),
        own=own,
        seeds=seeds[..., None],
        seed_freedom=np.full((*seeds.shape, 1), n - 1.0),
        image_freedom=_image_freedom(influence, images),
    )


def pair_noise(a: tuple[Floats, Floats], b: tuple[Floats, Floats], images: NDArray[np.integer]) -> Noise:
    """Returns the noise of the difference of two arms' means; each is given as for ``arm_noise``."""
    return contrast_noise((a, b), (-1.0, 1.0), images)


def contrast_noise(
    arms: Sequence[tuple[Floats, Floats]], weights: Sequence[float], images: NDArray[np.integer]
) -> Noise:
    """Returns the noise of the sum of the arms' means times their ``weights``; arms are given as for ``arm_noise``."""
    noises = [arm_noise(*arm, images) for arm in arms]
    influence = sum(weight * arm[1].mean(axis=0) for weight, arm in zip(weights, arms, strict=True))
    variance = np.square(influence).sum(axis=0)
    own = np.asarray(sum(weight**2 * noise.own for weight, noise in zip(weights, noises, strict=True)))
    return Noise(
        images=variance,
        shared=np.maximum(variance - own, 0),
        own=own,
        seeds=np.concatenate([w**2 * noise.seeds for w, noise in zip(weights, noises, strict=True)], axis=-1),
        seed_freedom=np.concatenate([noise.seed_freedom for noise in noises], axis=-1),
        image_freedom=noises[0].image_freedom,
    )


def half_width(noise: Noise, alpha: Floats | float, *, arms: int = 2, claims: int | None = None) -> Floats:
    """Returns half the interval (...) for methods, trained anew; NaN for single seeds.

    Args:
        noise: of arms, or of differences.
        alpha: 1 - the level of the interval, or of all ``claims`` together.
        arms: that are compared.
        claims: differences of them that are looked at; default: of all pairs.
    """
    alpha, claims = np.asarray(alpha, np.float64), math.comb(arms, 2) if claims is None else claims
    image_t = _critical(noise.image_freedom, alpha, arms, claims)
    seed_t = _critical(noise.seed_freedom, alpha[..., None], arms, claims)
    seeds = (seed_t**2 * noise.seeds).sum(axis=-1)
    floor = np.minimum(FLOOR * image_t**2, (seed_t**2).min(axis=-1)) * noise.own
    return np.sqrt(image_t**2 * noise.shared + np.maximum(seeds, floor))


def images_half_width(noise: Noise, alpha: Floats | float) -> Floats:
    """Returns half the interval (...) of level 1 - ``alpha`` for these detectors on other images."""
    return _quantile(noise.image_freedom, np.asarray(alpha, np.float64)) * np.sqrt(noise.images)


def p_value(noise: Noise, difference: Floats, *, arms: int = 2, claims: int | None = None) -> Floats:
    """Returns the smallest alpha (...) at which ``half_width`` leaves out zero; NaN for single seeds."""
    difference = np.abs(np.asarray(difference, np.float64))
    low, high = np.full(difference.shape, -60.0), np.zeros(difference.shape)  # logarithms
    for _ in range(50):
        middle = (low + high) / 2
        inside = half_width(noise, np.exp(middle), arms=arms, claims=claims) >= difference
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    known = ~np.isnan(noise.seeds).any(axis=-1) & ~np.isnan(difference) & (noise.image_freedom >= MIN_IMAGES - 1)
    return np.where(known, np.exp(high), np.nan)


def images_p_value(noise: Noise, difference: Floats) -> Floats:
    """Returns the p-value (...) of a ``difference`` of these detectors; NaN with fewer images than MIN_IMAGES.

    Of k images no p-value is below 2^(1 - k), the chance that all of them favour the same side.
    """
    difference = np.abs(np.asarray(difference, np.float64))
    deviation = np.sqrt(noise.images)
    t = np.divide(difference, deviation, out=np.where(difference > 0, np.inf, 0.0), where=deviation > 0)
    p = 2 * stdtr(noise.image_freedom, -t)
    p = np.maximum(p, 2.0**-noise.image_freedom)
    known = ~np.isnan(difference) & ~np.isnan(deviation) & (noise.image_freedom >= MIN_IMAGES - 1)
    return np.where(known, np.minimum(np.where(difference > 0, p, 1.0), 1.0), np.nan)


def pool_seeds(noise: Noise, variance: Floats, freedom: float, counts: NDArray[np.integer] | Floats) -> Noise:
    """Returns ``noise`` with one variance of a seed (...) for all arms, of ``freedom`` degrees of freedom.

    Args:
        noise: of differences.
        variance: of one seed, pooled over all arms.
        freedom: its degrees of freedom.
        counts: (..., A) seeds of each arm, divided by the square of its weight.
    """
    seeds = (variance * (1 / counts).sum(axis=-1))[..., None]
    return Noise(
        images=noise.images,
        shared=noise.shared,
        own=noise.own,
        seeds=seeds,
        seed_freedom=np.full(seeds.shape, freedom),
        image_freedom=noise.image_freedom,
    )


def equal_deviation_p(variances: Floats, counts: NDArray[np.integer], *, draws: int = 20_000) -> float:
    """Returns the p-value of one seed deviation for all arms: of the largest share that an arm has of their variances.

    Small: the arms differ in their noise, and pooling it is wrong.  Two seeds an arm show only gross differences.

    Args:
        variances: (A,) sample variances over the seeds of each arm.
        counts: (A,) seeds of each arm, two or more.
        draws: of arms with equal deviations.

    Source: Cochran, "The distribution of the largest of a set of estimated variances", Annals of Eugenics 1941.
    """
    if not variances.sum() > 0:
        return 1.0
    freedom = counts - 1.0
    drawn = np.random.default_rng(0).chisquare(freedom, (draws, len(freedom))) / freedom
    shares = drawn.max(axis=1) / drawn.sum(axis=1)
    return float((1 + np.count_nonzero(shares >= variances.max() / variances.sum())) / (1 + draws))


def _own(influence: Floats) -> Floats:
    """Returns the variance (...) over the images, in the mean of the seeds, of what each seed (n, G, ...) has alone."""
    n = len(influence)
    if n == 1:
        return np.zeros(influence.shape[2:])
    return ((influence - influence.mean(axis=0)) ** 2).sum(axis=(0, 1)) / (n * (n - 1))


def _image_freedom(influence: Floats, images: NDArray[np.integer]) -> Floats:
    return np.broadcast_to(np.minimum(images, influence.shape[1]) - 1.0, influence.shape[2:]).astype(np.float64)


def _critical(freedom: Floats, alpha: Floats, arms: int, claims: int) -> Floats:
    """Returns the critical value (...) of so many ``claims`` about ``arms``."""
    if claims == 1:
        return _quantile(freedom, alpha)
    normal = -ndtri(alpha / claims / 2)
    return np.maximum(_quantile(freedom, alpha / min(arms, claims)), normal)


def _quantile(freedom: Floats, alpha: Floats) -> Floats:
    """Returns the two-sided quantile of Student's t; NaN without a degree of freedom."""
    freedom, alpha = np.broadcast_arrays(freedom, alpha)
    return -stdtrit(np.where(freedom > 0, freedom, np.nan), alpha / 2)
