"""The jackknife: the variance of a run's figures over the choice of test images.

Up to 100 images, each image is left out once.  With more images, random halves are left out.  AP is read at 101
recalls, which jitter when single images are left out, and with many images this jitter would count as noise.  The sets
are the same for all runs on the same images, so the difficulty of an image cancels in a difference.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11; Shao and Wu, "A general theory for
jackknife variance estimation", Annals of Statistics 1989, for halves.

Shapes: B sets of N images, G of them, M figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_SETS", "Sample", "Statistic", "image_sets", "jackknife"]

# A deviation estimated from 100 sets has an error of 7 %, and its t quantile differs by 1.2 % from the normal's.
MAX_SETS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """Figures of one run on any resample of its images.

    Attributes:
        names: (M,) keys of the figures.
        compute: takes counts ``weights`` (B, N) and returns the figures (B, M) of resamples in which image i occurs
            ``weights[:, i]`` times.
        images: (M,) number of images with an object that counts for the figure.
    """

    names: tuple[str, ...]
    compute: Callable[[NDArray[np.integer]], NDArray[np.float64]]
    images: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Figures of one run, and their dependence on the images.

    The sum over the sets of the product of two influences is the covariance of two figures over the choice of images,
    for figures of one run or of two.  NaN: the figure has no value, or none on most sets.
    """

    names: tuple[str, ...]  # M
    values: NDArray[np.float64]  # (M,) on all images
    influence: NDArray[np.float64]  # (G, M)
    images: NDArray[np.int64]  # (M,) as in Statistic

    def only(self, names: Collection[str]) -> Sample:
        """Returns the figures in ``names``, in the order of this sample."""
        if len(names) == len(self.names):
            return self
        rows = [row for row, name in enumerate(self.names) if name in names]
        return Sample(
            names=tuple(self.names[row] for row in rows),
            values=self.values[rows],
            influence=self.influence[:, rows],
            images=self.images[rows],
        )


def jackknife(statistic: Statistic, num_images: int, *, sets: int = MAX_SETS) -> Sample:
    """Returns the figures of ``statistic`` on all images, and their change without some of the images.

    Args:
        statistic: figures of a run.
        num_images: number of test images.
        sets: largest number of images that are left out one by one; with more images, the number of random halves.

    Raises:
        ValueError: fewer than two images.
    """
    rows = image_sets(num_images, sets)
    weights = np.concatenate([np.ones((1, num_images), np.int32), rows])
    values = statistic.compute(weights)
    kept = rows.sum(axis=1, keepdims=True)  # images
    left, known = values[1:], ~np.isnan(values[1:])
    count = known.sum(axis=0)
    change = left - np.where(known, left, 0).sum(axis=0) / np.maximum(count, 1)
    # Leaving out single images, the variance is (G - 1) / G times the sum of squares; with halves, the mean square.
    scale = kept / (num_images - kept) / np.maximum(count if num_images <= sets else count - 1, 1)
    some = (count == len(rows)) if num_images <= sets else (count > len(rows) / 2)
    influence = np.where(some, np.where(known, change, 0) * np.sqrt(scale), np.nan)
    return Sample(names=statistic.names, values=values[0], influence=influence, images=statistic.images)


def image_sets(num_images: int, sets: int = MAX_SETS) -> NDArray[np.int32]:
    """Returns the count (G, N) of each image in each set: all images but one, or random halves.

    Raises:
        ValueError: fewer than two images.
    """
    if num_images < 2:
        raise ValueError(f"an interval takes at least 2 images, got {num_images}")
    if num_images <= sets:
        return 1 - np.eye(num_images, dtype=np.int32)
    rng = np.random.default_rng(0)
    halves = np.zeros((sets, num_images), np.int32)
    for row in halves:
        row[rng.permutation(num_images)[: num_images // 2]] = 1
    return halves
