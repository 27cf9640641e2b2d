"""Attention modules of residual blocks, which weight a feature map by an attention map computed from it.

Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", section 3; Woo et al. 2018, "CBAM: Convolutional Block
Attention Module", section 3; Wang et al. 2017, "Residual Attention Network", equations 1 and 3, for the two ways to
weigh.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CBAM", "Gate", "SqueezeExcitation"]

REDUCTION = 16  # SE, section 3.2, and CBAM, section 3
SPATIAL_KERNEL = 7  # CBAM, equation 3


class Gate(nn.Module):
    """Weights features by an attention map; hooks on this module can see and replace every map of a network.

    Args:
        residual: the map is added to one, so that a map of zeros keeps the features (attention residual learning).
    """

    def __init__(self, *, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Returns (N, C, H, W) of features (N, C, H, W) and a map that broadcasts to them."""
        return features + features * attention if self.residual else features * attention


class SqueezeExcitation(nn.Module):
    """Scales every channel by a factor in 0..1 computed from the averages of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1)
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        scale = functional.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))  # (N, C / 16, 1, 1)
        return self.gate(x, self.fc2(scale).sigmoid())


class CBAM(nn.Module):
    """Scales every channel, and then every cell, by a factor in 0..1.

    Averages and maxima of the channels go through the same two layers, and those of the cells through a convolution.
    The authors' code also normalises the map of cells. Here, as in the paper's equation 3, it is not: a map of one
    channel has no group normalisation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1)
        self.channel_gate = Gate()
        self.spatial = nn.Conv2d(2, 1, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2, bias=False)
        self.spatial_gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        pooled = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)  # (N, C, 1, 1) each
        average, largest = (self.fc2(functional.relu(self.fc1(values))) for values in pooled)
        x = self.channel_gate(x, (average + largest).sigmoid())
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)  # (N, 2, H, W)
        return self.spatial_gate(x, self.spatial(pooled).sigmoid())
