"""Heads of semantic segmentation networks: FCN, DeepLabV3 and semantic FPN.

Source: Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation", in torchvision's form; Chen et al.
2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", section 3.3; Kirillov et al. 2019, "Panoptic
Feature Pyramid Networks", section 3.
Shapes: N images, C channels, K classes, h w height and width of a feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.norm import NormLayer
from detection.model.class_rows import ClassRows
from detection.model.semantic import LabelHead

__all__ = ["DeepLabHead", "FCNHead", "SemanticFPNHead"]

FINEST = 4  # stride of the maps that semantic FPN joins its levels in


class FCNHead(LabelHead):
    """A 3x3 convolution on the last feature, dropout, and a 1x1 convolution to the classes.

    Args:
        in_channels: C of the feature.
        num_classes: K.
        channels: of the 3x3 convolution.
        norm: layer after it.
        dropout: drop probability.
    """

    def __init__(
        self, in_channels: int, *, num_classes: int, channels: int, norm: NormLayer, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.conv = _conv(in_channels, channels, norm, kernel=3)
        self.dropout = nn.Dropout(dropout)
        self.class_rows = {"classes": ClassRows(1)}
        self.classes = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor], sizes: Tensor | None = None) -> Tensor:
        """Returns logits (N, K, h, w) of the last of ``features`` (N, C, h, w)."""
        return self.classes(self.dropout(self.conv(features[-1])))

    def describe(self) -> str:
        """Returns its layers."""
        return f"FCN, 1 convolution of {self.classes.in_channels} channels"


class DeepLabHead(LabelHead):
    """Branches that see the last feature at several scales, joined, then a 3x3 convolution and the classes.

    Args:
        in_channels: C of the feature.
        stride: of the feature.
        num_classes: K.
        channels: of every convolution.
        norm: layer after each.
        rates: dilations of the 3x3 branches.
        dropout: drop probability of the joined values.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int,
        *,
        num_classes: int,
        norm: NormLayer,
        channels: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.stride, self.rates = stride, tuple(rates)
        self.branches = nn.ModuleList([_conv(in_channels, channels, norm)])
        self.branches.extend(_conv(in_channels, channels, norm, kernel=3, dilation=rate) for rate in rates)
        self.pooled = _conv(in_channels, channels, norm)
        self.project = _conv((len(rates) + 2) * channels, channels, norm)
        self.dropout = nn.Dropout(dropout)
        self.conv = _conv(channels, channels, norm, kernel=3)
        self.class_rows = {"classes": ClassRows(1)}
        self.classes = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor], sizes: Tensor | None = None) -> Tensor:
        """Returns logits (N, K, h, w) of the last of ``features`` (N, C, h, w)."""
        feature = features[-1]
        parts = [branch(feature) for branch in self.branches]
        parts.append(self._whole(feature, sizes).expand_as(parts[0]))
        joined = self.dropout(self.project(torch.cat(parts, dim=1)))
        return self.classes(self.conv(joined))

    def _whole(self, feature: Tensor, sizes: Tensor | None) -> Tensor:
        """Returns the branch (N, channels, 1, 1) of the mean over the cells of each image, without the batch's padding.

        Raises:
            ValueError: a training step has a single image, which has no variance for batch normalisation.
        """
        if self.training and len(feature) == 1 and any(type(part) is nn.BatchNorm2d for part in self.pooled):
            raise ValueError(
                "deeplabv3 normalises one value of each image over the images of a process, and a step of 1 image has "
                "no variance; give at least 2 (solver.images_per_step, solver.accumulate), or set semantic.norm to gn"
            )
        if sizes is None:
            return self.pooled(feature.mean(dim=(2, 3), keepdim=True))
        inside = _inside(feature, sizes, self.stride).flatten(1)  # (N, h * w)
        shares = (inside / inside.sum(dim=1, keepdim=True)).to(feature.dtype)
        # A product, which makes no copy of the feature
        return self.pooled((feature.flatten(2) @ shares[:, :, None])[..., None])

    def describe(self) -> str:
        """Returns its layers."""
        return f"DeepLabV3, rates {', '.join(map(str, self.rates))}, {self.classes.in_channels} channels"


class SemanticFPNHead(LabelHead):
    """Brings the levels of a pyramid to stride 4 by convolutions and upsampling, adds them, then the classes.

    Args:
        in_channels: C of every level.
        strides: of the levels by their names, from 4 on, each twice the one before.
        num_classes: K.
        channels: of every convolution.
        norm: layer after each.
    """

    finest = True

    def __init__(
        self, in_channels: int, strides: Mapping[str, int], *, num_classes: int, norm: NormLayer, channels: int = 128
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleDict()
        for name, stride in strides.items():
            steps = (stride // FINEST).bit_length() - 1  # doublings to stride 4
            layers: list[nn.Module] = []
            for step in range(max(steps, 1)):
                layers += _conv(in_channels if step == 0 else channels, channels, norm, kernel=3)
                layers.append(_Double() if steps else nn.Identity())
            self.levels[name] = nn.Sequential(*layers)
        self.class_rows = {"classes": ClassRows(1)}
        self.classes = nn.Conv2d(channels, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor], sizes: Tensor | None = None) -> Tensor:
        """Returns logits (N, K, h, w) of stride 4 of ``features`` (N, C, h, w), finest first; others are left out."""
        used = zip(self.levels.values(), features, strict=False)
        return self.classes(torch.stack([level(feature) for level, feature in used]).sum(dim=0))

    def describe(self) -> str:
        """Returns its layers."""
        return f"semantic FPN, {', '.join(self.levels)}, {self.classes.in_channels} channels"


def _inside(feature: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """Tells (N, h, w) which cells of ``feature`` (N, C, h, w) belong to images of ``sizes`` (N, 2), in float32."""
    rows, columns = (torch.arange(side, device=feature.device) * stride for side in feature.shape[-2:])
    heights, widths = sizes[:, :, None].unbind(1)  # (N, 1) each
    return ((rows < heights)[:, :, None] & (columns < widths)[:, None]).float()


class _Double(nn.Module):
    """Doubles height and width by bilinear interpolation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _conv(in_channels: int, channels: int, norm: NormLayer, *, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Returns a convolution that keeps the size, normalisation and ReLU; initialised as PyTorch does."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, norm(channels), nn.ReLU(inplace=True))
