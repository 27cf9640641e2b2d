"""Small plain networks for images of 64 x 64 pixels, which differ in depth, kernels, activation and dropout.

Source: Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge" (CS231n), whose networks begin with 5 layers and
5 x 5 kernels and become deeper with smaller ones, then get PReLU and dropout.  Its tables of channels were not at hand,
so that the channels here are a choice: three stages of 64, 128 and 256, each ending in a max pool, and a layer of 512.

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
from backbones.residual import ActivationKind, make_activation

__all__ = ["TinyNet"]

CHANNELS = {"c1": 64, "c2": 128, "c3": 256}
FC_CHANNELS = 512


class TinyNetTail(Tail):
    """A fully connected layer, its activation and dropout."""

    def __init__(self, fc1: nn.Module, act: nn.Module, *, dropout: float, roi_size: int) -> None:
        super().__init__(in_channels=CHANNELS["c3"], out_channels=FC_CHANNELS, roi_size=roi_size)
        self.fc1, self.fc1_act = fc1, act
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        """Returns vectors (R, 512) of pooled regions (R, 256, S, S)."""
        hidden = self.fc1(regions.flatten(start_dim=1))[:, :, None, None]  # PReLU's slopes are of channels
        return self.dropout(self.fc1_act(hidden).flatten(start_dim=1))

    def pool_whole_image(self, features: Tensor) -> Tensor:
        """Maps (N, 256, H, W) to (N, 256, S, S): an average; nothing changes for images of 64 x 64."""
        return functional.adaptive_avg_pool2d(features, self.roi_size)


class TinyNet(Backbone):
    """Three stages of convolutions; the features are any of c1, c2, c3 with strides 2, 4, 8.

    Args:
        depth: layers with weights: 2 + 3 n for n convolutions per stage.
        kernel: side of every convolution.
        out_features: stages to return.
        activation: "relu", or "prelu" with a learned slope per channel.
        dropout: drop probability after the fully connected layer.
        freeze_at: number of stages, from the first, whose parameters need no gradient.
        roi_size: side of the regions for the tail; 8 is the map of an image of 64 x 64 pixels.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above.
    """

    pyramid = ()  # no stages of strides 4, 8, 16, 32

    def __init__(
        self,
        depth: int,
        kernel: int,
        *,
        out_features: Sequence[str] = ("c3",),
        activation: ActivationKind = "relu",
        dropout: float = 0.0,
        freeze_at: int = 0,
        roi_size: int = 8,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        check_choice("depth", depth, (5, 8, 11, 14))
        check_choice("kernel", kernel, (3, 5, 7))
        check_choice("freeze_at", freeze_at, range(len(CHANNELS) + 1))
        check_roi_size(roi_size)
        names = order_features(out_features, tuple(CHANNELS))
        specs = {stage: FeatureSpec(channels, 2**i) for i, (stage, channels) in enumerate(CHANNELS.items(), start=1)}
        super().__init__({stage: specs[stage] for stage in names}, input_stats)
        self._last, self._dropout, self._roi_size = names[-1], dropout, roi_size
        act, in_channels = make_activation(activation), 3
        for number, (stage, channels) in enumerate(CHANNELS.items()):
            layers: list[nn.Module] = []
            for _ in range((depth - 2) // len(CHANNELS)):
                layers += [nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2), act(channels)]
                in_channels = channels
            layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
            self.add_module(stage, nn.Sequential(*layers).requires_grad_(number >= freeze_at))
        self.fc1 = nn.Linear(CHANNELS["c3"] * roi_size**2, FC_CHANNELS)
        self.fc1_act = act(FC_CHANNELS)
        he_initialise(self)
        nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc1.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        x, features = images, dict[str, Tensor]()
        for stage in CHANNELS:
            x = self.get_submodule(stage)(x)
            if stage in self.specs:
                features[stage] = x
            if stage == self._last:
                break
        return features

    def tail(self) -> TinyNetTail:
        """Returns the fully connected layer.

        Raises:
            ValueError: on a second call, or when "c3" is not among the features.
        """
        if "c3" not in self.specs:
            raise ValueError(
                f"the tail follows c3, and the features are {', '.join(self.specs)}; add c3 to out_features"
            )
        layers = self._give_up(["fc1", "fc1_act"])
        return TinyNetTail(layers["fc1"], layers["fc1_act"], dropout=self._dropout, roi_size=self._roi_size)
