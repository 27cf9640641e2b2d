"""Photographs of a page: their size, their JPEGs, and frames around regions of interest."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["MARK", "framed", "jpeg", "page_scale"]

SIDE = 480  # pixels of the longer side of a picture
QUALITY = 82  # of the JPEG
MARK = (255, 0, 200)  # colour of frames: not a class colour, and visible on most pictures
MARGIN = 4  # pixels between a box and its frame


def page_scale(shape: tuple[int, ...]) -> float:
    """Returns the scale at which an image of ``shape`` (H, W, ...) is drawn for a page."""
    return SIDE / max(shape[:2])


def framed(canvas: NDArray[np.uint8], boxes: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Returns a copy of ``canvas`` (H, W, 3) RGB with a frame around each of ``boxes`` (M, 4).

    A box that crosses the border is framed as far as it is visible.
    """
    canvas = canvas.copy()
    height, width = canvas.shape[:2]
    for x1, y1, x2, y2 in np.nan_to_num(boxes, posinf=1e6, neginf=-1e6).clip(-1e6, 1e6).round().astype(int):
        first = (int(np.clip(x1 - MARGIN, 1, width - 2)), int(np.clip(y1 - MARGIN, 1, height - 2)))
        last = (int(np.clip(x2 + MARGIN, 1, width - 2)), int(np.clip(y2 + MARGIN, 1, height - 2)))
        cv2.rectangle(canvas, first, last, MARK, 2, cv2.LINE_AA)
    return canvas


def jpeg(canvas: NDArray[np.uint8]) -> bytes:
    """Returns the JPEG of ``canvas`` (H, W, 3) RGB."""
    written, content = cv2.imencode(
        ".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert written
    return content.tobytes()
