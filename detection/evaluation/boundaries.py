"""Boundary IoU: the agreement of masks near their outlines, whatever their size.

Source: Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", section 5, and its
boundary-iou-api, whose numbers these are: erosion with squares, and no mask outside the image.

Shapes: D detections and G objects of a whole set; P pairs of a detection and an object; H W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.evaluation.candidates import Candidates, enough, mask_candidates, mask_ious
from detection.evaluation.columns import Columns
from detection.masks import RLE, around, decode_columns, encode, is_empty

__all__ = ["boundary", "boundary_candidates", "boundary_width"]

SHARE = 0.02  # width of a boundary, as a fraction of the image's diagonal


def boundary_candidates(columns: Columns, ignored: NDArray[np.bool_], *, least: float) -> Candidates:
    """Returns the pairs whose mask IoU and boundary IoU are both at least ``least``.

    The IoU of a pair is the smaller of the two.  With an ``ignored`` object (G,) it is the fraction of the detection's
    mask that the object covers.
    """
    found = mask_candidates(columns, ignored, least=least)
    if columns.masks is None or columns.gt_masks is None or not len(found.rows):
        return found
    judged = np.flatnonzero(~ignored[found.objects])
    rows, places = np.unique(found.rows[judged], return_inverse=True)
    objects, gt_places = np.unique(found.objects[judged], return_inverse=True)
    ious = found.ious.copy()
    along = mask_ious(
        _boundaries(columns.masks, rows),
        _boundaries(columns.gt_masks, objects),
        np.zeros(len(objects), np.bool_),
        places,
        gt_places,
    )
    ious[judged] = np.minimum(ious[judged], along)
    return enough(found.rows, found.objects, ious, least)


def boundary(rle: RLE) -> RLE:
    """Returns the pixels of a mask within the boundary's width of a pixel outside it, or of the image border.

    Distance is the larger of the horizontal and the vertical one (Chebyshev).
    """
    if is_empty(rle):
        return rle
    height, width = rle["size"]
    mask = decode_columns(rle)
    x1, y1, x2, y2 = map(int, around(rle))
    inside = mask.T[x1:x2, y1:y2]  # the box of the mask
    side = 2 * boundary_width((height, width)) + 1
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    inside -= cv2.erode(inside, square, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    return encode(mask)


def boundary_width(size: tuple[int, int]) -> int:
    """Returns the width of boundaries in pixels, at least 1, in an image of ``size`` (height, width)."""
    return max(1, round(SHARE * math.hypot(*size)))


def _boundaries(masks: Sequence[RLE], rows: NDArray[np.int64]) -> list[RLE]:
    return [boundary(masks[row]) for row in rows.tolist()]
