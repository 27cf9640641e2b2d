"""Reads VOC's instance masks: one palette image per picture, whose pixels are object numbers.

0 is the background and 255 (void) the seam around objects, which belongs to none of them.
Source: the PASCAL VOC development kit, segmentation task.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detection.boxes import iou
from detection.data.images import FORMATS, UNREADABLE
from detection.data.problems import Problem
from detection.files import require_file
from detection.masks import encode

__all__ = ["read_instances"]

VOID = 255
# VOC's seam removes some 3 pixels from every side of a mask: an object of 12x12 pixels keeps a quarter of its box.
MIN_IOU = 0.25


def read_instances(
    file: Path, boxes: list[tuple[float, float, float, float]], size: tuple[int, int], problems: list[Problem]
) -> list[object]:
    """Returns the RLE of each object of one image, in the order of its ``boxes``; None for an object without a mask.

    Object numbers need not follow the annotation, so boxes and masks are matched greedily by overlap.  If the file is
    missing, no object has a mask.

    Args:
        file: PNG file.
        boxes: (x1, y1, x2, y2) of the objects in pixels.
        size: annotated (height, width) of the image.  The file is not turned, so it has to fit the boxes.
        problems: receives an error if the file can't be read or has another size.
    """
    numbers = _read(file, size, problems)
    found = [number for number in np.unique(numbers) if number not in (0, VOID)]
    extents = [_extent(numbers == number) for number in found]  # one mask at a time: there may be 254, of any size
    overlaps = iou(torch.tensor(boxes).reshape(-1, 4), torch.tensor(extents).reshape(-1, 4))
    return [None if row is None else encode(numbers == found[row]) for row in _match(overlaps)]


def _read(file: Path, size: tuple[int, int], problems: list[Problem]) -> NDArray[np.uint8]:
    """Returns the object numbers (H, W); an array (0, 0) if the file is missing or unusable."""
    try:
        require_file(file)
        with Image.open(file, formats=FORMATS) as image:
            if (image.height, image.width) != size:
                raise ValueError(f"it is {image.width}x{image.height} pixels, its annotation says {size[1]}x{size[0]}")
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, expected object numbers (P, a palette, or L)")
            return np.asarray(image)
    except FileNotFoundError:
        pass  # VOC has boxes for far more images than masks
    except UNREADABLE as error:
        problems.append(Problem("error", "instance masks that can't be read", str(file), str(error)))
    return np.zeros((0, 0), np.uint8)


def _extent(mask: NDArray[np.bool_]) -> list[float]:
    """Returns the tight box (x1, y1, x2, y2) of a mask with pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def _match(overlaps: Tensor) -> list[int | None]:
    """Returns the mask of each object by greedy matching of IoU (objects, masks); each mask has at most one object."""
    left = overlaps.nan_to_num()  # a box may hold any number here; the index checks it later
    matches: list[int | None] = [None] * len(overlaps)
    while left.numel() and left.max() >= MIN_IOU:
        row, column = divmod(int(left.argmax()), left.shape[1])
        matches[row] = column
        left[row], left[:, column] = 0, 0
    return matches
