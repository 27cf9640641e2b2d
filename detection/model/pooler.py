"""Region pooling: a fixed-size piece of a feature map for every region.

Source: Fast R-CNN, section 2.1 (RoI pooling); Mask R-CNN, section 3 (RoIAlign); "Feature Pyramid Networks", equation 1
(which level a region is pooled from).
Shapes: N images, C channels, R regions of all images together, S pooled size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import roi_align, roi_pool

from detection.model.precision import at_least_single

__all__ = ["PoolKind", "RegionPooler"]

PoolKind = Literal["roi_pool", "roi_align", "roi_align_unaligned"]

# A region of 224 x 224 pixels, the size of the images of the pre-training, is pooled at stride 16 (FPN, section 4.2).
CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4


class RegionPooler(nn.Module):
    """Pools regions from one feature map, or each from the level of a pyramid that fits its size.

    Args:
        strides: pixels of the image per cell of each feature map, doubling.
        size: S, cells per side.
        kind: "roi_pool" takes the maximum over rounded bins, "roi_align" averages interpolated points;
            "roi_align_unaligned" is off by half a cell, as in torchvision's detectors.
        sampling_ratio: points per bin and side; 0 takes one per cell of the feature map. RoIAlign only.
    """

    def __init__(
        self, strides: Sequence[int], size: int, *, kind: PoolKind = "roi_pool", sampling_ratio: int = 2
    ) -> None:
        super().__init__()
        self.strides, self.size, self.kind, self.sampling_ratio = tuple(strides), size, kind, sampling_ratio
        if list(self.strides) != [self.strides[0] * 2**i for i in range(len(self.strides))]:
            raise ValueError(f"the strides of a pyramid double from level to level, got {self.strides}")

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(R, C, S, S) from the levels (N, C, H, W) and the boxes (R_i, 4) of each image, image by image.

        Levels beyond the pooler's are left aside.
        """
        # Not in half precision: the operators lack bfloat16, and it moves a box by up to half a pixel at 1000.
        levels = [at_least_single(feature) for feature in features[: len(self.strides)]]
        image = torch.cat([box.new_full((len(box), 1), row, dtype=torch.float32) for row, box in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(list(boxes))], dim=1).to(levels[0].dtype)  # (R, 5): row of the image, box
        if len(levels) == 1:
            return self._pool(levels[0], regions, self.strides[0]).to(features[0].dtype)
        chosen = self._levels(regions[:, 1:])
        rows = [(chosen == number).nonzero().flatten() for number in range(len(levels))]
        pooled = [self._pool(*part) for part in zip(levels, (regions[own] for own in rows), self.strides, strict=True)]
        back = torch.cat(rows).argsort()  # to the order of the boxes
        return torch.cat(pooled)[back].to(features[0].dtype)

    def _levels(self, boxes: Tensor) -> Tensor:
        """The level (R,) of each of ``boxes`` (R, 4), 0 for the finest."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        level = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE) + 1e-6)  # a side of 0 gives -inf
        finest = self.strides[0].bit_length() - 1
        return level.clamp(finest, finest + len(self.strides) - 1).long() - finest

    def _pool(self, feature: Tensor, regions: Tensor, stride: int) -> Tensor:
        size = (self.size, self.size)
        if self.kind == "roi_pool":
            return roi_pool(feature, regions, size, spatial_scale=1 / stride)
        aligned = self.kind == "roi_align"
        if feature.device.type == "cpu" and self.sampling_ratio > 0:
            return _align_on_cpu(feature, regions, self.size, 1 / stride, self.sampling_ratio, aligned=aligned)
        return roi_align(
            feature, regions, size, spatial_scale=1 / stride, sampling_ratio=self.sampling_ratio, aligned=aligned
        )


def _align_on_cpu(feature: Tensor, regions: Tensor, size: int, scale: float, samples: int, *, aligned: bool) -> Tensor:
    """torchvision's ``roi_align`` as sums of weighted cells, of which PyTorch has a kernel for all cores.

    torchvision's own kernel for the CPU goes backward on one core, one channel at a time.

    Args:
        feature: (N, C, H, W).
        regions: (R, 5), row of the image and box in image pixels.
        size: S, bins per side.
        scale: cells per pixel.
        samples: per bin and side, at least 1.
        aligned: pixel and cell centres are at halves.

    Returns:
        (R, C, S, S).
    """
    _, channels, height, width = feature.shape
    start, end = (regions[:, 1:] * scale - (0.5 if aligned else 0.0)).to(feature.dtype).split(2, dim=1)
    lengths = end - start if aligned else (end - start).clamp(min=1)
    columns, column_weights = _taps(start[:, 0], lengths[:, 0], size, samples, width)  # (R, S, 2 * samples)
    rows, row_weights = _taps(start[:, 1], lengths[:, 1], size, samples, height)
    first = (regions[:, 0].long() * height * width)[:, None, None, None, None]
    cells = first + (rows * width)[:, :, None, :, None] + columns[:, None, :, None, :]  # (R, S, S, taps, taps)
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    taps = (2 * samples) ** 2
    table = feature.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * H * W, C)
    sums = F.embedding_bag(cells.reshape(-1, taps), table, per_sample_weights=weights.reshape(-1, taps), mode="sum")
    return sums.view(len(regions), size, size, channels).permute(0, 3, 1, 2)


def _taps(start: Tensor, length: Tensor, bins: int, samples: int, cells: int) -> tuple[Tensor, Tensor]:
    """Cells of one axis that a bin's samples interpolate between, and their weights: two (R, bins, 2 * samples).

    Args:
        start: (R,) of each region, in cells.
        length: (R,) of each region, in cells.
        bins: per region.
        samples: per bin.
        cells: of the feature map along this axis; a sample more than one cell outside it counts nothing.
    """
    steps = torch.arange(bins * samples, dtype=start.dtype, device=start.device).add(0.5) / (bins * samples)
    points = start[:, None] + length[:, None] * steps  # (R, bins * samples)
    inside = (points >= -1) & (points <= cells)
    points = points.clamp(0, cells - 1)
    low = points.floor()
    weights = torch.stack([1 - (points - low), points - low], dim=-1) * inside[..., None] / samples
    indices = torch.stack([low, (low + 1).clamp(max=cells - 1)], dim=-1).long()
    return indices.view(len(start), bins, 2 * samples), weights.view(len(start), bins, 2 * samples)
