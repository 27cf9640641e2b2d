"""Box heads for feature maps that no backbone's tail follows: convolutions and fully connected layers.

Source: "Feature Pyramid Networks", section 4.2 (two fully connected layers); Wu and He 2018, "Group Normalization",
section 4.2 (four convolutions before one).
Shapes: R regions, C channels, S pooled size, D width of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.norm import NormLayer

__all__ = ["FCHead"]

PART = 256  # regions that a test flattens at once


class FCHead(nn.Module):
    """3x3 convolutions, then fully connected layers, each with a ReLU.

    Args:
        in_channels: C of the pooled regions.
        roi_size: S of the pooled regions.
        convs: number of convolutions.
        conv_channels: channels of each convolution.
        fcs: number of fully connected layers, at least one.
        channels: D.
        norm: layer after every convolution, which then has no bias; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        roi_size: int,
        *,
        convs: int = 0,
        conv_channels: int = 256,
        fcs: int = 2,
        channels: int = 1024,
        norm: NormLayer | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.convs = conv_layers(in_channels, conv_channels, convs, norm)
        width = (conv_channels if convs else in_channels) * roi_size**2
        layers: list[nn.Module] = []
        for number in range(fcs):
            layers += [nn.Linear(channels if number else width, channels), nn.ReLU(inplace=True)]
        self.fcs = nn.Sequential(*layers)  # as PyTorch initialises them: larger weights diverge from scratch

    def forward(self, regions: Tensor) -> Tensor:
        """Returns vectors (R, D) of pooled regions (R, C, S, S)."""
        maps = self.convs(regions)
        if torch.is_grad_enabled() or maps.is_contiguous():
            return self.fcs(maps.flatten(1))
        # Flattening copies channels-last maps, which pooling returns on a CPU; a test needs no copy of all regions.
        return torch.cat([self.fcs(part.flatten(1)) for part in maps.split(PART)])


def conv_layers(
    in_channels: int, channels: int, count: int, norm: NormLayer | None, *, bias: bool = False
) -> nn.Sequential:
    """Returns ``count`` 3x3 convolutions with normalisation and ReLU, initialised as in "Delving Deep into Rectifiers".

    They have a bias where no normalisation follows, or with ``bias``.
    """
    blocks = []
    for number in range(count):
        conv = nn.Conv2d(channels if number else in_channels, channels, 3, padding=1, bias=bias or norm is None)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        blocks.append(nn.Sequential(conv, *([] if norm is None else [norm(channels)]), nn.ReLU(inplace=True)))
    return nn.Sequential(*blocks)
