"""Draws test images with detections as JPEG pictures small enough for a page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.evaluation.record import Record
from detection.pages.photos import framed, jpeg, page_scale
from detection.visualize import draw_record

__all__ = ["picture"]


def picture(
    index: AnnotationIndex, row: int, record: Record, *, min_score: float, marked: NDArray[np.floating] | None = None
) -> bytes:
    """Returns the JPEG of image ``row`` with the detections of ``record`` that score at least ``min_score``.

    Draws a frame around boxes ``marked`` (M, 4), in pixels of the image.
    """
    image = index.image(row)
    scale = page_scale(image.shape)
    canvas = draw_record(image, record, index.class_names, min_score=min_score, scale=scale)
    return jpeg(canvas if marked is None else framed(canvas, marked * scale))
