"""The backbone contract: the features that a backbone returns, the facts it states, and the tail it hands over.

Shapes: N images, C channels, H W height and width, R regions, S side of a pooled region.
Stages are c1..c5; a stage's spatial size is exactly ceil(size / stride), for odd sizes too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

__all__ = [
    "IMAGENET_RGB",
    "Backbone",
    "FeatureSpec",
    "InputStats",
    "Tail",
    "check_choice",
    "check_roi_size",
    "he_initialise",
    "order_features",
]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Channels of a feature map, and the pixels of the network's input that one of its cells spans."""

    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class InputStats:
    """The normalisation of pixels: reorder to ``channel_order``, subtract ``mean``, divide by ``std``.

    Attributes:
        mean: per channel, in units of 0..255 pixels and in the order of ``channel_order``.
        std: as ``mean``.
        channel_order: the order in which the network takes its channels.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: Literal["rgb", "bgr"]


# torchvision's (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), times 255
IMAGENET_RGB = InputStats(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), channel_order="rgb")


class Tail(nn.Module, ABC):
    """The layers after the trunk, run on every region.

    Attributes:
        in_channels: channels of the feature map that regions are pooled from.
        out_channels: length of the vector that comes out per region.
        roi_size: S, the side of the pooled region that the tail expects.
    """

    def __init__(self, *, in_channels: int, out_channels: int, roi_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.roi_size = roi_size

    @abstractmethod
    def forward(self, regions: Tensor) -> Tensor:
        """Returns vectors (R, out_channels) of pooled regions (R, in_channels, S, S)."""

    def maps(self, regions: Tensor) -> Tensor:
        """Returns the tail's last feature maps (R, out_channels, S', S') of pooled regions, from which masks are read.

        Raises:
            ValueError: this tail has none.
        """
        raise ValueError(
            f"{type(self).__name__} ends in vectors, not in maps; masks need a residual tail or box.head fc"
        )

    def pool_whole_image(self, features: Tensor) -> Tensor:
        """Pools a feature map (N, C, H, W) of whole images to the size that the tail takes, for classification."""
        return features


class Backbone(nn.Module, ABC):
    """A network that turns images into named feature maps.

    Attributes:
        specs: channels and stride of each feature map that ``forward`` returns, by stride.
        input_stats: how its input must be normalised.
        size_divisor: height and width of the input must be multiples of this.
        pyramid: names of the features that a feature pyramid is built over, of strides 4, 8, ..
    """

    size_divisor: int = 1
    pyramid: ClassVar[tuple[str, ...]] = ("c2", "c3", "c4", "c5")

    def __init__(self, specs: dict[str, FeatureSpec], input_stats: InputStats) -> None:
        super().__init__()
        self.specs = specs
        self.input_stats = input_stats

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""

    @abstractmethod
    def tail(self) -> Tail:
        """Returns the layers after the trunk and removes them from the backbone: parameters have one owner.

        Raises:
            ValueError: on a second call, or when those layers belong to the trunk.
        """

    def _give_up(self, names: Sequence[str]) -> dict[str, nn.Module]:
        """Returns the direct children called ``names``, taken out of this module."""
        if any(name not in self._modules for name in names):
            raise ValueError("tail() was called before, and its layers have one owner; keep the tail of the first call")
        layers = {name: self.get_submodule(name) for name in names}
        for name in names:
            delattr(self, name)
        return layers


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises ValueError when ``value`` is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_roi_size(roi_size: int) -> None:
    """Raises ValueError for a pooled region without cells."""
    if roi_size < 1:
        raise ValueError(f"roi_size must be at least 1, got {roi_size}")


def order_features(out_features: Sequence[str], stages: Sequence[str]) -> tuple[str, ...]:
    """Returns ``out_features`` in the order of ``stages``; raises ValueError if empty or if one is unknown."""
    if isinstance(out_features, str) or not out_features:
        raise ValueError(f"out_features must be a sequence of some of {', '.join(stages)}, got {out_features!r}")
    for name in out_features:
        check_choice("out_features", name, stages)
    return tuple(stage for stage in stages if stage in out_features)


def he_initialise(module: nn.Module) -> None:
    """Initialises every convolution in place from a zero-mean Gaussian of variance 2 / fan_out; biases become 0.

    Source: He et al. 2015, "Delving Deep into Rectifiers", section 2.2.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
