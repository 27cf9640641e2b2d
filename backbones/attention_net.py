"""Residual Attention Networks: residual stages with modules whose features a bottom-up top-down branch weights.

The tail is the stages after the last feature, as a ResNet's.

Source: Wang et al. 2017, "Residual Attention Network for Image Classification", sections 3 and 4 and table 2; the
authors' prototxt (fwang91/residual-attention-network) for the places of units, poolings and normalisations.
Departures: masks end in a sigmoid as in the paper, where the prototxt has a tanh; poolings are padded, so that sizes
are ceil(size / 2).

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.attention import Gate
from backbones.base import IMAGENET_RGB, FeatureSpec, InputStats, check_choice, order_features
from backbones.folding import FoldingSequential
from backbones.norm import NormKind, frozen_kind, make_norm
from backbones.residual import BlockDesign, PreactBottleneck, convolution, initialise, make_activation
from backbones.resnet import ResidualNetwork

__all__ = ["AttentionNet", "CifarAttentionNet"]

Learning = Literal["residual", "naive"]

# depth -> attention modules in conv2_x .. conv4_x, of the networks for ImageNet (table 2)
DEPTHS = {56: (1, 1, 1), 92: (1, 2, 3)}


@dataclass(frozen=True, slots=True)
class _Stage:
    """A unit that may halve the size, attention modules, and units after them.

    Attributes:
        width: channels of the 3x3 convolutions; the output has four times as many.
        stride: of the first unit.
        modules: number of attention modules.
        pools: number of times their masks halve the size, down to the size of the network's last map.
        after: units after the modules.
    """

    width: int
    stride: int
    modules: int = 0
    pools: int = 0
    after: int = 0


class SoftMask(nn.Module):
    """The mask branch: a weight in 0..1 for every cell and channel.

    Args:
        channels: C.
        pools: number of halvings on the way down, and of interpolations on the way up.
        design: design of the residual units.
    """

    def __init__(self, channels: int, pools: int, *, design: BlockDesign) -> None:
        super().__init__()
        inner = pools - 1  # scales between the finest and the coarsest, which have skip connections
        self.down = nn.ModuleList(_units(channels, 1, design) for _ in range(inner))
        self.down.append(_units(channels, 2, design))
        self.skip = nn.ModuleList(_units(channels, 1, design) for _ in range(inner))
        self.up = nn.ModuleList(_units(channels, 1, design) for _ in range(inner))
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [design.norm(channels), design.activation(channels), convolution(channels, channels, 1, 1)]
        self.head = FoldingSequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        size = x.shape[-2:]
        maps: list[Tensor] = []
        for down in self.down:
            x = down(functional.max_pool2d(x, 3, stride=2, padding=1))
            maps.append(x)
        for skip, up, finer in zip(self.skip, self.up, reversed(maps[:-1]), strict=True):
            x = up(_interpolated(x, finer.shape[-2:]) + skip(finer))
        return self.head(_interpolated(x, size)).sigmoid()


class AttentionModule(nn.Module):
    """A trunk of two units, weighted by the mask, between a unit before and a unit after: p, t, r = 1, 2, 1.

    Args:
        channels: C.
        pools: halvings in the mask branch.
        design: design of the residual units.
        learning: "residual" weights by 1 + mask (equation 3), "naive" by the mask (equation 1).
    """

    def __init__(self, channels: int, pools: int, *, design: BlockDesign, learning: Learning) -> None:
        super().__init__()
        self.before = _units(channels, 1, design)
        self.trunk = _units(channels, 2, design)
        self.mask = SoftMask(channels, pools, design=design)
        self.gate = Gate(residual=learning == "residual")
        self.after = _units(channels, 1, design)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        x = self.before(x)
        return self.after(self.gate(self.trunk(x), self.mask(x)))


class AttentionNet(ResidualNetwork):
    """A residual attention network; the features are any of c2, c3, c4, c5 with strides 4, 8, 16, 32.

    Args:
        depth: layers of the trunk: 56 or 92.
        out_features: stages to return; those after the last one form the tail. By default the last but one.
        attention: "residual" or "naive" attention learning, ARL and NAL in the paper.
        norm: kind of every normalisation layer.
        norm_eps: added to the variance.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also the first stage, .. everything.
        roi_size: side of the regions for the tail. By default the one that leaves 7x7 cells before the average: 14.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above.
    """

    small: ClassVar[bool] = False  # for images of 32x32 pixels

    def __init__(
        self,
        depth: int,
        *,
        out_features: Sequence[str] | None = None,
        attention: Learning = "residual",
        norm: NormKind = "frozen_bn",
        norm_eps: float = 1e-5,
        freeze_at: int = 0,
        roi_size: int | None = None,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        check_choice("attention", attention, ("residual", "naive"))
        stages = _small_stages(depth) if self.small else _stages(depth)
        check_choice("freeze_at", freeze_at, range(len(stages) + 2))
        names = order_features(tuple(stages)[-2:-1] if out_features is None else out_features, tuple(stages))
        specs, stride = dict[str, FeatureSpec](), 1 if self.small else 4
        for name, stage in stages.items():
            stride *= stage.stride
            specs[name] = FeatureSpec(stage.width * PreactBottleneck.expansion, stride)
        super().__init__(specs, names, roi_size=roi_size, input_stats=input_stats)
        norms = [make_norm(frozen_kind(norm) if i < freeze_at else norm, norm_eps) for i in range(len(stages) + 1)]
        act, stem_channels = make_activation("relu"), 16 if self.small else 64
        self.conv1 = convolution(3, 16, 3, 1) if self.small else convolution(3, 64, 7, 2)
        self.bn1, self.act1 = norms[0](stem_channels), act(stem_channels)
        in_channels = stem_channels
        for (name, stage), norm_layer in zip(stages.items(), norms[1:], strict=True):
            design = BlockDesign("B", norm_layer, act)
            (part,) = self._parts[name]
            self.add_module(part, _make_stage(in_channels, stage, design=design, learning=attention))
            in_channels = specs[name].channels
        self.closing = nn.Sequential(norms[-1](in_channels), act(in_channels))
        self._parts[list(self._parts)[-1]] += ("closing",)
        initialise(self, "relu")
        self._freeze(freeze_at)

    def _stem(self, images: Tensor) -> Tensor:
        x = super()._stem(images)
        return x if self.small else functional.max_pool2d(x, 3, stride=2, padding=1)


class CifarAttentionNet(AttentionNet):
    """A residual attention network for images of 32x32 pixels; the features are any of c0, c1, c2 with strides 1, 2, 4.

    Its depth is 20 + 36 m, with m modules in each stage.
    """

    pyramid = ()  # no stage has stride 8
    small = True


def _stages(depth: int) -> dict[str, _Stage]:
    """Returns the stages of a network for ImageNet."""
    check_choice("depth", depth, tuple(DEPTHS))
    first, second, third = DEPTHS[depth]
    return {
        "c2": _Stage(64, 1, modules=first, pools=3),
        "c3": _Stage(128, 2, modules=second, pools=2),
        "c4": _Stage(256, 2, modules=third, pools=1),
        "c5": _Stage(512, 2, after=2),
    }


def _small_stages(depth: int) -> dict[str, _Stage]:
    """Returns the stages of a network for CIFAR.

    The paper gives the depth, 36 m + 20, and the number of parameters, 1.9 M for m = 2 and 5.1 M for m = 6. Those are
    met by the widths of ResNet-164, masks as in the networks for ImageNet, and the last three units at the width and
    the size of the third stage.
    """
    count, rest = divmod(depth - 20, 36)
    if rest or count < 1:
        nearest = 20 + 36 * max(1, round((depth - 20) / 36))
        raise ValueError(f"depth must be 20 + 36 m, got {depth}; the nearest is {nearest}")
    return {
        "c0": _Stage(16, 1, modules=count, pools=3),
        "c1": _Stage(32, 2, modules=count, pools=2),
        "c2": _Stage(64, 2, modules=count, pools=1, after=3),
    }


def _make_stage(in_channels: int, stage: _Stage, *, design: BlockDesign, learning: Learning) -> nn.Sequential:
    channels = stage.width * PreactBottleneck.expansion
    first = PreactBottleneck(in_channels, stage.width, stride=stage.stride, design=design)
    modules = (AttentionModule(channels, stage.pools, design=design, learning=learning) for _ in range(stage.modules))
    return nn.Sequential(first, *modules, *_units(channels, stage.after, design))


def _units(channels: int, count: int, design: BlockDesign) -> nn.Sequential:
    width = channels // PreactBottleneck.expansion
    return nn.Sequential(*(PreactBottleneck(channels, width, stride=1, design=design) for _ in range(count)))


def _interpolated(x: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
