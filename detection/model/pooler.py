"""Region pooling: a fixed-size piece of the feature map for every region.

Source: Fast R-CNN, section 2.1 (RoI pooling); Mask R-CNN, section 3 (RoIAlign).
Shapes: N images, C channels, R regions of all images together, S pooled size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

__all__ = ["RegionPooler"]


class RegionPooler(nn.Module):
    """Pools regions from one feature map.

    Args:
        stride: pixels of the image per cell of the feature map.
        size: S, cells per side.
        kind: "roi_pool" takes the maximum over rounded bins, "roi_align" averages interpolated points.
        sampling_ratio: points per bin and side; RoIAlign only.
    """

    def __init__(
        self, stride: int, size: int, *, kind: Literal["roi_pool", "roi_align"] = "roi_pool", sampling_ratio: int = 2
    ) -> None:
        super().__init__()
        self.stride, self.size, self.kind, self.sampling_ratio = stride, size, kind, sampling_ratio

    def forward(self, feature: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(R, C, S, S) from ``feature`` (N, C, H, W) and the boxes (R_i, 4) of each image, image by image."""
        # In float32: the operators lack bfloat16, and half precision moves a box by up to half a pixel at 1000.
        pooled = self._pool(feature.float(), [box.float() for box in boxes])
        return pooled.to(feature.dtype)

    def _pool(self, feature: Tensor, regions: list[Tensor]) -> Tensor:
        scale, size = 1 / self.stride, (self.size, self.size)
        if self.kind == "roi_pool":
            return roi_pool(feature, regions, size, spatial_scale=scale)
        return roi_align(feature, regions, size, spatial_scale=scale, sampling_ratio=self.sampling_ratio, aligned=True)
