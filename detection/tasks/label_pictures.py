"""Draws labels on images: boxes, masks, keypoints, class names, and hatching over ignored regions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.keypoints import KeypointSpec
from detection.masks import encode
from detection.structures import Target
from detection.visualize import draw_boxes

__all__ = ["draw_labels", "drawn_target", "hatch"]

LIGHT = (235, 235, 235)
DARK = (60, 60, 60)


def draw_labels(
    image: NDArray[np.uint8],
    target: Target,
    class_names: Sequence[str],
    *,
    keypoints: KeypointSpec | None = None,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Returns ``image`` (H, W, 3) RGB, resized by ``scale``, with the objects of ``target`` drawn on it.

    Ignored regions are hatched and have no name.  ``keypoints`` defines the lines between keypoints.
    """
    shown = ~target.ignore
    masks = None if target.masks is None else [encode(mask) for mask in target.masks[shown].numpy()]
    boxes, labels = target.boxes.numpy().astype(np.float64), target.labels[shown].numpy()
    points = None if target.keypoints is None else target.keypoints[shown].numpy()
    canvas = draw_boxes(
        image,
        boxes[shown.numpy()],
        None,
        labels,
        class_names,
        masks=masks,
        keypoints=points,
        keypoint_spec=keypoints,
        scale=scale,
    )
    for box in boxes[target.ignore.numpy()] * scale:
        hatch(canvas, box)
    return canvas


def drawn_target(index: AnnotationIndex, row: int) -> Target:
    """Returns the objects of image ``row`` with the fields that ``draw_labels`` shows."""
    return index.target(row, fields=[name for name in ("masks", "keypoints") if name in index.fields])


def hatch(canvas: NDArray[np.uint8], box: NDArray[np.floating], *, step: int = 12) -> None:
    """Draws slanted lines and a border over ``box`` of ``canvas`` (H, W, 3), every ``step`` pixels."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = (int(value) for value in np.clip(np.rint(box), 0, [width, height, width, height]))
    part = canvas[y1:y2, x1:x2]
    if not part.size:
        return
    rows, columns = np.indices(part.shape[:2])
    slant = (rows + columns) % step
    part[slant < 2] = LIGHT
    part[(slant >= 2) & (slant < 4)] = DARK
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), LIGHT, 2)
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), DARK, 1)
