"""Turns the class scores of a network at every pixel into label maps of stored images.

Shapes: K classes, H W height and width; sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detection.data.label_maps import LabelMaps
from detection.masks import RLE
from detection.model.semantic import pixel_logits
from detection.segments import Segments

__all__ = ["Keep", "Labelled", "Merge", "labelled", "read_labelled", "stored_labels"]

MOST_SCORES = 1 << 26  # that are resized at once: 256 MiB


@dataclass(frozen=True, slots=True)
class Labelled:
    """The label map of an image, and the segments of which a panoptic one is made."""

    labels: NDArray[np.uint8]  # (H, W) of the stored image, labels of the data set; VOID where nothing is predicted
    segments: Segments | None = None


# Scores (D,), labels (D,) and masks of objects in the stored image, and the label map (H, W) of the network's own
# classes, to segments in the labels of the data set.
Merge = Callable[[NDArray[np.floating], NDArray[np.int64], tuple[RLE, ...], NDArray[np.uint8]], Segments]
Keep = Callable[[int, Labelled], None]  # is given the row of an image in the index, and its label map


def stored_labels(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the best class (*``size``) uint8 at each pixel of the stored image; of equal scores, the first.

    Args:
        scores: (K, H, W) of the image as the network saw it.
        size: of the stored image, to which scores are brought by bilinear interpolation.
    """
    step = max(1, MOST_SCORES // max(1, size[0] * size[1]))
    labels, best = None, None
    for start in range(0, len(scores), step):
        values, found = pixel_logits(scores[None, start : start + step], size)[0].max(dim=0)
        if labels is None or best is None:
            labels, best = found, values
        else:
            better = values > best
            labels, best = found.add(start).where(better, labels), values.where(better, best)
    if labels is None:
        raise ValueError("label scores have no class; a label map needs at least 1")
    return labels.byte()


def labelled(labels: NDArray[np.uint8], objects: dict[str, Any] | None = None, merge: Merge | None = None) -> Labelled:
    """Returns ``labels`` (H, W) unchanged, or with ``merge`` the segments of these and the ``objects``.

    Args:
        labels: of the network's own classes.
        objects: "scores", "labels" and "masks" of the detections in the stored image.
        merge: of a panoptic network.
    """
    if merge is None or objects is None:
        return Labelled(labels)
    segments = merge(objects["scores"], objects["labels"], objects["masks"], labels)
    return Labelled(segments.labels, segments)


def read_labelled(maps: LabelMaps, row: int, size: tuple[int, int]) -> Labelled:
    """Returns the labels of image ``row``, of ``size`` (height, width), from ``maps``.

    Raises:
        ImageError: the label image can't be read or does not fit.
    """
    if maps.segments is None:
        return Labelled(maps.read(row, size))
    segments = maps.read_segments(row, size)
    return Labelled(segments.labels, segments)
