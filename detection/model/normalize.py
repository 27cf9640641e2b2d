"""Normalizes and pads pixels for a backbone.

Shapes: N images, H W height and width of the padded batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import InputStats
from detection.structures import ImageBatch

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """Subtracts the mean, divides by the standard deviation and puts channels into the backbone's order.

    Args:
        stats: mean, deviation and channel order of the backbone's weights.
        divisor: sides of the batch are padded to multiples of it.

    Attributes:
        memory_format: memory format of the output, which every later layer follows.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stats: InputStats, *, divisor: int = 1) -> None:
        super().__init__()
        self.bgr, self.divisor = stats.channel_order == "bgr", divisor
        self.memory_format = torch.channels_last
        self.register_buffer("mean", torch.tensor(stats.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stats.std).view(3, 1, 1), persistent=False)

    def forward(self, images: ImageBatch) -> Tensor:
        """Returns (N, 3, H, W) float32; the padding is zero, which is the mean colour."""
        pixels = images.pixels.flip(1) if self.bgr else images.pixels
        pixels = ((pixels - self.mean) / self.std) * self._inside(images)
        height, width = self.padded(images)
        padded = F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
        return padded.contiguous(memory_format=self.memory_format)

    def _inside(self, images: ImageBatch) -> Tensor:
        """Tells (N, 1, H, W) which pixels belong to the images."""
        height, width = (torch.arange(side, device=images.pixels.device) for side in images.pixels.shape[-2:])
        heights, widths = images.sizes[:, :, None].unbind(1)  # (N, 1) each
        return ((height < heights)[:, :, None] & (width < widths)[:, None])[:, None]

    def padded(self, images: ImageBatch) -> tuple[int, int]:
        """Returns (height, width) of the batch that ``forward`` makes of ``images``."""
        height, width = images.pixels.shape[-2:]
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor
