"""Deformable convolution: a plain convolution predicts where each sample of the kernel is taken.

Source: Dai et al. 2017, "Deformable Convolutional Networks", section 2.1; Zhu et al. 2019, "Deformable ConvNets v2",
section 3.2, for weights of the samples.

Shapes: N images, C input channels, O output channels, T = k * k samples of a kernel, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

__all__ = ["OFFSETS", "DeformableConv"]

OFFSETS = (".offset.weight", ".offset.bias")  # name suffixes that weights of a plain network lack


class DeformableConv(nn.Conv2d):
    """A convolution without bias whose samples are moved, and if ``modulated`` also weighted, in every cell.

    Samples between cells are interpolated bilinearly, and those beyond the map are 0. ``offset`` starts at zero: the
    output then equals that of the plain convolution with the same weights, or half of it if modulated.

    Attributes:
        offset: convolution to the offsets (dy, dx) of all samples, in cells, then the logits of their weights; this is
            the order of Detectron2's files.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        dilation: int = 1,
        groups: int = 1,
        *,
        modulated: bool,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.moves = 2 * kernel_size**2
        channels = self.moves + kernel_size**2 if modulated else self.moves
        self.offset = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, dilation)
        self.reset_offset()

    @torch.no_grad()
    def reset_offset(self) -> None:
        """Puts the samples back on the grid."""
        for parameter in self.offset.parameters():
            parameter.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, ceil(H / stride), ceil(W / stride)), in the precision of a plain convolution."""
        chosen = self.offset(input)  # (N, 2 T or 3 T, H', W')
        # The operator lacks half precision on a CPU, whose 11 bits are also too few for positions among 200 cells.
        exact = torch.promote_types(input.dtype, torch.float32)
        moves, logits = chosen[:, : self.moves].to(exact), chosen[:, self.moves :].to(exact)
        mask = logits.sigmoid() if logits.shape[1] else None
        strides = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        output = deform_conv2d(input.to(exact), moves, self.weight.to(exact), mask=mask, **strides)
        return output.to(chosen.dtype)
