"""Pure functions on boxes: (N, 4) float rows (x1, y1, x2, y2) in pixels, width = x2 - x1."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["areas", "clip", "inside", "intersection_over_area", "iou", "scale"]


def areas(boxes: Tensor) -> Tensor:
    """Areas (...) of ``boxes`` (..., 4) in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (N, M) of every box (N, 4) with every other (M, 4); 0 where both are empty."""
    intersection = _intersection(boxes, others)
    union = areas(boxes)[:, None] + areas(others)[None, :] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def intersection_over_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """The share (N, M), 0..1, of each box (N, 4) that lies in each region (M, 4)."""
    return _intersection(boxes, regions) / areas(boxes)[:, None].clamp(min=torch.finfo(boxes.dtype).tiny)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """``boxes`` (..., 4) cut at the borders of an image of ``size`` (height, width)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether (N,) each box (N, 4) lies wholly in an image of ``size`` (height, width)."""
    height, width = size
    return (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)


def scale(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """``boxes`` (..., 4) of an image of ``size`` (height, width), in pixels of the same image at ``new_size``."""
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])  # (N, M, 2)
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (bottom_right - top_left).clamp(min=0).prod(dim=-1)
