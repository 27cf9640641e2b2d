"""Region pooling: a fixed-size piece of a feature map for every region.

Source: Fast R-CNN, section 2.1 (RoI pooling); Mask R-CNN, section 3 (RoIAlign); "Feature Pyramid Networks", equation 1
(which level a region is pooled from).
Shapes: N images, C channels, R regions of all images together, S pooled size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import roi_align, roi_pool

from detection.boxes import areas
from detection.model.precision import at_least_single
from detection.model.select import waiting_is_free

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
        self.strides, self.size, self.sampling_ratio = tuple(strides), size, sampling_ratio
        self.kind: PoolKind = kind
        if list(self.strides) != [self.strides[0] * 2**i for i in range(len(self.strides))]:
            raise ValueError(f"the strides of a pyramid double from level to level, got {self.strides}")

    def forward(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Returns regions (R, C, S, S) pooled from the levels (N, C, H, W); levels beyond the pooler's are ignored.

        Args:
            features: of each level.
            boxes: (R, 4) in pixels of the images.
            images: (R,) int64, 0..N-1, the image of each box.
        """
        # Not in half precision: the operators lack bfloat16, and it moves a box by up to half a pixel at 1000.
        levels = [at_least_single(feature) for feature in features[: len(self.strides)]]
        boxes = boxes.to(levels[0].dtype)
        if self.kind != "roi_pool" and self.sampling_ratio > 0 and _runs_on_cpu(boxes):
            pooled = self._align_on_cpu(levels, boxes, images)
        else:
            pooled = self._pool(levels, boxes, images)
        return pooled.to(features[0].dtype)

    def _levels(self, boxes: Tensor) -> Tensor:
        """Returns the level (R,) of each of ``boxes`` (R, 4), 0 for the finest."""
        if len(self.strides) == 1:
            return torch.zeros_like(boxes[:, 0], dtype=torch.int64)
        sides = areas(boxes).clamp(min=0).sqrt()
        finest = self.strides[0].bit_length() - 1
        level = torch.floor(CANONICAL_LEVEL - finest + torch.log2(sides / CANONICAL_SIDE) + 1e-6)  # -inf of a side of 0
        return level.clamp(0, len(self.strides) - 1).long()

    def _pool(self, levels: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Pools by torchvision's operators on every level; a box is a point on all levels but its own, and left out."""
        rows = images[:, None].to(boxes.dtype)
        if len(levels) == 1:
            return self._operator(levels[0], torch.cat([rows, boxes], dim=1), 1 / self.strides[0])
        own, center = self._levels(boxes), ((boxes[:, :2] + boxes[:, 2:]) / 2).repeat(1, 2)
        numbers = torch.arange(len(levels), device=boxes.device)[:, None]
        regions = torch.where((own == numbers)[..., None], boxes, center)  # (L, R, 4)
        regions = torch.cat([rows.expand(len(levels), -1, -1), regions], dim=2)
        parts = zip(levels, regions, self.strides, strict=True)
        pooled = torch.cat([self._operator(feature, part, 1 / stride) for feature, part, stride in parts])
        return pooled[own * len(boxes) + torch.arange(len(boxes), device=boxes.device)]

    def _operator(self, feature: Tensor, regions: Tensor, scale: float) -> Tensor:
        size = (self.size, self.size)
        if self.kind == "roi_pool":
            return roi_pool(feature, regions, size, spatial_scale=scale)
        aligned, samples = self.kind == "roi_align", self.sampling_ratio
        return roi_align(feature, regions, size, spatial_scale=scale, sampling_ratio=samples, aligned=aligned)

    def _align_on_cpu(self, levels: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Computes torchvision's ``roi_align`` as sums of weighted cells, for which PyTorch uses all cores.

        torchvision's CPU kernel runs backward on one core, one channel at a time.  The cells of all levels are in one
        table, so that boxes need not be split by level.
        """
        shapes = [(feature.shape[2], feature.shape[3]) for feature in levels]
        table = torch.cat([feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in levels])  # (cells, C)
        firsts = torch.tensor([0, *(len(images_of) * h * w for images_of, (h, w) in zip(levels, shapes, strict=True))])
        own = self._levels(boxes)
        sizes, first = torch.tensor(shapes)[own], firsts.cumsum(0)[own]  # (R, 2), (R,)
        first = first + images * sizes.prod(dim=1)
        scales = torch.tensor([1 / stride for stride in self.strides], dtype=boxes.dtype)[own, None]
        regions = self._weighted_sums(table, boxes * scales, sizes, first).permute(0, 3, 1, 2)
        last = levels[0].is_contiguous(memory_format=torch.channels_last)
        return regions if last else regions.contiguous()  # as the images, which the head's layers follow

    def _weighted_sums(self, table: Tensor, boxes: Tensor, sizes: Tensor, first: Tensor) -> Tensor:
        """Returns (R, S, S, C) from the ``table`` (cells, C) of all levels.

        Args:
            table: as above.
            boxes: (R, 4) in cells of their level.
            sizes: (R, 2), height and width of the level.
            first: (R,) of the level and image in the table.
        """
        aligned, samples = self.kind == "roi_align", self.sampling_ratio
        start, end = (boxes - (0.5 if aligned else 0.0)).split(2, dim=1)
        lengths = end - start if aligned else (end - start).clamp(min=1)
        columns, column_weights = _taps(start[:, 0], lengths[:, 0], self.size, samples, sizes[:, 1])
        rows, row_weights = _taps(start[:, 1], lengths[:, 1], self.size, samples, sizes[:, 0])  # (R, S, 2 * samples)
        rows = (rows * sizes[:, 1, None, None] + first[:, None, None]).int()[:, :, None, :, None]
        columns, taps = columns.int()[:, None, :, None, :], (2 * samples) ** 2

        def cells() -> Tensor:
            return (rows + columns).view(-1)  # (R, S, S, taps), of which each bin sums its own

        def weights() -> Tensor:
            return (row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]).view(-1)

        made = [(cells(), cells), (weights(), weights)]
        # A compiler decides itself what to recompute.
        kept = nullcontext([tensor for tensor, _ in made]) if torch.compiler.is_compiling() else _made_again(made)
        with kept as (indices, shares):
            sums = F.embedding_bag(indices.view(-1, taps), table, per_sample_weights=shares.view(-1, taps), mode="sum")
        return sums.view(len(boxes), self.size, self.size, table.shape[1])


def _runs_on_cpu(boxes: Tensor) -> bool:
    """Tells whether a CPU will pool ``boxes``, compiled or not; an exported graph may run anywhere."""
    compiled = boxes.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiled or waiting_is_free(boxes)


@contextmanager
def _made_again(made: Sequence[tuple[Tensor, Callable[[], Tensor]]]) -> Iterator[list[Tensor]]:
    """Yields tensors that the backward pass recomputes by their functions instead of keeping them."""
    makers = {tensor.data_ptr(): make for tensor, make in made if tensor.numel()}

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        return makers.get(tensor.data_ptr(), tensor)

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield [tensor for tensor, _ in made]


def _taps(start: Tensor, length: Tensor, bins: int, samples: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cells of one axis between which samples interpolate, and weights: two (R, bins, 2 * samples).

    Args:
        start: (R,) of each region, in cells.
        length: (R,) of each region, in cells.
        bins: per region.
        samples: per bin.
        cells: (R,) of the feature map along this axis; a sample more than one cell outside it counts nothing.
    """
    steps = torch.arange(bins * samples, dtype=start.dtype, device=start.device).add(0.5) / (bins * samples)
    points = start[:, None] + length[:, None] * steps  # (R, bins * samples)
    inside, last = (points >= -1) & (points <= cells[:, None]), (cells[:, None] - 1).to(points.dtype)
    points = torch.minimum(points.clamp(min=0), last)
    low = points.floor()
    weights = torch.stack([1 - (points - low), points - low], dim=-1) * inside[..., None] / samples
    indices = torch.stack([low, torch.minimum(low + 1, last)], dim=-1).long()
    return indices.view(len(start), bins, 2 * samples), weights.view(len(start), bins, 2 * samples)
