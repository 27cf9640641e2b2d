"""Samples features, masks and logits at points of regions, in at least single precision, as positions need it.

Points are (..., 2), x and y as shares 0..1 of the side of their region.
Source: PointRend (Kirillov et al. 2020), section 3.
Shapes: N images, C channels, H W height and width, R regions, P points of a region, M masks of all images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.model.precision import at_least_single
from detection.model.select import hash32

__all__ = ["drawn_points", "grid_points", "on_image", "sample_features", "sample_masks", "sample_regions"]

POINTS = 3  # stream of random numbers, see ``hash32``


def grid_points(side: int, like: Tensor) -> Tensor:
    """Returns the centres (side * side, 2) of the cells of a region, row by row, on the device of ``like``."""
    centres = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def drawn_points(seeds: Tensor, regions: int, count: int, like: Tensor) -> Tensor:
    """Returns ``count`` random points (N, R, P, 2) of each of the first ``regions`` of the images of ``seeds`` (N,)."""
    places = torch.arange(regions * count * 2, device=seeds.device)
    numbers = hash32(seeds, places, POINTS).to(like.dtype) / 2**32
    return numbers.view(len(seeds), regions, count, 2)


def on_image(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns the places (N, R, P, 2) in pixels of ``points`` (N, R, P, 2) or (P, 2) of the ``boxes`` (N, R, 4)."""
    corners, sides = boxes[..., None, :2], boxes[..., None, 2:] - boxes[..., None, :2]
    return corners + points * sides


def sample_features(features: Tensor, places: Tensor, stride: int) -> Tensor:
    """Returns (N, C, R, P), interpolated from the feature map (N, C, H, W) at ``places`` (N, R, P, 2) in pixels.

    Outside the map features are 0.
    """
    height, width = features.shape[-2:]
    extent = places.new_tensor([width * stride, height * stride])
    return _interpolated(features, places / extent)


def sample_regions(regions: Tensor, points: Tensor) -> Tensor:
    """Returns (R, C, P), interpolated from a map (R, C, H, W) of each region at its ``points`` (R, P, 2)."""
    return _interpolated(regions, points[:, :, None])[..., 0]


def sample_masks(masks: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Returns (R, P) in 0..1, interpolated from the ``masks`` (M, H, W) bool at ``places`` (R, P, 2) in their pixels.

    ``rows`` (R,) tell which mask is a region's. Outside the image the mask is 0.
    """
    total = places.new_zeros(places.shape[:2])
    if not len(masks):  # there is nothing to look up, and all regions are padding
        return total
    height, width = masks.shape[1:]
    low = (places - 0.5).floor()
    share = places - 0.5 - low
    for down in (0, 1):
        for across in (0, 1):
            x, y = (low + places.new_tensor([across, down])).long().unbind(dim=-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            set_ = masks[rows[:, None], y.clamp(0, height - 1), x.clamp(0, width - 1)] & inside
            weights = (share[..., 0] if across else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            total = total + weights * set_
    return total


def _interpolated(maps: Tensor, points: Tensor) -> Tensor:
    grid = 2 * points - 1
    return F.grid_sample(at_least_single(maps).to(grid.dtype), grid, mode="bilinear", align_corners=False)
