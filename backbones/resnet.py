"""ResNet-18/34/50/101/152 with torchvision's parameter names, and the plain networks without their shortcuts.

The tail is the stages after the last feature.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1, and appendix A for detection: regions
are pooled from conv4_x (c4), conv5_x runs on every region.

Shapes: N images, C channels, H W height and width, R regions, S side of a pooled region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from backbones.base import (
    IMAGENET_RGB,
    Backbone,
    FeatureSpec,
    InputStats,
    Tail,
    check_choice,
    check_roi_size,
    he_initialise,
    order_features,
)
from backbones.norm import NormKind, NormLayer, frozen_kind, make_norm

__all__ = ["ResNet", "ResNetTail"]

LAYER_OF_STAGE = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}  # ours -> torchvision's
STAGES = tuple(LAYER_OF_STAGE)


@dataclass(frozen=True, slots=True)
class BlockDesign:
    """What all blocks of a stage share; ``ResNet`` explains the choices."""

    stride_in: Literal["1x1", "3x3"]
    shortcut: Literal["A", "B", "C", "none"]
    norm: NormLayer
    dilation: int = 1  # of the 3x3 convolutions


class PaddedShortcut(nn.Module):
    """Shortcut A, without parameters: every ``stride``-th cell, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1  # output channels per channel of the 3x3 convolution

    def __init__(self, in_channels: int, width: int, *, stride: int, design: BlockDesign) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride, design.dilation)
        self.bn1 = design.norm(width)
        self.conv2 = _conv(width, width, 3, 1, design.dilation)
        self.bn2 = design.norm(width)
        self.plain = design.shortcut == "none"
        self.downsample = _shortcut(in_channels, width, stride=stride, design=design)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if not self.plain:
            out = out + (x if self.downsample is None else self.downsample(x))
        return functional.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, design: BlockDesign) -> None:
        super().__init__()
        first, second = (stride, 1) if design.stride_in == "1x1" else (1, stride)
        self.conv1 = _conv(in_channels, width, 1, first)
        self.bn1 = design.norm(width)
        self.conv2 = _conv(width, width, 3, second, design.dilation)
        self.bn2 = design.norm(width)
        self.conv3 = _conv(width, width * self.expansion, 1, 1)
        self.bn3 = design.norm(width * self.expansion)
        self.plain = design.shortcut == "none"
        self.downsample = _shortcut(in_channels, width * self.expansion, stride=stride, design=design)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        out = functional.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if not self.plain:
            out = out + (x if self.downsample is None else self.downsample(x))
        return functional.relu(out, inplace=True)


# depth -> the kind of block, and how many in conv2_x .. conv5_x
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNetTail(Tail):
    """The stages after the trunk, then the average over all positions, so that any region size works."""

    def __init__(self, layers: dict[str, nn.Module], *, in_channels: int, out_channels: int, roi_size: int) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, roi_size=roi_size)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, regions: Tensor) -> Tensor:
        """Vectors (R, out_channels) of pooled regions (R, in_channels, S, S), of any S."""
        return self.maps(regions).mean(dim=(2, 3))

    def maps(self, regions: Tensor) -> Tensor:
        """(R, out_channels, S / stride, S / stride) before the average."""
        for layer in self.children():
            regions = layer(regions)
        return regions


