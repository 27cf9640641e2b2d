"""Sizes and ratios of anchors that fit the objects of a data set: k-means whose distance is 1 - IoU.

IoU is that of two boxes with one centre, so only their sides count.
Source: Redmon and Farhadi 2017, "YOLO9000", section 2, "Dimension Clusters".

Shapes: M objects, A anchors, k clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_iou", "fit_ratios", "fit_sizes", "kmeans_iou", "reached"]

MAX_OBJECTS = 20_000  # more are drawn from
STEPS = 100

Sides = NDArray[np.float64]  # (M, 2) width, height


def kmeans_iou(sides: Sides, k: int, *, seed: int = 0) -> Sides:
    """Returns k pairs of sides (k, 2), by area, that the ``sides`` (M, 2) gather around; fewer if fewer differ.

    Every centre is the median of its objects.
    """
    generator = np.random.default_rng(seed)
    if len(sides) > MAX_OBJECTS:
        sides = sides[generator.choice(len(sides), MAX_OBJECTS, replace=False)]
    by_area = sides[np.argsort(sides.prod(axis=1), kind="stable")]
    centres = np.unique(by_area[((np.arange(k) + 0.5) * len(sides) / k).astype(int)], axis=0)
    for _ in range(STEPS):
        nearest = _ious(sides, centres).argmax(axis=1)
        moved = np.array(
            [
                np.median(sides[nearest == i], axis=0) if (nearest == i).any() else centres[i]
                for i in range(len(centres))
            ]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres[np.argsort(centres.prod(axis=1), kind="stable")]


def fit_sizes(sides: Sides, k: int) -> tuple[float, ...]:
    """Returns k rising sizes, square roots of areas in pixels, that suit objects with ``sides`` (M, 2).

    Two are at least a quarter apart; where objects are all of one size, further ones are twice the one before.
    """
    squares = np.sqrt(sides.prod(axis=1))
    found = kmeans_iou(np.stack([squares, squares], axis=1), k)[:, 0].tolist()
    sizes = list[float]()
    for size in found:
        sizes.append(max(size, 1.25 * sizes[-1]) if sizes else max(size, 4.0))
    while len(sizes) < k:
        sizes.append(2 * sizes[-1])
    return tuple(float(round(size)) for size in sizes)


def fit_ratios(sides: Sides, k: int = 3) -> tuple[float, ...]:
    """Returns k rising ratios, height over width, that suit objects with ``sides`` (M, 2)."""
    ratios = sides[:, 1] / sides[:, 0]
    found = kmeans_iou(np.stack([1 / np.sqrt(ratios), np.sqrt(ratios)], axis=1), k)
    rising = sorted(float(np.clip(height / width, 0.1, 10.0)) for width, height in found)
    if len(rising) < k or any(b / a < 1.15 for a, b in pairwise(rising)):
        centre = math.exp(float(np.median(np.log(ratios))))
        spread = [2.0 ** (place - (k - 1) / 2) for place in range(k)]
        rising = [centre * factor for factor in spread]
    return tuple(round(ratio, 2) for ratio in rising)


def best_iou(sides: Sides, sizes: Sequence[float], ratios: Sequence[float]) -> NDArray[np.float64]:
    """Returns the IoU (M,) of each object with the anchor that fits it best, if one stood at its centre."""
    anchors = np.array([(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios])
    return _ious(sides, anchors).max(axis=1) if len(sides) else np.zeros(0)


def reached(ious: NDArray[np.float64], at: float) -> float:
    """Returns the share of objects, 0 to 1, whose best IoU is at least ``at``; 1 where there is none."""
    return float((ious >= at).mean()) if len(ious) else 1.0


def _ious(sides: Sides, anchors: Sides) -> NDArray[np.float64]:
    """IoU (M, A) of boxes with one centre."""
    common = np.minimum(sides[:, None], anchors[None]).prod(axis=2)
    return common / (sides.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - common)
