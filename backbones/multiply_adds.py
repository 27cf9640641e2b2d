"""How many multiply-adds a network takes, counted from shapes alone: on the "meta" device nothing is computed.

Shapes: H W height and width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_multiply_adds"]


@torch.no_grad()
def count_multiply_adds(network: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and matrix products for one image of ``size`` (H, W), as papers count them.

    fvcore's FlopCountAnalysis gives the same for these operations (a test holds it), but has to run the network:
    minutes for a table of all of them.

    Args:
        network: takes images (1, 3, H, W) and lies on the "meta" device; it is put into eval mode.
        size: height and width of the image.
    """
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2  # torch counts a multiplication and an addition as two
