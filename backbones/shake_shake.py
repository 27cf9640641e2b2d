"""Shake-shake networks: residual blocks of two branches, which training mixes by random shares.

Source: Gastaldi 2017, "Shake-Shake regularization", sections 1.2 and 2 and table 1: the form "Shake-Shake-Image" of 26
layers.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.base import IMAGENET_RGB, FeatureSpec, InputStats, check_choice, order_features
from backbones.folding import FoldingSequential
from backbones.norm import NormKind, NormLayer, frozen_kind, make_norm
from backbones.residual import convolution, initialise
from backbones.resnet import ResidualNetwork

__all__ = ["ShakeShake", "shake"]

STAGES = ("c0", "c1", "c2")  # a stage's number is log2 of its stride
BLOCKS = 4  # per stage: 3 stages of 4 blocks of 2 layers, the stem and the last linear layer are 26
STEM = 16  # channels


class _Shake(torch.autograd.Function):
    """A mixture of two maps whose gradient is split by other random shares than its values."""

    @staticmethod
    def forward(one: Tensor, other: Tensor, share: Tensor, share_of_gradient: Tensor) -> Tensor:
        return share * one + (1 - share) * other

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (share,) = gradients, ctx.saved_tensors
        return share * gradient, (1 - share) * gradient, None, None


def shake(one: Tensor, other: Tensor) -> Tensor:
    """Returns a random mixture (N, C, H, W) of two maps; values and gradient have separate shares per image."""
    shares = torch.rand(2, len(one), 1, 1, 1, device=one.device).to(one.dtype)
    return _Shake.apply(one, other, shares[0], shares[1])


class ShakeBlock(nn.Module):
    """A shortcut plus two branches of ReLU, 3x3 convolution, ReLU, 3x3 convolution; a test averages the branches."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.branch1 = _branch(in_channels, channels, stride, norm)
        self.branch2 = _branch(in_channels, channels, stride, norm)
        self.downsample = None if in_channels == channels else _Shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        one, other = self.branch1(x), self.branch2(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        return shortcut + (shake(one, other) if self.training else (one + other) / 2)


class _Shortcut(nn.Module):
    """Two 1x1 convolutions side by side, of every ``stride``-th cell and of those a cell further right and down."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = convolution(in_channels, channels // 2, 1, stride)
        self.conv2 = convolution(in_channels, channels // 2, 1, stride)
        self.bn = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        shifted = functional.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))


class ShakeShake(ResidualNetwork):
    """A shake-shake network of 26 layers for images of 32x32 pixels; features c0, c1, c2 with strides 1, 2, 4.

    Args:
        width: channels of the first stage: 32, 64 or 96 in the paper.
        out_features: stages to return; those after the last one form the tail.
        norm: kind of every normalisation layer.
        norm_eps: added to the variance.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also the first stage, .. 4 everything.
        roi_size: side of the regions for the tail. By default the one that leaves 7x7 cells before the average: 14.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above.
    """

    pyramid = ()  # no stage has stride 8

    def __init__(
        self,
        width: int,
        *,
        out_features: Sequence[str] = ("c1",),
        norm: NormKind = "frozen_bn",
        norm_eps: float = 1e-5,
        freeze_at: int = 0,
        roi_size: int | None = None,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        check_choice("freeze_at", freeze_at, range(5))
        names = order_features(out_features, STAGES)
        specs = {stage: FeatureSpec(width * 2**i, 2**i) for i, stage in enumerate(STAGES)}
        super().__init__(specs, names, roi_size=roi_size, input_stats=input_stats)
        norms = [make_norm(frozen_kind(norm) if part < freeze_at else norm, norm_eps) for part in range(4)]
        self.conv1, self.bn1 = convolution(3, STEM, 3, 1), norms[0](STEM)
        self.act1 = nn.Identity()  # every block begins with its own
        in_channels = STEM
        for i, (stage, spec) in enumerate(specs.items()):
            blocks = [ShakeBlock(in_channels, spec.channels, stride=1 if i == 0 else 2, norm=norms[i + 1])]
            blocks += [ShakeBlock(spec.channels, spec.channels, stride=1, norm=norms[i + 1]) for _ in range(BLOCKS - 1)]
            (part,) = self._parts[stage]
            self.add_module(part, nn.Sequential(*blocks))
            in_channels = spec.channels
        self.closing = nn.ReLU()
        self._parts[STAGES[-1]] += ("closing",)
        initialise(self, "relu")
        self._freeze(freeze_at)


def _branch(in_channels: int, channels: int, stride: int, norm: NormLayer) -> FoldingSequential:
    first, second = convolution(in_channels, channels, 3, stride), convolution(channels, channels, 3, 1)
    return FoldingSequential(nn.ReLU(), first, norm(channels), nn.ReLU(inplace=True), second, norm(channels))