class ResNet(Backbone):
    """A residual network; the features are any of c2, c3, c4, c5 with strides 4, 8, 16, 32.

    Args:
        depth: 18, 34, 50, 101 or 152.
        out_features: stages to return; those after the last one form the tail.
        stride_in: which convolution of a bottleneck halves the size: "3x3" as in torchvision's weights, "1x1" as in
            the paper and its released weights. Basic blocks have no such choice.
        shortcut: "A" identity with zero-padded channels, "B" projection where the shape changes, "C" projection
            everywhere (section 4.1), "none" a plain network (section 3.3).
        norm: kind of every normalisation layer.
        norm_eps: added to the variance.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also conv2_x, .. 5 everything. Frozen parameters need no gradient
            and batch normalisation among them keeps its statistics.
        tail_stride: stride of conv5_x in the tail; in the trunk it is 2.
        dilate_c5: conv5_x in the trunk keeps stride 16 and dilates its 3x3 convolutions instead ("DC5").
        roi_size: side of the regions for the tail. By default the one that leaves 7x7 cells before the average: 14
            for conv5_x of stride 2 and 7 for stride 1.
        input_stats: how the input is normalised.

    Raises:
        ValueError: for a value that is not among those above.
    """

    def __init__(
        self,
        depth: int,
        *,
        out_features: Sequence[str] = ("c4",),
        stride_in: Literal["1x1", "3x3"] = "3x3",
        shortcut: Literal["A", "B", "C", "none"] = "B",
        norm: NormKind = "frozen_bn",
        norm_eps: float = 1e-5,
        freeze_at: int = 0,
        tail_stride: int = 2,
        dilate_c5: bool = False,
        roi_size: int | None = None,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        check_choice("depth", depth, tuple(DEPTHS))
        check_choice("stride_in", stride_in, ("1x1", "3x3"))
        check_choice("shortcut", shortcut, ("A", "B", "C", "none"))
        check_choice("freeze_at", freeze_at, range(6))
        check_choice("tail_stride", tail_stride, (1, 2))
        names = order_features(out_features, STAGES)
        block, counts = DEPTHS[depth]
        channels = [64 * 2**i * block.expansion for i in range(4)]
        trunk_length = STAGES.index(names[-1]) + 1
        if dilate_c5 and trunk_length < len(STAGES):
            raise ValueError(f"dilate_c5 is about c5 in the trunk; the features {', '.join(names)} end before it")
        strides = (1, 2, 2, 1 if dilate_c5 else tail_stride if trunk_length < len(STAGES) else 2)
        total = [4 * math.prod(strides[: i + 1]) for i in range(4)]
        super().__init__(
            {s: FeatureSpec(channels[i], total[i]) for i, s in enumerate(STAGES) if s in names}, input_stats
        )
        self._trunk, self._tail_stages = STAGES[:trunk_length], STAGES[trunk_length:]
        self._tail_channels = channels[-1]
        self._roi_size = 7 * math.prod(strides[trunk_length:]) if roi_size is None else roi_size
        check_roi_size(self._roi_size)

        norms = [make_norm(frozen_kind(norm) if part < freeze_at else norm, norm_eps) for part in range(5)]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norms[0](64)
        in_channels = 64
        for i, stage in enumerate(STAGES):
            design = BlockDesign(stride_in, shortcut, norms[i + 1], 2 if dilate_c5 and stage == "c5" else 1)
            blocks = [
                block(
                    in_channels if j == 0 else channels[i], 64 * 2**i, stride=strides[i] if j == 0 else 1, design=design
                )
                for j in range(counts[i])
            ]
            self.add_module(LAYER_OF_STAGE[stage], nn.Sequential(*blocks))
            in_channels = channels[i]
        he_initialise(self)
        self._freeze(freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        x = functional.relu(self.bn1(self.conv1(images)), inplace=True)  # (N, 64, H / 2, W / 2)
        x = functional.max_pool2d(x, 3, stride=2, padding=1)  # (N, 64, H / 4, W / 4)
        features = {}
        for stage in self._trunk:
            x = self.get_submodule(LAYER_OF_STAGE[stage])(x)
            if stage in self.specs:
                features[stage] = x
        return features

    def tail(self) -> ResNetTail:
        """The stages after the trunk and the global average; they keep their names, such as ``layer4``.

        Raises:
            ValueError: on a second call, or when "c5" is among the features.
        """
        if not self._tail_stages:
            raise ValueError(
                f"no tail: c5 is one of the features {', '.join(self.specs)}; end them at c4 to get conv5_x"
            )
        layers = self._give_up([LAYER_OF_STAGE[stage] for stage in self._tail_stages])
        in_channels = self.specs[self._trunk[-1]].channels
        return ResNetTail(layers, in_channels=in_channels, out_channels=self._tail_channels, roi_size=self._roi_size)

    def _freeze(self, freeze_at: int) -> None:
        parts = [("conv1", "bn1"), *((layer,) for layer in LAYER_OF_STAGE.values())]
        for part in parts[:freeze_at]:
            for name in part:
                self.get_submodule(name).requires_grad_(False)


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    """Padded such that the size becomes ceil(size / stride); the normalisation layer after it holds the bias."""
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)


def _shortcut(in_channels: int, out_channels: int, *, stride: int, design: BlockDesign) -> nn.Module | None:
    """The layers of the shortcut; None is the identity, or no shortcut at all."""
    if design.shortcut == "none" or (design.shortcut != "C" and in_channels == out_channels and stride == 1):
        return None
    if design.shortcut == "A":
        return PaddedShortcut(out_channels - in_channels, stride)
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), design.norm(out_channels))
