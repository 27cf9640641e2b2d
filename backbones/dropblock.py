"""DropBlock: training sets square blocks of every channel to zero.

Source: Ghiasi, Lin and Le 2018, "DropBlock: A regularization method for convolutional networks", section 3.
Departure: the drop probability is constant, where section 3 raises it from 0, since a layer does not know how long
training lasts.

Shapes: N images, C channels, H W height and width, b b block.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["drop_blocks"]

BLOCK = 7  # cells; section 4.1


def drop_blocks(x: Tensor, probability: float, *, size: int = BLOCK) -> Tensor:
    """Returns ``x`` (N, C, H, W) with random blocks set to zero, and the rest scaled up to compensate.

    Args:
        x: (N, C, H, W).
        probability: the share of cells that is dropped on average, up to overlaps of blocks.
        size: b; a map of fewer cells is dropped whole.
    """
    images, channels, height, width = x.shape
    block = min(size, height), min(size, width)
    corners = height - block[0] + 1, width - block[1] + 1  # where a whole block can begin
    rate = probability * height * width / (block[0] * block[1] * corners[0] * corners[1])  # equation 1
    begins = torch.rand(images, channels, *corners, device=x.device) < rate
    around = (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1)
    padded = functional.pad(begins, around)
    # Equals a b x b max pool, which takes 4 to 9 times as long on a CPU.
    rows = reduce(torch.logical_or, [padded[:, :, i : i + height] for i in range(block[0])])
    dropped = reduce(torch.logical_or, [rows[..., i : i + width] for i in range(block[1])])  # (N, C, H, W)
    kept = dropped.logical_not().to(x.dtype)
    return x * kept * (kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1)).to(x.dtype)
