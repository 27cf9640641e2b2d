"""Pure functions on instance masks of whole images: COCO's segmentations, and run-length code.

A mask is stored as COCO's compressed run-length code (RLE), or is (H, W) bool; sizes are (height, width).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as pycocotools_mask
from torch import Tensor

__all__ = ["RLE", "around", "count_pixels", "decode", "decode_columns", "empty_rle", "encode", "is_empty", "to_rle"]

# pycocotools takes some 100 bytes for every pixel along an edge, also outside the image.
MAX_COORDINATE = 1e5  # pixels
MAX_RUN_BITS = 40  # of a run length; pycocotools has 32
MAX_OUTLINE = 1e6  # pixels, of all polygons of an object


coco_mask: Any = pycocotools_mask  # its type stubs take the bytes of an RLE for text


class RLE(TypedDict):
    """A mask of a whole image as pycocotools keeps it."""

    size: list[int]  # height, width
    counts: bytes  # run lengths down the columns, compressed to ASCII


def to_rle(segmentation: object, size: tuple[int, int], *, may_be_empty: bool = False) -> RLE:
    """Returns the mask that a COCO ``segmentation`` describes in an image of ``size``.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, whose union is the mask, or an RLE
            {"size": [height, width], "counts": run lengths, plain or compressed}.
        size: (height, width) of the image.
        may_be_empty: accept a mask without a pixel, such as a detection's.

    Raises:
        ValueError: a polygon with fewer than 3 points or not finite, outlines longer than any object's, run
            lengths that do not fill the image, or a mask without a pixel.
    """
    if isinstance(segmentation, Mapping):
        rle = _checked_runs(segmentation, size)
    elif isinstance(segmentation, list) and segmentation:
        polygons = [_checked_polygon(number, points) for number, points in enumerate(segmentation, start=1)]
        if (outline := sum(map(_outline, polygons))) > MAX_OUTLINE:
            raise ValueError(f"its outline is {outline:.0f} pixels long, at most {MAX_OUTLINE:.0f} are drawn")
        rle: RLE = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    else:
        raise ValueError(f"segmentation is {_short(segmentation)}, expected polygons or an RLE")
    if not may_be_empty and is_empty(rle):
        raise ValueError("its mask covers no pixel of the image")
    return rle


def empty_rle(size: tuple[int, int]) -> RLE:
    """Returns the mask without a pixel of an image of ``size``."""
    return _from_runs([size[0] * size[1]], size)


def is_empty(rle: RLE) -> bool:
    """Returns whether a mask has no pixel."""
    return not coco_mask.area(rle)


def around(rle: RLE) -> tuple[float, float, float, float]:
    """Returns the box x1, y1, x2, y2 around a mask; zeros where it has no pixel."""
    x, y, width, height = coco_mask.toBbox(rle).tolist()
    return x, y, x + width, y + height


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> RLE:
    """Returns the RLE of ``mask`` (H, W); nothing is copied if it is uint8 in Fortran order."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def decode(rles: Sequence[RLE], size: tuple[int, int]) -> Tensor:
    """Returns the masks (N, H, W) bool of an image of ``size``."""
    if not rles:
        return torch.zeros((0, *size), dtype=torch.bool)
    return torch.from_numpy(np.ascontiguousarray(_pixels(rles).transpose(2, 0, 1))).view(torch.bool)


def decode_columns(rle: RLE) -> NDArray[np.uint8]:
    """Returns the mask (H, W) as 0 and 1 in Fortran order, column after column, as ``encode`` takes it."""
    return _pixels([rle])[..., 0]


def _pixels(rles: Sequence[RLE]) -> NDArray[np.uint8]:
    """Returns (H, W, N) in Fortran order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 does not know numpy 2's __array__
        return coco_mask.decode(list(rles))


def count_pixels(masks: Tensor) -> Tensor:
    """Returns the number of pixels (N,) int64 of each of ``masks`` (N, H, W) bool."""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)  # torch's sum is slow


def _checked_polygon(number: int, points: object) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(points, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"polygon {number} is {_short(points)}, expected numbers x, y, x, y, ...") from error
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"polygon {number} is {_short(points)}, expected x and y of at least 3 points")
    if not (np.abs(numbers) <= MAX_COORDINATE).all():  # NaN is not
        raise ValueError(f"polygon {number} is {_short(points)}, expected pixels of the image")
    return numbers


def _outline(polygon: NDArray[np.float64]) -> float:
    """Returns the pixels that a polygon's edges but the last go across and down."""
    return float(np.abs(polygon[2:] - polygon[:-2]).sum())


def _checked_runs(segmentation: Mapping[Any, Any], size: tuple[int, int]) -> RLE:
    counts, given = segmentation.get("counts"), segmentation.get("size")
    if given != [*size]:
        raise ValueError(f"RLE size is {_short(given)}, the image has [height, width] {[*size]}")
    if isinstance(counts, (str, bytes)):
        counts = _uncompressed(counts.encode() if isinstance(counts, str) else counts)
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise ValueError(f"RLE counts are {_short(counts)}, expected run lengths")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"RLE counts sum to {sum(counts)}, the image has {size[0]} * {size[1]} pixels")
    return _from_runs(counts, size)


def _uncompressed(counts: bytes) -> list[int]:
    """Returns the run lengths in compressed ``counts``.

    A number is written in groups of 5 bits plus 48, the lowest first; a sixth bit says that another group follows.
    From the fourth number on it is the difference to the number before the last.  Source: pycocotools, maskApi.c.
    """
    runs, value, bits = list[int](), 0, 0
    for byte in counts:
        if bits > MAX_RUN_BITS:
            break
        group = byte - 48
        value |= (group & 31) << bits
        bits += 5
        if not group & 32:
            sign = (group & 16) << (bits - 4)  # the highest bit of the last group: two's complement
            runs.append(value - sign + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    if bits or not all(48 <= byte < 112 for byte in counts):
        raise ValueError(f"RLE counts are {_short(counts)}, which is no compressed RLE")
    return runs


def _from_runs(runs: list[int], size: tuple[int, int]) -> RLE:
    return coco_mask.frPyObjects({"size": [*size], "counts": runs}, *size)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
