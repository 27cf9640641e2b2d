"""Residual blocks: a branch of convolutions, and the shortcut that is added to it.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", figures 2 and 5; He et al. 2016, "Identity
Mappings in Deep Residual Networks", figure 4e, for the blocks of which the activations come first; Xie et al. 2017,
"Aggregated Residual Transformations", figure 3c, for grouped convolutions.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.attention import CBAM, SqueezeExcitation
from backbones.base import he_initialise
from backbones.deformable import DeformableConv
from backbones.dropblock import drop_blocks
from backbones.folding import FoldedWeights, FoldingSequential, Pair, convolve, fold_at_once
from backbones.norm import NormLayer

__all__ = [
    "ActivationKind",
    "ActivationLayer",
    "BasicBlock",
    "BlockDesign",
    "Bottleneck",
    "PaddedShortcut",
    "PreactBasicBlock",
    "PreactBottleneck",
    "ResidualBlock",
    "SqueezeExcitation",
    "Stage",
    "convolution",
    "initialise",
    "linear_decay",
    "make_activation",
    "make_stage",
]

ActivationKind = Literal["relu", "prelu"]
ActivationLayer = Callable[[int], nn.Module]  # channels -> layer

PRELU_START = 0.25  # "Delving Deep into Rectifiers", section 2.1


@dataclass(frozen=True, slots=True)
class BlockDesign:
    """The parts of a block; ``ResNet`` explains the choices.

    Attributes:
        dilation: dilation of the 3x3 convolutions.
        deform: makes the 3x3 convolution of a bottleneck deformable; "modulated" also weights its samples.
        groups: number of groups of the 3x3 convolution of a bottleneck.
        width_per_group: channels of each group in the first stage; 64 with one group is a ResNet.
        death: probability that a training step skips the branch.
        activated: the input is an activation's output, and a pre-activation block does not activate it again.
        cbam: the branch ends in CBAM; ``se`` is squeeze-and-excitation there.
        dropblock: share of cells dropped from the output of every convolution and of the shortcut.
    """

    shortcut: Literal["A", "B", "C", "none"]
    norm: NormLayer
    activation: ActivationLayer
    stride_in: Literal["1x1", "3x3"] = "3x3"
    avg_down: bool = False
    se: bool = False
    dilation: int = 1
    deform: Literal["plain", "modulated"] | None = None
    groups: int = 1
    width_per_group: int = 64
    death: float = 0.0
    activated: bool = False
    cbam: bool = False
    dropblock: float = 0.0


class PaddedShortcut(nn.Module):
    """Shortcut A, without parameters: every ``stride``-th cell, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ResidualBlock(nn.Module, ABC):
    """A branch plus a shortcut; the branch alone in a plain network.

    With a death probability p, a training step skips the branch with probability p, the same for all images of the
    batch; in eval mode the branch counts 1 - p (Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3).
    """

    expansion: ClassVar[int]  # output channels per channel of the 3x3 convolution
    preact: ClassVar[bool] = False  # normalisation and activation come before each convolution
    followed: ClassVar[tuple[tuple[str, str], ...]]  # convolutions of the branch, with the norm that follows

    def __init__(self, design: BlockDesign) -> None:
        super().__init__()
        self.plain = design.shortcut == "none"
        self.death = design.death
        self.dropblock = design.dropblock

    @abstractmethod
    def branch(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        """Applies the convolutions of the branch and the layers between them."""

    @abstractmethod
    def forward(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H', W'); ``folded`` holds the stage's folded weights of ``pairs``."""

    def pairs(self) -> list[Pair]:
        """Returns the convolutions that a norm follows, of the branch and of the shortcut."""
        shortcut = self.downsample.pairs() if isinstance(self.downsample, FoldingSequential) else []
        return [(getattr(self, first), getattr(self, second)) for first, second in self.followed] + shortcut

    def _add_shortcut(self, in_channels: int, out_channels: int, *, stride: int, design: BlockDesign) -> None:
        """Adds the shortcut last, since layers are initialised in the order in which they are made."""
        attention = SqueezeExcitation if design.se else CBAM if design.cbam else None
        self.se = nn.Identity() if attention is None else attention(out_channels)
        self.downsample = _shortcut(
            in_channels, out_channels, stride=stride, design=design, norm=None if self.preact else design.norm
        )

    def _drop(self, x: Tensor) -> Tensor:
        return drop_blocks(x, self.dropblock) if self.training and self.dropblock > 0 else x

    def _join(self, x: Tensor, entering: Tensor, folded: FoldedWeights | None) -> Tensor:
        """Adds the shortcut of the input ``x`` to the branch; ``entering`` is ``x`` as the first layers take it."""
        if self.training and self.death > 0 and torch.rand((), device="cpu").item() < self.death:
            # Gradients of zero, not none: parallel processes, which skip other blocks, average all of them.
            out = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        else:
            out = self.se(self._drop(self.branch(entering, folded)))
            if self.death > 0 and not self.training:
                out = (1 - self.death) * out
        if self.plain:
            return out
        if isinstance(self.downsample, FoldingSequential):
            return out + self._drop(self.downsample(entering, folded))
        return out + self._drop(x if self.downsample is None else self.downsample(entering))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1
    followed = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, in_channels: int, width: int, *, stride: int, design: BlockDesign) -> None:
        super().__init__(design)
        self.conv1 = convolution(in_channels, width, 3, stride, design.dilation)
        self.bn1 = design.norm(width)
        self.act1 = design.activation(width)
        self.conv2 = convolution(width, width, 3, 1, design.dilation)
        self.bn2 = design.norm(width)
        self._add_shortcut(in_channels, width, stride=stride, design=design)
        self.act2 = design.activation(width)

    def branch(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        out = self._drop(self.act1(convolve(self.conv1, self.bn1, x, folded)))
        return convolve(self.conv2, self.bn2, out, folded)

    def forward(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        return self.act2(self._join(x, x, folded))


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolution and a shortcut."""

    expansion = 4
    followed = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, in_channels: int, width: int, *, stride: int, design: BlockDesign) -> None:
        super().__init__(design)
        out_channels = width * self.expansion
        width = width * design.width_per_group // 64 * design.groups
        first, second = (stride, 1) if design.stride_in == "1x1" else (1, stride)
        self.conv1 = convolution(in_channels, width, 1, first)
        self.bn1 = design.norm(width)
        self.act1 = design.activation(width)
        self.conv2 = _middle(width, second, design, groups=design.groups)
        self.bn2 = design.norm(width)
        self.act2 = design.activation(width)
        self.conv3 = convolution(width, out_channels, 1, 1)
        self.bn3 = design.norm(out_channels)
        self._add_shortcut(in_channels, out_channels, stride=stride, design=design)
        self.act3 = design.activation(out_channels)

    def branch(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        out = self._drop(self.act1(convolve(self.conv1, self.bn1, x, folded)))
        out = self._drop(self.act2(convolve(self.conv2, self.bn2, out, folded)))
        return convolve(self.conv3, self.bn3, out, folded)

    def forward(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        return self.act3(self._join(x, x, folded))


class PreactBlock(ResidualBlock):
    """A block that normalises and activates its input first, and returns the bare sum of branch and shortcut.

    Where the shape changes, the shortcut starts from the activated input and is not normalised.
    """

    preact = True

    def __init__(self, in_channels: int, design: BlockDesign) -> None:
        super().__init__(design)
        self.bn1 = nn.Identity() if design.activated else design.norm(in_channels)
        self.act1 = nn.Identity() if design.activated else design.activation(in_channels)

    def forward(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        return self._join(x, self.act1(self.bn1(x)), folded)


class PreactBasicBlock(PreactBlock):
    """Two 3x3 convolutions, each after its activation, and a shortcut."""

    expansion = 1
    followed = (("conv1", "bn2"),)

    def __init__(self, in_channels: int, width: int, *, stride: int, design: BlockDesign) -> None:
        super().__init__(in_channels, design)
        self.conv1 = convolution(in_channels, width, 3, stride, design.dilation)
        self.bn2 = design.norm(width)
        self.act2 = design.activation(width)
        self.conv2 = convolution(width, width, 3, 1, design.dilation)
        self._add_shortcut(in_channels, width, stride=stride, design=design)

    def branch(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        return self.conv2(self._drop(self.act2(convolve(self.conv1, self.bn2, x, folded))))


class PreactBottleneck(PreactBlock):
    """1x1, 3x3 and 1x1 convolution, each after its activation, and a shortcut."""

    expansion = 4
    followed = (("conv1", "bn2"), ("conv2", "bn3"))

    def __init__(self, in_channels: int, width: int, *, stride: int, design: BlockDesign) -> None:
        super().__init__(in_channels, design)
        first, second = (stride, 1) if design.stride_in == "1x1" else (1, stride)
        self.conv1 = convolution(in_channels, width, 1, first)
        self.bn2 = design.norm(width)
        self.act2 = design.activation(width)
        self.conv2 = _middle(width, second, design, groups=1)
        self.bn3 = design.norm(width)
        self.act3 = design.activation(width)
        self.conv3 = convolution(width, width * self.expansion, 1, 1)
        self._add_shortcut(in_channels, width * self.expansion, stride=stride, design=design)

    def branch(self, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        out = self._drop(self.act2(convolve(self.conv1, self.bn2, x, folded)))
        return self.conv3(self._drop(self.act3(convolve(self.conv2, self.bn3, out, folded))))


class Stage(nn.Sequential):
    """Residual blocks in a row, names included, that fold the weights of all of them at once."""

    def forward(self, input: Tensor) -> Tensor:
        output = input
        blocks = [block for block in self if isinstance(block, ResidualBlock)]
        with fold_at_once(pair for block in blocks for pair in block.pairs()) as folded:
            for block in self:
                output = block(output, folded) if isinstance(block, ResidualBlock) else block(output)
        return output


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Returns a convolution padded to size ceil(size / stride); the normalisation layer after it holds the bias."""
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)


def make_activation(kind: ActivationKind) -> ActivationLayer:
    """Returns a function from a number of channels to an activation; PReLU learns one slope per channel.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "relu":
            return _relu
        case "prelu":
            return partial(nn.PReLU, init=PRELU_START)
        case _:
            raise ValueError(f"activation must be one of 'relu', 'prelu', got {kind!r}")


def make_stage(
    block: type[BasicBlock | Bottleneck | PreactBasicBlock | PreactBottleneck],
    in_channels: int,
    width: int,
    *,
    stride: int,
    designs: Sequence[BlockDesign],
) -> Stage:
    """Returns one block for each of ``designs``; the first has the stride and takes ``in_channels``."""
    first = block(in_channels, width, stride=stride, design=designs[0])
    others = (block(width * block.expansion, width, stride=1, design=design) for design in designs[1:])
    return Stage(first, *others)


def linear_decay(final: float, count: int) -> list[float]:
    """Returns the death probabilities of ``count`` blocks in a row, from ``final`` / ``count`` to ``final``.

    Raises:
        ValueError: ``final`` is not a probability below 1.

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", equation 4.
    """
    if not 0 <= final < 1:
        raise ValueError(f"stochastic_depth must be a probability from 0 to below 1, got {final}; the paper's is 0.5")
    return [final * (i + 1) / count for i in range(count)]


@torch.no_grad()
def initialise(module: nn.Module, activation: ActivationKind) -> None:
    """Applies ``he_initialise`` with the variance that keeps the size of signals under this activation.

    Samples of deformable convolutions start on the grid.

    Source: He et al. 2015, "Delving Deep into Rectifiers", equation 15: 2 / ((1 + a^2) fan_out) under slope a.
    """
    he_initialise(module)
    for layer in module.modules():
        if activation == "prelu" and isinstance(layer, nn.Conv2d):
            layer.weight.div_(math.sqrt(1 + PRELU_START**2))
        if isinstance(layer, DeformableConv):
            layer.reset_offset()


def _middle(width: int, stride: int, design: BlockDesign, *, groups: int) -> nn.Conv2d:
    """Returns the 3x3 convolution of a bottleneck."""
    if design.deform is None:
        return convolution(width, width, 3, stride, design.dilation, groups)
    return DeformableConv(width, width, 3, stride, design.dilation, groups, modulated=design.deform == "modulated")


def _relu(channels: int) -> nn.Module:
    return nn.ReLU(inplace=True)


def _shortcut(
    in_channels: int, out_channels: int, *, stride: int, design: BlockDesign, norm: NormLayer | None
) -> nn.Module | None:
    """Returns the layers of the shortcut; None is the identity, or no shortcut at all."""
    if design.shortcut == "none" or (design.shortcut != "C" and in_channels == out_channels and stride == 1):
        return None
    if design.shortcut == "A":
        return PaddedShortcut(out_channels - in_channels, stride)
    layers: list[nn.Module] = [convolution(in_channels, out_channels, 1, 1 if design.avg_down else stride)]
    if design.avg_down:
        # rounds sizes up; cells beyond the border do not count
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        layers.insert(0, pool if stride > 1 else nn.Identity())
    if norm is not None:
        layers.append(norm(out_channels))
    return FoldingSequential(*layers)
