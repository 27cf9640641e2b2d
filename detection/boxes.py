"""Pure functions on boxes: (N, 4) float rows (x1, y1, x2, y2) in pixels, width = x2 - x1."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["areas", "clip", "inside", "intersection_over_area", "iou", "row_slices", "scale"]

# A matrix of boxes with boxes is computed in slices of at most this many elements (64 MiB of float32): 243,000 anchors
# and 500 objects would otherwise take gigabytes.
MAX_ELEMENTS = 1 << 24


def areas(boxes: Tensor) -> Tensor:
    """Areas (...) of ``boxes`` (..., 4) in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (N, M) of every box (N, 4) with every other (M, 4); 0 where both are empty.

    Beside the result it takes the memory of a few slices of ``MAX_ELEMENTS``.
    """
    result = boxes.new_empty((len(boxes), len(others)), dtype=torch.result_type(boxes, others))
    for rows in row_slices(len(boxes), len(others)):
        intersection = _intersection(boxes[rows], others)
        union = areas(boxes[rows])[:, None] + areas(others)[None, :] - intersection
        result[rows] = intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
    return result


def intersection_over_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """The share (N, M), 0..1, of each box (N, 4) that lies in each region (M, 4)."""
    return _intersection(boxes, regions) / areas(boxes)[:, None].clamp(min=torch.finfo(boxes.dtype).tiny)


def row_slices(rows: int, columns: int) -> list[slice]:
    """Slices of the rows of a ``rows`` x ``columns`` matrix that have at most ``MAX_ELEMENTS`` elements each."""
    step = max(1, MAX_ELEMENTS // max(columns, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]


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
    return _overlap(boxes[:, 0::2], others[:, 0::2]) * _overlap(boxes[:, 1::2], others[:, 1::2])


def _overlap(spans: Tensor, others: Tensor) -> Tensor:
    """The length (N, M) that each span (N, 2), first and last, shares with each other (M, 2)."""
    first = torch.maximum(spans[:, None, 0], others[None, :, 0])
    return (torch.minimum(spans[:, None, 1], others[None, :, 1]) - first).clamp(min=0)
