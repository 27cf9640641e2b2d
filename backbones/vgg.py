"""VGG-11/13/16/19, with or without batch normalisation; the tail is fc6 and fc7.

Source: Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", table 1; in Faster R-CNN regions are pooled
from conv5_3 (c5, stride 16), without the last max pool.

Shapes: N images, C channels, H W height and width, R regions, S side of a pooled region.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from backbones.folding import run
from backbones.norm import NormKind, frozen_kind, make_norm

__all__ = ["VGG", "VGGTail"]

STAGES = ("c1", "c2", "c3", "c4", "c5")
CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS = 4096

# depth -> convolutions per stage; the depth counts the three linear layers too
DEPTHS: dict[int, tuple[int, int, int, int, int]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGGTail(Tail):
    """fc6 and fc7, each with ReLU and dropout."""

    def __init__(self, fc6: nn.Module, fc7: nn.Module, *, dropout: float, roi_size: int) -> None:
        super().__init__(in_channels=CHANNELS[-1], out_channels=FC_CHANNELS, roi_size=roi_size)
        self.fc6 = fc6
        self.fc7 = fc7
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        """Returns vectors (R, 4096) of pooled regions (R, 512, S, S)."""
        x = self.dropout(functional.relu(self.fc6(regions.flatten(start_dim=1))))  # (R, 4096)
        return self.dropout(functional.relu(self.fc7(x)))

    def pool_whole_image(self, features: Tensor) -> Tensor:
        """Maps (N, 512, H, W) to (N, 512, S, S): the last max pool, then an average to the size that fc6 takes."""
        pooled = functional.max_pool2d(features, 2, stride=2, ceil_mode=True)
        return functional.adaptive_avg_pool2d(pooled, self.roi_size)


class VGG(Backbone):
    """A VGG network; the features are any of c1..c5, the ReLU after the last convolution of each stage.

    Max pools round sizes up, as in Caffe; torchvision rounds down, which is the same for sizes divisible by 32.

    Args:
        depth: 11, 13, 16 or 19.
        out_features: stages to return, of strides 1, 2, 4, 8 and 16.
        norm: kind of the layer after every convolution; None for the network without any.
        norm_eps: added to the variance.
        freeze_at: number of stages, from the first, whose parameters need no gradient; the paper's is 2 for VGG-16.
            Batch normalisation among them keeps its statistics.
        dropout: drop probability in the tail.
        roi_size: side of the regions for the tail; weights trained elsewhere fit 7 only.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above.
    """

    pyramid = ("c3", "c4", "c5")

    def __init__(
        self,
        depth: int,
        *,
        out_features: Sequence[str] = ("c5",),
        norm: NormKind | None = "frozen_bn",
        norm_eps: float = 1e-5,
        freeze_at: int = 0,
        dropout: float = 0.5,
        roi_size: int = 7,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        check_choice("depth", depth, tuple(DEPTHS))
        check_choice("freeze_at", freeze_at, range(6))
        check_roi_size(roi_size)
        names = order_features(out_features, STAGES)
        super().__init__({s: FeatureSpec(CHANNELS[i], 2**i) for i, s in enumerate(STAGES) if s in names}, input_stats)
        self._dropout, self._roi_size = dropout, roi_size

        layers: list[nn.Module] = []
        self._stage_at: dict[int, str] = {}  # index in ``features`` of a stage's last layer -> stage
        in_channels = 3
        for i, stage in enumerate(STAGES):
            frozen = i < freeze_at
            if i > 0:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
            for _ in range(DEPTHS[depth][i]):
                convolution = nn.Conv2d(in_channels, CHANNELS[i], 3, padding=1).requires_grad_(not frozen)
                layers.append(convolution)
                if norm is not None:
                    kind = frozen_kind(norm) if frozen else norm
                    layers.append(make_norm(kind, norm_eps)(CHANNELS[i]).requires_grad_(not frozen))
                layers.append(nn.ReLU(inplace=True))
                in_channels = CHANNELS[i]
            self._stage_at[len(layers) - 1] = stage
        self.features = nn.Sequential(*layers)
        self.fc6 = nn.Linear(CHANNELS[-1] * roi_size**2, FC_CHANNELS)
        self.fc7 = nn.Linear(FC_CHANNELS, FC_CHANNELS)
        he_initialise(self)
        for linear in (self.fc6, self.fc7):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        features: dict[str, Tensor] = {}
        for index, x in run(list(self.features), images):
            stage = self._stage_at.get(index)
            if stage in self.specs:
                features[stage] = x
            if len(features) == len(self.specs):
                break
        return features

    def tail(self) -> VGGTail:
        """Returns fc6 and fc7.

        Raises:
            ValueError: on a second call, or when "c5" is not among the features.
        """
        if "c5" not in self.specs:
            raise ValueError(
                f"the tail follows c5, and the features are {', '.join(self.specs)}; add c5 to out_features"
            )
        layers = self._give_up(["fc6", "fc7"])
        return VGGTail(layers["fc6"], layers["fc7"], dropout=self._dropout, roi_size=self._roi_size)
