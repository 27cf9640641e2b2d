"""All-CNN-C, a network of convolutions only for small images; the tail is the stages after the last feature.

Source: Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net", sections 2 and 3.1, tables 1, 2.
Departures: the last 3x3 convolution is padded, so that sizes are exact (8x8 cells of a 32x32 image, the paper has 6x6);
the 1x1 convolution to the classes is the classifier's linear layer after the average, and has no ReLU, with which they
would not commute.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from backbones.base import (
    IMAGENET_RGB,
    Backbone,
    FeatureSpec,
    InputStats,
    check_choice,
    check_roi_size,
    he_initialise,
    order_features,
)
from backbones.resnet import ResNetTail

__all__ = ["AllCNN"]

INPUT_DROPOUT = 0.2  # section 3.1, as is the default of ``dropout``

# stage -> (channels, side of the kernel) of its convolutions; the first of c1 and c2 has stride 2, for a pool
STAGES: dict[str, tuple[tuple[int, int], ...]] = {
    "c0": ((96, 3), (96, 3)),
    "c1": ((96, 3), (192, 3), (192, 3)),
    "c2": ((192, 3), (192, 3), (192, 1)),
}


class AllCNN(Backbone):
    """All-CNN-C; the features are any of c0, c1, c2 with strides 1, 2, 4, and there is no pooling layer.

    Args:
        out_features: stages to return; those after the last one form the tail, which ends in an average.
        freeze_at: number of stages, from the first, whose parameters need no gradient.
        dropout: drop probability after both convolutions of stride 2; 0 also turns off dropout of the image.
        roi_size: side of the regions for the tail; 14 leaves 7x7 cells before the average.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above.
    """

    pyramid = ()  # no stage has stride 8

    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("c1",),
        freeze_at: int = 0,
        dropout: float = 0.5,
        roi_size: int = 14,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        check_choice("freeze_at", freeze_at, range(len(STAGES) + 1))
        check_roi_size(roi_size)
        stages = tuple(STAGES)
        names = order_features(out_features, stages)
        channels = {stage: layers[-1][0] for stage, layers in STAGES.items()}
        super().__init__({s: FeatureSpec(channels[s], 2**i) for i, s in enumerate(stages) if s in names}, input_stats)
        trunk_length = stages.index(names[-1]) + 1
        self._trunk, self._tail_stages, self._roi_size = stages[:trunk_length], stages[trunk_length:], roi_size
        self._tail_channels = channels[stages[-1]]

        self.drop = nn.Dropout(INPUT_DROPOUT if dropout > 0 else 0.0)
        in_channels = 3
        for i, stage in enumerate(stages):
            layers = _stage(in_channels, STAGES[stage], stride=2 if i > 0 else 1, dropout=dropout)
            self.add_module(stage, layers.requires_grad_(i >= freeze_at))
            in_channels = channels[stage]
        he_initialise(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        x = self.drop(images)
        features = {}
        for stage in self._trunk:
            x = self.get_submodule(stage)(x)
            if stage in self.specs:
                features[stage] = x
        return features

    def tail(self) -> ResNetTail:
        """Returns the stages after the trunk and the global average; they keep their names, such as ``c2``.

        Raises:
            ValueError: on a second call, or when "c2" is among the features.
        """
        if not self._tail_stages:
            raise ValueError(f"no tail: c2 is one of the features {', '.join(self.specs)}; end them at c1 to get c2")
        layers = self._give_up(self._tail_stages)
        in_channels = self.specs[self._trunk[-1]].channels
        return ResNetTail(layers, in_channels=in_channels, out_channels=self._tail_channels, roi_size=self._roi_size)


def _stage(in_channels: int, sizes: Sequence[tuple[int, int]], *, stride: int, dropout: float) -> nn.Sequential:
    """Returns convolutions, each with a ReLU; dropout follows the first one if its stride is 2."""
    layers: list[nn.Module] = []
    for i, (channels, side) in enumerate(sizes):
        step = stride if i == 0 else 1
        layers += [nn.Conv2d(in_channels, channels, side, step, padding=side // 2), nn.ReLU(inplace=True)]
        if step > 1:
            layers.append(nn.Dropout(dropout))
        in_channels = channels
    return nn.Sequential(*layers)
