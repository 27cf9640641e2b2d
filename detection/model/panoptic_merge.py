"""The merging rule of Panoptic FPN: objects and a label map become segments that do not overlap.

Source: "Panoptic Feature Pyramid Networks" (Kirillov et al. 2019), section 3, "Panoptic inference", and "Panoptic
Segmentation" (Kirillov et al. 2019), section 7, with Detectron2's thresholds.
Shapes: D detections, H W height and width of the stored image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.masks import RLE, decode
from detection.segments import Segment, Segments

__all__ = ["Merging"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """The rule and its thresholds.

    Attributes:
        num_things: number of things, which are the first labels.
        instance_score: least score of an object.
        overlap: share of an object's mask that better ones may have taken; above it the object is left out.
        stuff_area: least number of pixels of the stored image, outside objects, of a class of stuff.
    """

    num_things: int
    instance_score: float = 0.5
    overlap: float = 0.5
    stuff_area: int = 4096

    def __call__(
        self,
        scores: NDArray[np.floating],
        labels: NDArray[np.int64],
        masks: Sequence[RLE],
        label_map: NDArray[np.uint8],
    ) -> Segments:
        """Returns the segments of an image, numbered from 1: objects, best first, then stuff by its label.

        Args:
            scores: (D,) 0..1.
            labels: (D,) of things.
            masks: (D,) of the stored image.
            label_map: (H, W) 0 for things, 1.. for stuff.
        """
        height, width = label_map.shape
        ids, found = np.zeros((height, width), np.int32), list[Segment]()
        for row in np.argsort(-scores, kind="stable").tolist():
            if scores[row] < self.instance_score:
                break
            mask = decode([masks[row]], (height, width))[0].numpy()
            free = mask & (ids == 0)
            area, left = np.count_nonzero(mask), np.count_nonzero(free)
            if left and area - left <= self.overlap * area:
                self._add(found, ids, free, int(labels[row]))
        for label in np.unique(label_map[ids == 0]).tolist():
            own = (label_map == label) & (ids == 0)
            if label and np.count_nonzero(own) >= self.stuff_area:
                self._add(found, ids, own, self.num_things + label - 1)
        return Segments(ids, tuple(found))

    @staticmethod
    def _add(found: list[Segment], ids: NDArray[np.int32], pixels: NDArray[np.bool_], label: int) -> None:
        found.append(Segment(len(found) + 1, label))
        ids[pixels] = len(found)
