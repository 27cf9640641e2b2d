"""Overlapping windows of a large image, in which small objects are found that a whole resized image loses.

Training (data/slices.py) and testing (model/test_time/slices.py) cut by the same rule.

Source: Akyon et al. 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection" (SAHI).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Window", "windows"]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image: (top, left) in whole pixels of the image, and its size (height, width)."""

    corner: tuple[int, int]
    size: tuple[int, int]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Returns the rows and columns of the image that the window shows."""
        (top, left), (height, width) = self.corner, self.size
        return slice(top, top + height), slice(left, left + width)


def windows(size: tuple[int, int], side: int, overlap: float) -> list[Window]:
    """Returns the windows of an image of ``size`` (height, width), row by row, all of one size.

    They are spread evenly, so neighbours share at least ``overlap`` of a side.  An image no larger than ``side`` is one
    window.

    Args:
        size: of the image, pixels.
        side: of a window, pixels; an image that is shorter in one direction gives windows as short.
        overlap: share 0..1 of a side, below 1.
    """
    shown = min(side, size[0]), min(side, size[1])
    return [
        Window((top, left), shown)
        for top in _starts(size[0], shown[0], overlap)
        for left in _starts(size[1], shown[1], overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Returns where windows of ``side`` pixels begin along ``length`` pixels."""
    gaps = math.ceil((length - side) / max(1, math.floor(side * (1 - overlap))))
    return [round(number * (length - side) / gaps) for number in range(gaps + 1)] if gaps else [0]
