"""Edges one pixel wide: non-maximum suppression across edges, and thinning of a binary map.

Source: of the suppression Dollár and Zitnick 2015, "Fast Edge Detection Using Structured Forests", and its toolbox
(smoothing by 1, orientation at 4, factor 1.01, 5 pixels at the border), which HED's authors used; of the thinning Guo
and Hall 1989, "Parallel Thinning with Two-Subiteration Algorithms", which MATLAB's bwmorph has.
Departure: the orientation is the principal direction of the second derivatives; the toolbox has their quotient and a
sign that is wrong beside a slanting edge.
Shapes: H W height and width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, map_coordinates

__all__ = ["suppress", "thin"]

Map = NDArray[np.float64]

TOLERANCE = 1.01  # factor by which a neighbour may be higher
BORDER = 5  # pixels over which values rise from 0 to their own


def suppress(edges: Map) -> Map:
    """Returns ``edges`` (H, W), smoothed, with 0 where a neighbour across the edge is higher."""
    smooth = _triangle(edges, 1)
    angle = _orientation(_triangle(smooth, 4))
    rows, columns = np.indices(edges.shape, dtype=np.float64)
    kept = smooth > 0
    for side in (-1, 1):
        places = (rows + side * np.sin(angle), columns + side * np.cos(angle))
        kept &= TOLERANCE * smooth >= map_coordinates(smooth, places, order=1, mode="nearest")
    ramps = [np.minimum(1, np.minimum(np.arange(side), np.arange(side)[::-1]) / BORDER) for side in edges.shape]
    return np.where(kept, smooth, 0.0) * np.minimum.outer(ramps[0], np.ones_like(ramps[1])) * ramps[1]


def thin(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns ``marked`` (H, W) thinned to lines one pixel wide, as connected as before."""
    image = np.pad(marked, 1)
    while True:
        before = image
        for second in (False, True):
            image = image & ~_removable(image, second=second)
        if np.array_equal(image, before):
            return image[1:-1, 1:-1]


def _removable(image: NDArray[np.bool_], *, second: bool) -> NDArray[np.bool_]:
    """Returns the pixels that one half of a thinning round removes."""
    # From the east neighbour on, against the clock; the ninth is the first again.
    shifts = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
    x = [np.roll(image, (-row, -column), axis=(0, 1)) for row, column in shifts]
    x.append(x[0])
    crossings = sum((~x[i] & (x[i + 1] | x[i + 2])).astype(np.int8) for i in (0, 2, 4, 6))
    one = sum((x[i] | x[i + 1]).astype(np.int8) for i in (0, 2, 4, 6))
    other = sum((x[i + 1] | x[i + 2]).astype(np.int8) for i in (0, 2, 4, 6))
    neighbours = np.minimum(one, other)
    open_side = (x[5] | x[6] | ~x[3]) & x[4] if second else (x[1] | x[2] | ~x[7]) & x[0]
    return image & (crossings == 1) & (neighbours >= 2) & (neighbours <= 3) & ~open_side


def _triangle(values: Map, radius: int) -> Map:
    """Returns ``values`` smoothed by a triangle that reaches ``radius`` pixels to each side, with mirrored borders."""
    kernel = np.concatenate([np.arange(1, radius + 2), np.arange(radius, 0, -1)]) / (radius + 1) ** 2
    return correlate1d(correlate1d(values, kernel, axis=0, mode="reflect"), kernel, axis=1, mode="reflect")


def _orientation(smooth: Map) -> Map:
    """Returns the angle across the edge at each pixel: the direction of the largest second derivative."""
    down, right = np.gradient(smooth)
    _, right_right = np.gradient(right)
    down_down, down_right = np.gradient(down)
    highest = 0.5 * np.arctan2(2 * down_right, right_right - down_down)
    return highest + np.where(right_right + down_down < 0, np.pi / 2, 0.0)
