"""The noise of a difference between arms, from test images and training seeds, and its intervals and p-values.

The mean over n seeds of an arm has the variance m + (p + q) / n.  m is the variance over images common to all seeds; q
is the variance over images of each seed, as two detectors trained alike err on different images; p is the variance of
seeds alone.  *These detectors on other images* have m + q / n.  *These methods, trained anew* also have p, and p + q is
estimated from the n figures of the seeds, with n - 1 degrees of freedom.  A contrast of more than two arms, such as the
difference of a gain between two heads, is a weighted sum of arms; variances are multiplied by the squared weights.

Half an interval for methods is sqrt(c_G^2 m + sum over arms of c_n^2 s^2 / n), where each variance has a critical value
for its degrees of freedom.  For a single claim this is Student's quantile, and the interval has at least its nominal
coverage whatever the deviations of the seeds; with Welch's degrees of freedom it does not at two and three seeds.  For
several claims it is the larger of Student's quantile at alpha / arms (or claims, if fewer), as the noise of few seeds
belongs to arms and not to pairs, and the normal quantile at alpha / claims.  Seeds can agree by chance, so the second
term is at least FLOOR times the part that images alone explain.

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
    """Variances of a figure of one arm, or of a weighted sum of A arms, such as a difference."""

    images: Floats  # (...) over the choice of images, for these detectors
    shared: Floats  # (...) its part that is common to all seeds of an arm, m above
    own: Floats  # (...) its remaining part, q / n above
    seeds: Floats  # (..., A) variance of each arm's weighted mean over seeds; NaN for a single seed
    seed_freedom: Floats  # (..., A) degrees of freedom of ``seeds``, 0 for a single seed
    image_freedom: Floats  # (...) degrees of freedom of ``images``

    def figure(self, column: int | NDArray[np.integer]) -> Noise:
        """Returns the noise of one or several figures, whose axis is the last of (...)."""
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
        values: (n, ...) figures of each seed.
        influence: (n, G, ...) as in ``Sample``.
        images: (...) number of images with an object.
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
    """Returns the noise of the difference of two arms' means; each arm is given as for ``arm_noise``."""
    return contrast_noise((a, b), (-1.0, 1.0), images)


def contrast_noise(
    arms: Sequence[tuple[Floats, Floats]], weights: Sequence[float], images: NDArray[np.integer]
) -> Noise:
    """Returns the noise of the ``weights``-weighted sum of the arms' means; arms are given as for ``arm_noise``."""
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
        noise: noise of arms, or of differences.
        alpha: 1 - the level of the interval, or of all ``claims`` jointly.
        arms: number of arms that are compared.
        claims: number of differences that are tested; default: all pairs.
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
    """Returns the smallest alpha (...) at which the interval excludes zero; NaN for single seeds."""
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

    With k images no p-value is below 2^(1 - k), the probability that all favour the same side.
    """
    difference = np.abs(np.asarray(difference, np.float64))
    deviation = np.sqrt(noise.images)
    t = np.divide(difference, deviation, out=np.where(difference > 0, np.inf, 0.0), where=deviation > 0)
    p = 2 * stdtr(noise.image_freedom, -t)
    p = np.maximum(p, 2.0**-noise.image_freedom)
    known = ~np.isnan(difference) & ~np.isnan(deviation) & (noise.image_freedom >= MIN_IMAGES - 1)
    return np.where(known, np.minimum(np.where(difference > 0, p, 1.0), 1.0), np.nan)


def pool_seeds(noise: Noise, variance: Floats, freedom: float, counts: NDArray[np.integer] | Floats) -> Noise:
    """Returns ``noise`` with one pooled variance of a seed (...) for all arms.

    Args:
        noise: noise of differences.
        variance: variance of one seed, pooled over all arms.
        freedom: degrees of freedom of ``variance``.
        counts: (..., A) number of seeds of each arm, divided by the square of its weight.
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
    """Returns the p-value of equal seed deviations of all arms, from the largest fraction of the sum of variances.

    A small p-value means that arms differ in their noise and pooling is wrong.  Two seeds per arm show only large
    differences.

    Args:
        variances: (A,) sample variances over the seeds of each arm.
        counts: (A,) number of seeds of each arm, at least two.
        draws: number of simulations with equal deviations.

    Source: Cochran, "The distribution of the largest of a set of estimated variances", Annals of Eugenics 1941.
    """
    if not variances.sum() > 0:
        return 1.0
    freedom = counts - 1.0
    drawn = np.random.default_rng(0).chisquare(freedom, (draws, len(freedom))) / freedom
    shares = drawn.max(axis=1) / drawn.sum(axis=1)
    return float((1 + np.count_nonzero(shares >= variances.max() / variances.sum())) / (1 + draws))


def _own(influence: Floats) -> Floats:
    """Returns the variance (...) over images of the seeds' own parts in the mean of the seeds (n, G, ...)."""
    n = len(influence)
    if n == 1:
        return np.zeros(influence.shape[2:])
    return ((influence - influence.mean(axis=0)) ** 2).sum(axis=(0, 1)) / (n * (n - 1))


def _image_freedom(influence: Floats, images: NDArray[np.integer]) -> Floats:
    return np.broadcast_to(np.minimum(images, influence.shape[1]) - 1.0, influence.shape[2:]).astype(np.float64)


def _critical(freedom: Floats, alpha: Floats, arms: int, claims: int) -> Floats:
    """Returns the critical value (...) for the numbers of ``claims`` and ``arms``."""
    if claims == 1:
        return _quantile(freedom, alpha)
    normal = -ndtri(alpha / claims / 2)
    return np.maximum(_quantile(freedom, alpha / min(arms, claims)), normal)


def _quantile(freedom: Floats, alpha: Floats) -> Floats:
    """Returns the two-sided quantile of Student's t; NaN without a degree of freedom."""
    freedom, alpha = np.broadcast_arrays(freedom, alpha)
    return -stdtrit(np.where(freedom > 0, freedom, np.nan), alpha / 2)
