"""Test images with detections, as JPEG pictures small enough for a page."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.evaluation.record import Record
from detection.visualize import draw_record

__all__ = ["picture"]

SIDE = 480  # pixels of the longer side of a picture
QUALITY = 82  # of the JPEG
MARK = (255, 0, 200)  # of objects to look at: in no class's colour, and easy to see on most pictures


def picture(
    index: AnnotationIndex, row: int, record: Record, *, min_score: float, marked: NDArray[np.floating] | None = None
) -> bytes:
    """The JPEG of image ``row`` with the detections of ``record`` that score at least ``min_score``.

    Boxes ``marked`` (M, 4), in pixels of the image, get a frame.
    """
    image = index.image(row)
    scale = SIDE / max(image.shape[:2])
    canvas = draw_record(image, record, index.class_names, min_score=min_score, scale=scale)
    boxes = np.zeros((0, 4), np.float32) if marked is None else marked
    for x1, y1, x2, y2 in np.rint(boxes * scale).astype(int).tolist():
        cv2.rectangle(canvas, (x1 - 4, y1 - 4), (x2 + 4, y2 + 4), MARK, 2, cv2.LINE_AA)
    written, content = cv2.imencode(
        ".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert written
    return content.tobytes()
