"""Feature pyramid network: maps of one width at strides 4 to 64 over the stages of any backbone.

Source: Lin et al. 2017, "Feature Pyramid Networks for Object Detection", section 3, and section 4.1 for p6.
Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, nn
from torch.nn import functional

from backbones.base import Backbone, FeatureSpec, Tail
from backbones.norm import NormLayer

__all__ = ["FPN"]

COARSEST = 64  # stride of p6, the last level; those that the body lacks are every second cell of the one before


class FPN(Backbone):
    """p2 .. p6 of strides 4 .. 64 from a body whose features double their stride from 4 on.

    Args:
        body: the backbone below, with one feature per stage.
        channels: of every level.
        norm: layer after every convolution of the pyramid; None for none.

    Raises:
        ValueError: features of the body that do not start at stride 4 or do not double.
    """

    def __init__(self, body: Backbone, *, channels: int = 256, norm: NormLayer | None = None) -> None:
        strides = [spec.stride for spec in body.specs.values()]
        if strides != [4 * 2**i for i in range(len(strides))]:
            raise ValueError(f"a pyramid needs features of strides 4, 8, 16, .., the body has {strides}")
        levels = range(2, COARSEST.bit_length())
        super().__init__({f"p{k}": FeatureSpec(channels, 2**k) for k in levels}, body.input_stats)
        self.size_divisor = strides[-1]  # so that every level is exactly twice as large as the next
        with suppress(ValueError):  # VGG's fully connected layers, which a pyramid has no use for; ResNet has none left
            body.tail()
        self.body = body
        self.lateral = nn.ModuleDict(
            {name: _conv(spec.channels, channels, 1, norm) for name, spec in body.specs.items()}
        )
        self.output = nn.ModuleDict({name: _conv(channels, channels, 3, norm) for name in body.specs})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        features = self.body(images)
        merged: Tensor | None = None
        outputs: list[Tensor] = []
        for name in reversed(features):
            lateral = self.lateral[name](features[name])
            if merged is not None:
                lateral = lateral + functional.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            merged = lateral
            outputs.insert(0, self.output[name](merged))
        while len(outputs) < len(self.specs):
            outputs.append(outputs[-1][:, :, ::2, ::2])
        return dict(zip(self.specs, outputs, strict=True))

    def tail(self) -> Tail:
        """No layers are left after a pyramid.

        Raises:
            ValueError: always.
        """
        raise ValueError("a pyramid has no tail; set box.head to fc")


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: NormLayer | None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)  # keeps the variance of a layer without an activation
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm(out_channels))
