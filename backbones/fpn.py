"""Feature pyramid network: maps of one width at strides 4 to 64, or 8 to 128, over the stages of any backbone.

Source: Lin et al. 2017, "Feature Pyramid Networks for Object Detection", section 3, and section 4.1 for p6; Lin et al.
2017, "Focal Loss for Dense Object Detection", section 4, for p6 and p7 by convolutions.
Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from backbones.base import Backbone, FeatureSpec, Tail
from backbones.norm import NormLayer

__all__ = ["FPN", "CoarseLevels"]

CoarseLevels = Literal["subsample", "c5", "p5"]


class FPN(Backbone):
    """A pyramid p2 .. p6 over a body with strides 4, 8, .., or p3 .. p7 over strides 8, 16, ..

    Args:
        body: the backbone below, with one feature per stage.
        channels: C of every level.
        norm: layer after every convolution of body's features; None for none.
        coarse: levels that the body lacks. "subsample": every second cell of the level before, up to p6; the body
            begins at stride 4. "c5" and "p5": 3x3 convolutions of stride 2, with a ReLU between two, on the body's
            last feature or on its level, up to p7; the body begins at stride 8.

    Raises:
        ValueError: the body's strides do not start there or do not double.
    """

    def __init__(
        self,
        body: Backbone,
        *,
        channels: int = 256,
        norm: NormLayer | None = None,
        coarse: CoarseLevels = "subsample",
    ) -> None:
        strides = [spec.stride for spec in body.specs.values()]
        first, last = (2, 6) if coarse == "subsample" else (3, 7)
        if strides != [2 ** (first + i) for i in range(len(strides))]:
            wanted = ", ".join(str(2 ** (first + i)) for i in range(3))
            raise ValueError(f"a pyramid needs features of strides {wanted}, .., the body has {strides}")
        levels = range(first, last + 1)
        super().__init__({f"p{k}": FeatureSpec(channels, 2**k) for k in levels}, body.input_stats)
        self.size_divisor = strides[-1]  # so that every level is exactly twice as large as the next
        with suppress(ValueError):  # VGG's fully connected layers, which a pyramid has no use for; ResNet has none left
            body.tail()
        self.body = body
        self.lateral = nn.ModuleDict(
            {name: _conv(spec.channels, channels, 1, norm) for name, spec in body.specs.items()}
        )
        self.output = nn.ModuleDict({name: _conv(channels, channels, 3, norm) for name in body.specs})
        widest = list(body.specs.values())[-1].channels
        self.from_body, self.coarse = coarse == "c5", nn.ModuleDict()
        if coarse != "subsample":
            for name in list(self.specs)[len(strides) :]:
                width = widest if self.from_body and not self.coarse else channels
                self.coarse[name] = _conv(width, channels, 3, None, stride=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        features = self.body(images)
        merged: Tensor | None = None
        outputs: list[Tensor] = []
        for name in reversed(features):
            lateral = self.lateral[name](features[name])
            if merged is not None:
                lateral = lateral + functional.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            merged = lateral
            outputs.insert(0, self.output[name](merged))
        outputs += self._coarse_levels(list(features.values())[-1] if self.from_body else outputs[-1])
        while len(outputs) < len(self.specs):
            outputs.append(outputs[-1][:, :, ::2, ::2])
        return dict(zip(self.specs, outputs, strict=True))

    def _coarse_levels(self, top: Tensor) -> list[Tensor]:
        """Returns the levels (N, C, H, W) that convolutions make of ``top``, each half as large as the one before."""
        levels: list[Tensor] = []
        for conv in self.coarse.values():
            top = conv(functional.relu(top) if levels else top)
            levels.append(top)
        return levels

    def tail(self) -> Tail:
        """Raises ValueError: no layers are left after a pyramid.

        Raises:
            ValueError: always.
        """
        raise ValueError("a pyramid has no tail; set box.head to fc")


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: NormLayer | None, *, stride: int = 1
) -> nn.Sequential:
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=padding, bias=norm is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)  # keeps the variance of a layer without an activation
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm(out_channels))
