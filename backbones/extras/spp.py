"""Spatial pyramid pooling: a vector of one length for a map or a region of any size.

Source: He et al. 2015, "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition" (SPP-net),
section 2.2; appendix A (bin i of n along a side of length a reaches from floor((i - 1) a / n) to ceil(i a / n));
section 4.1 for detection, with the levels 1, 2, 3, 6: 50 bins.
Shapes: N images, C channels, H W height and width, R regions of all images together, B bins of all levels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_pool

from backbones.base import Backbone, Tail

__all__ = ["SPP", "RegionPyramid", "SPPTail", "SpatialPyramid", "num_bins"]

LEVELS = (1, 2, 3, 6)  # bins per side


def num_bins(levels: Sequence[int]) -> int:
    """Returns B, the number of bins of a pyramid with ``levels`` bins per side."""
    return sum(level**2 for level in levels)


class SpatialPyramid(nn.Module):
    """The maximum of every bin of every level, over whole maps.

    Raises:
        ValueError: no levels, or one below 1.
    """

    def __init__(self, levels: Sequence[int] = LEVELS) -> None:
        super().__init__()
        self.levels = _checked(levels)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C * B), level by level, each with channels before rows before columns."""
        return torch.cat([functional.adaptive_max_pool2d(maps, level).flatten(1) for level in self.levels], dim=1)


class RegionPyramid(nn.Module):
    """The maximum of every bin of every level, over regions of a map: RoI pooling once per level.

    As in RoI pooling, a box is rounded to whole cells, the last one included. A box from 0 to
    stride * (W - 1) and stride * (H - 1) is the whole map and gives what ``SpatialPyramid`` does.

    Args:
        stride: pixels of the image per cell of the map.
        levels: bins per side.

    Raises:
        ValueError: no levels, or one below 1.
    """

    def __init__(self, stride: int, levels: Sequence[int] = LEVELS) -> None:
        super().__init__()
        self.stride, self.levels = stride, _checked(levels)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Returns (R, C * B) from the one map (N, C, H, W) and the boxes (R_i, 4) of each image, image by image.

        Boxes are in pixels of the image. The order within a vector is ``SpatialPyramid``'s.
        """
        (maps,) = features
        regions = [box.float() for box in boxes]
        pooled = [roi_pool(maps.float(), regions, level, spatial_scale=1 / self.stride) for level in self.levels]
        return torch.cat([level.flatten(1) for level in pooled], dim=1).to(maps.dtype)


class SPPTail(Tail):
    """The pyramid alone, without parameters.

    A detector that has this tail pools regions to the finest level; where the other levels divide it, as 1, 2 and 3
    divide 6, their bins are unions of its bins, so that the vectors are those of ``RegionPyramid``.
    """

    def __init__(self, in_channels: int, levels: Sequence[int] = LEVELS) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=in_channels * num_bins(levels), roi_size=max(_checked(levels))
        )
        self.pyramid = SpatialPyramid(levels)

    def forward(self, regions: Tensor) -> Tensor:
        """Returns vectors (R, C * B) of pooled regions (R, C, S, S), of any S."""
        return self.pyramid(regions)


class SPP(Backbone):
    """A backbone that ends in spatial pyramid pooling; its own tail, if any, is dropped.

    ``Classifier(SPP(body), K)`` classifies images of any size, and every size gives the linear layer the same length.

    Args:
        body: the backbone below.
        levels: bins per side.

    Raises:
        ValueError: no levels, or one below 1.
    """

    pyramid = ()

    def __init__(self, body: Backbone, levels: Sequence[int] = LEVELS) -> None:
        super().__init__(body.specs, body.input_stats)
        self.size_divisor = body.size_divisor
        with suppress(ValueError):  # a body whose features go to the last stage has none
            body.tail()
        self.body, self.levels = body, _checked(levels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        return self.body(images)

    def tail(self) -> SPPTail:
        """Returns the pyramid over the last feature; it has no parameters, so repeated calls are allowed."""
        return SPPTail(list(self.specs.values())[-1].channels, self.levels)


def _checked(levels: Sequence[int]) -> tuple[int, ...]:
    """Returns ``levels`` as a tuple."""
    if not levels or min(levels) < 1:
        raise ValueError(f"levels must be some bins per side, each at least 1, such as {LEVELS}, got {tuple(levels)}")
    return tuple(levels)
