"""Images with their labels drawn: boxes, masks and class names, and hatching over what is ignored."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.masks import encode
from detection.structures import Target
from detection.visualize import draw_boxes

__all__ = ["draw_labels", "hatch"]

LIGHT = (235, 235, 235)
DARK = (60, 60, 60)


def draw_labels(
    image: NDArray[np.uint8], target: Target, class_names: Sequence[str], *, longest: int = 640
) -> tuple[NDArray[np.uint8], float]:
    """Returns ``image`` (H, W, 3) RGB with the objects of ``target``, and the scale at which it is drawn.

    Args:
        image: in which the boxes of ``target`` are pixels.
        target: its objects; what is ignored is hatched and has no name.
        class_names: of the K classes.
        longest: pixels of a side; larger images are shrunk first, so that names can be read.
    """
    scale = min(1.0, longest / max(image.shape[:2]))
    small = image
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    shown = ~target.ignore
    masks = None if target.masks is None else [encode(mask) for mask in target.masks[shown].numpy()]
    boxes = target.boxes.numpy().astype(np.float64)
    canvas = draw_boxes(
        small, boxes[shown.numpy()] * scale, None, target.labels[shown].numpy(), class_names, masks=masks
    )
    grown = canvas.shape[0] / image.shape[0]
    for box in boxes[target.ignore.numpy()] * grown:
        hatch(canvas, box)
    return canvas, grown


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
