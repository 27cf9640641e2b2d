"""Residual networks for images of 32x32 pixels: 6n+2 layers, plain or residual, and pre-activation ones.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2; He et al. 2016, "Identity Mappings
in Deep Residual Networks", section 3 and appendix, for 9n+2 layers of pre-activation bottlenecks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from backbones.base import IMAGENET_RGB, FeatureSpec, InputStats, check_choice, order_features
from backbones.norm import NormKind, frozen_kind, make_norm
from backbones.residual import (
    ActivationKind,
    BasicBlock,
    BlockDesign,
    PreactBasicBlock,
    PreactBottleneck,
    convolution,
    initialise,
    make_activation,
)
from backbones.resnet import ResidualNetwork, StagePlan, check_shortcut

__all__ = ["CifarResNet"]

WIDTHS = {"c0": 16, "c1": 32, "c2": 64}  # channels of the 3x3 convolutions; a stage's number is log2 of its stride


class CifarResNet(ResidualNetwork):
    """A residual network of three stages; the features are any of c0, c1, c2 with strides 1, 2, 4.

    Args:
        depth: layers with weights: 2 + 6 n with basic blocks, 2 + 9 n with bottlenecks, where n is the number of
            blocks per stage.
        block: kind of all blocks.
        out_features: stages to return; those after the last one form the tail.
        shortcut: "A" identity with zero-padded channels, "B" projection where the shape changes, "C" projection
            everywhere, "none" a plain network.
        se: every branch ends in squeeze-and-excitation, with one channel in the first stage's bottleneck.
        cbam: every branch ends in CBAM.
        activation: "relu", or "prelu" with a learned slope per channel.
        stochastic_depth: as in ``ResNet``; 0.5 for 110 and 1202 layers in Huang et al. 2016.
        dropblock: as in ``ResNet``.
        norm: kind of every normalisation layer.
        norm_eps: added to the variance.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also the first stage, .. 4 everything.
        roi_size: side of the regions for the tail. By default the one that leaves 7x7 cells before the average: 14.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above, or contradicts another.
    """

    pyramid = ()  # no stage has stride 8

    def __init__(  # noqa: PLR0913  # one argument for every option that a name or a config may set
        self,
        depth: int,
        block: type[BasicBlock | PreactBasicBlock | PreactBottleneck],
        *,
        out_features: Sequence[str] = ("c1",),
        shortcut: Literal["A", "B", "C", "none"] = "A",
        se: bool = False,
        cbam: bool = False,
        activation: ActivationKind = "relu",
        stochastic_depth: float = 0.0,
        dropblock: float = 0.0,
        norm: NormKind = "frozen_bn",
        norm_eps: float = 1e-5,
        freeze_at: int = 0,
        roi_size: int | None = None,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        per_block = 9 if block is PreactBottleneck else 6  # layers that one more block in each stage adds
        count, rest = divmod(depth - 2, per_block)
        if rest or count < 1:
            raise ValueError(
                f"depth must be 2 + {per_block} n with blocks of {per_block // 3} layers, got {depth}; "
                f"the nearest is {2 + per_block * max(1, round((depth - 2) / per_block))}"
            )
        check_choice("freeze_at", freeze_at, range(5))
        check_shortcut(shortcut, stochastic_depth=stochastic_depth)
        names = order_features(out_features, tuple(WIDTHS))
        specs = {stage: FeatureSpec(width * block.expansion, 2**i) for i, (stage, width) in enumerate(WIDTHS.items())}
        super().__init__(specs, names, roi_size=roi_size, input_stats=input_stats)
        norms = [make_norm(frozen_kind(norm) if part < freeze_at else norm, norm_eps) for part in range(4)]
        act = make_activation(activation)
        self.conv1 = convolution(3, 16, 3, 1)
        self.bn1 = norms[0](16)
        self.act1 = act(16)
        drops = {"c1": dropblock, "c2": dropblock}
        designs = [
            BlockDesign(shortcut, norms[i + 1], act, se=se, cbam=cbam, dropblock=drops.get(stage, 0.0))
            for i, stage in enumerate(WIDTHS)
        ]
        plans = [
            StagePlan(count, width, 1 if stage == "c0" else 2, design)
            for (stage, width), design in zip(WIDTHS.items(), designs, strict=True)
        ]
        self._add_stages(block, plans, in_channels=16, stochastic_depth=stochastic_depth)
        initialise(self, activation)
        self._freeze(freeze_at)
