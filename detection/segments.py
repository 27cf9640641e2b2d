"""Panoptic images: the segment of every pixel, and the class of every segment.

Shapes: H W height and width of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.structures import VOID

__all__ = ["Segment", "Segments"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a panoptic image: an object, or all that belongs to a class of stuff."""

    id: int
    label: int  # 0..K-1
    crowd: bool = False  # neither hit nor miss


@dataclass(frozen=True, slots=True)
class Segments:
    """The panoptic ground truth or prediction of an image."""

    ids: NDArray[np.int32]  # (H, W) the segment of each pixel; 0 is void
    found: tuple[Segment, ...]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The label (H, W) of the segment of each pixel; VOID where there is none."""
        labels = {0: VOID} | {segment.id: segment.label for segment in self.found}
        present, places = np.unique(self.ids, return_inverse=True)
        return np.array([labels[id_] for id_ in present.tolist()], np.uint8)[places].reshape(self.ids.shape)
