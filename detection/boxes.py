"""Pure functions on boxes: (..., 4) float rows (x1, y1, x2, y2) in pixels, width = x2 - x1.

Shapes: ``...`` is any leading shape, N images, M and G boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["areas", "clip", "inside", "intersection", "intersection_over_area", "iou", "not_empty", "scale"]


def areas(boxes: Tensor) -> Tensor:
    """Returns the areas (...) of ``boxes`` (..., 4) in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def not_empty(boxes: Tensor) -> Tensor:
    """Tells (...) which of ``boxes`` (..., 4) have a width and a height above zero."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the common area (..., M, G) of every box (..., M, 4) with every other (..., G, 4), square pixels."""
    return _common(boxes, others, 0).mul_(_common(boxes, others, 1))


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the IoU (..., M, G) of every box (..., M, 4) with every other (..., G, 4); 0 for empty boxes.

    At its peak it needs three times the memory of the result.
    """
    common, own = intersection(boxes, others), areas(boxes)
    union = own[..., :, None] + (own if others is boxes else areas(others))[..., None, :]
    return common.div_(union.sub_(common).clamp_(min=torch.finfo(union.dtype).tiny))


def intersection_over_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """Returns the share (..., M, G), 0..1, of each box (..., M, 4) that lies in each region (..., G, 4)."""
    return intersection(boxes, regions).div_(areas(boxes)[..., :, None].clamp(min=torch.finfo(boxes.dtype).tiny))


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Cuts ``boxes`` (..., 4) at the borders of an image of ``size`` (height, width).

    With sizes (N, 2) of several images, ``boxes`` are (N, ..., 4).
    """
    return torch.minimum(boxes.clamp(min=0), _corners(boxes, size))


def inside(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Tells (N, M) which of ``boxes``, (M, 4) or (N, M, 4), lie wholly in each of N images of ``sizes`` (N, 2)."""
    boxes = boxes.expand(len(sizes), *boxes.shape[-2:])
    return ((boxes >= 0) & (boxes <= _corners(boxes, sizes))).all(dim=-1)


def scale(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scales ``boxes`` (..., 4) in pixels of an image of ``size`` (height, width) to the image at ``new_size``."""
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def _corners(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Returns (width, height, width, height) of ``size`` so that it broadcasts against ``boxes``."""
    if not isinstance(size, Tensor):
        return boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return size.flip(1).repeat(1, 2).view(len(size), *[1] * (boxes.ndim - 2), 4)


def _common(boxes: Tensor, others: Tensor, axis: int) -> Tensor:
    """Returns the length (..., M, G) along ``axis``, 0 for x, that every box shares with every other."""
    first = torch.maximum(boxes[..., :, None, axis], others[..., None, :, axis])
    last = torch.minimum(boxes[..., :, None, axis + 2], others[..., None, :, axis + 2])
    return last.sub_(first).clamp_(min=0)
