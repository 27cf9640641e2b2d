"""Fits sizes and aspect ratios of anchors to the objects of a data set, by k-means with the distance 1 - IoU.

Except in ``grid_iou``, the two boxes of an IoU share their centre, so only their sides count.
Source: Redmon and Farhadi 2017, "YOLO9000", section 2, "Dimension Clusters".

Shapes: M objects, A anchors, k clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex

__all__ = ["best_iou", "fit_ratios", "fit_sizes", "grid_iou", "kmeans_iou", "reached", "resized_boxes"]

MAX_OBJECTS = 20_000  # of a larger set, a random sample of this size is used
STEPS = 100
ENOUGH = 0.7  # IoU of a positive anchor
THIN = 2.0  # pixels of the resized image; boxes with a shorter side are not fitted

Sides = NDArray[np.float64]  # (M, 2) width, height


def resized_boxes(index: AnnotationIndex, shorter: int, longer: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the boxes (M, 4), in pixels of resized images, and labels (M,) of all but ignored and thin objects.

    Args:
        index: images and objects.
        shorter: shorter side of the resized images, pixels.
        longer: upper limit of their longer side, pixels.
    """
    sizes = index.sizes.to(torch.float64)
    factors = torch.minimum(shorter / sizes.amin(dim=1), longer / sizes.amax(dim=1))
    counts = torch.diff(index.ends, prepend=index.ends.new_zeros(1))
    boxes = (index.boxes.to(torch.float64) * factors.repeat_interleave(counts)[:, None])[~index.ignore].numpy()
    usable = np.asarray((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= THIN)
    return boxes[usable], index.labels[~index.ignore].numpy()[usable]


def kmeans_iou(sides: Sides, k: int, *, seed: int = 0) -> Sides:
    """Returns k cluster centres (k, 2) of the ``sides`` (M, 2), sorted by area; fewer if fewer sides differ.

    Every centre is the median of its objects. k-means runs from two starts: one with equally many objects per centre,
    one with equal steps from small to large, which finds the few objects that are much smaller or larger than all
    others. The result with the higher mean IoU is taken, with each IoU capped at 0.7.
    """
    generator = np.random.default_rng(seed)
    if len(sides) > MAX_OBJECTS:
        sides = sides[generator.choice(len(sides), MAX_OBJECTS, replace=False)]
    by_area = sides[np.argsort(sides.prod(axis=1), kind="stable")]
    areas = by_area.prod(axis=1)
    low, high = np.quantile(areas, (0.02, 0.98)).tolist()
    steps = np.geomspace(low, high, k)
    even = ((np.arange(k) + 0.5) * len(sides) / k).astype(int)
    starts = (even, np.searchsorted(areas, steps).clip(max=len(sides) - 1))
    ends = [_settle(sides, np.unique(by_area[rows], axis=0)) for rows in starts]
    centres = max(ends, key=lambda end: np.minimum(_ious(sides, end).max(axis=1), ENOUGH).mean())
    return centres[np.argsort(centres.prod(axis=1), kind="stable")]


def _settle(sides: Sides, centres: Sides) -> Sides:
    """Iterates until each of the ``centres`` (k, 2) is the median of the ``sides`` (M, 2) nearest to it."""
    for _ in range(STEPS):
        nearest = _ious(sides, centres).argmax(axis=1)
        groups = [sides[nearest == i] for i in range(len(centres))]
        moved = np.array([np.median(own, axis=0) if len(own) else centres[i] for i, own in enumerate(groups)])
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres


def fit_sizes(sides: Sides, k: int) -> tuple[float, ...]:
    """Returns k rising anchor sizes, the square roots of areas in pixels, for objects with ``sides`` (M, 2).

    Neighbouring sizes differ by at least a quarter. Where all objects have one size, each further size is doubled.
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
    """Returns k rising aspect ratios, height over width, for objects with ``sides`` (M, 2)."""
    ratios = sides[:, 1] / sides[:, 0]
    found = kmeans_iou(np.stack([1 / np.sqrt(ratios), np.sqrt(ratios)], axis=1), k)
    rising = sorted(float(np.clip(height / width, 0.1, 10.0)) for width, height in found)
    if len(rising) < k or any(b / a < 1.15 for a, b in pairwise(rising)):
        centre = math.exp(float(np.median(np.log(ratios))))
        spread = [2.0 ** (place - (k - 1) / 2) for place in range(k)]
        rising = [centre * factor for factor in spread]
    return tuple(round(ratio, 2) for ratio in rising)


def best_iou(sides: Sides, sizes: Sequence[float], ratios: Sequence[float]) -> NDArray[np.float64]:
    """Returns the IoU (M,) of each object with its best anchor, centred on the object."""
    anchors = np.array([(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios])
    return _ious(sides, anchors).max(axis=1) if len(sides) else np.zeros(0)


def grid_iou(boxes: NDArray[np.float64], anchors: Sides, stride: int, *, offset: float = 0.5) -> NDArray[np.float64]:
    """Returns the IoU (M,) of each box (M, 4) with the best anchor of a feature map at its place in the image.

    Args:
        boxes: boxes of objects, pixels of the resized image.
        anchors: sides (A, 2) of the anchors of one cell.
        stride: side of a cell, pixels.
        offset: position of the anchors' centre in a cell, from 0 (top left) to 1.
    """
    sides, cells = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2 / stride - offset
    away = np.abs(cells - np.rint(cells))[:, None] * stride  # (M, 1, 2) from the nearest anchor's centre
    common = np.minimum((sides[:, None] + anchors[None]) / 2 - away, np.minimum(sides[:, None], anchors[None]))
    areas = common.clip(min=0).prod(axis=2)
    return (areas / (sides.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - areas)).max(axis=1, initial=0)


def reached(ious: NDArray[np.float64], at: float) -> float:
    """Returns the fraction of objects whose best IoU is at least ``at``; 1 without objects."""
    return float((ious >= at).mean()) if len(ious) else 1.0


def _ious(sides: Sides, anchors: Sides) -> NDArray[np.float64]:
    """Returns the IoU (M, A) of boxes that share their centre."""
    common = np.minimum(sides[:, None], anchors[None]).prod(axis=2)
    return common / (sides.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - common)
