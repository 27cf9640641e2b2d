"""ResNet-18/34/50/101/152 with torchvision's parameter names, and the networks that differ from them in their blocks.

The tail is the stages after the last feature.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1, and appendix A for detection: regions
are pooled from conv4_x (c4), conv5_x runs on every region.

Shapes: N images, C channels, H W height and width, R regions, S side of a pooled region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    order_features,
)
from backbones.folding import FoldingSequential, convolve
from backbones.norm import NormKind, NormLayer, frozen_kind, make_norm
from backbones.residual import (
    ActivationKind,
    ActivationLayer,
    BasicBlock,
    BlockDesign,
    Bottleneck,
    PreactBasicBlock,
    PreactBottleneck,
    convolution,
    initialise,
    linear_decay,
    make_activation,
    make_stage,
)

__all__ = ["DEPTHS", "ResNet", "ResNetTail", "ResidualNetwork", "StagePlan"]

STAGES = ("c2", "c3", "c4", "c5")

# depth -> the kind of block, and how many in conv2_x .. conv5_x
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
# "Identity Mappings in Deep Residual Networks", table 5, has one more
PREACT_DEPTHS = {
    depth: (PreactBasicBlock if block is BasicBlock else PreactBottleneck, counts)
    for depth, (block, counts) in DEPTHS.items()
} | {200: (PreactBottleneck, (3, 24, 36, 3))}


@dataclass(frozen=True, slots=True)
class _Reach:
    """Stride of a stage, the dilation of its first block, and that of the others."""

    stride: int = 2
    first_dilation: int | None = None
    dilation: int = 1


FULL_STRIDE = 32
# stride of c5 -> c4 and c5; torchvision's ``replace_stride_with_dilation``
OUTPUT_STRIDES = {
    FULL_STRIDE: (_Reach(), _Reach()),
    16: (_Reach(), _Reach(1, 1, 2)),
    8: (_Reach(1, 1, 2), _Reach(1, 2, 4)),
}


class ResNetTail(Tail):
    """The stages after the trunk, then the average over all positions, so that any region size works."""

    def __init__(self, layers: dict[str, nn.Module], *, in_channels: int, out_channels: int, roi_size: int) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, roi_size=roi_size)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, regions: Tensor) -> Tensor:
        """Returns vectors (R, out_channels) of pooled regions (R, in_channels, S, S), of any S."""
        return self.maps(regions).mean(dim=(2, 3))

    def maps(self, regions: Tensor) -> Tensor:
        """Returns (R, out_channels, S / stride, S / stride) before the average."""
        for layer in self.children():
            regions = layer(regions)
        return regions


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: ``count`` blocks of ``design``, the first of which has the stride."""

    count: int
    width: int  # channels of the 3x3 convolutions
    stride: int
    design: BlockDesign
    first_dilation: int | None = None  # of the first block; None: the design's


class ResidualNetwork(Backbone):
    """A stem, stages of residual blocks, and after pre-activation blocks one more normalisation and activation.

    The features are the outputs of stages: bare sums after pre-activation blocks, except for the last stage, which ends
    in the closing layers. A subclass makes the stem, and then the stages with ``_add_stages``.

    Args:
        specs: of all stages, in their order.
        names: the features, in the same order.
        roi_size: side of the regions for the tail; None is the one that leaves 7x7 cells before the average.
        input_stats: how the input is normalised.
    """

    conv1: nn.Module
    bn1: nn.Module
    act1: nn.Module

    def __init__(
        self, specs: dict[str, FeatureSpec], names: Sequence[str], *, roi_size: int | None, input_stats: InputStats
    ) -> None:
        super().__init__({name: specs[name] for name in names}, input_stats)
        stages = tuple(specs)
        length = stages.index(names[-1]) + 1
        self._trunk, self._tail_stages = stages[:length], stages[length:]
        self._parts: dict[str, tuple[str, ...]] = {
            stage: (f"layer{i}",) for i, stage in enumerate(stages, start=1)
        }  # stage -> names of its modules; those of torchvision
        last = specs[stages[-1]]
        self._tail_channels = last.channels
        self._roi_size = 7 * last.stride // specs[names[-1]].stride if roi_size is None else roi_size
        check_roi_size(self._roi_size)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        x = self._stem(images)
        features = {}
        for stage in self._trunk:
            for part in self._parts[stage]:
                x = self.get_submodule(part)(x)
            if stage in self.specs:
                features[stage] = x
        return features

    def tail(self) -> ResNetTail:
        """Returns the stages after the trunk and the global average; they keep their names, such as ``layer4``.

        Raises:
            ValueError: on a second call, or when the last stage is among the features.
        """
        if not self._tail_stages:
            *_, before, last = self._parts
            raise ValueError(
                f"no tail: {last} is one of the features {', '.join(self.specs)}; "
                f"end them at {before} to keep {last} for the tail"
            )
        layers = self._give_up([part for stage in self._tail_stages for part in self._parts[stage]])
        in_channels = self.specs[self._trunk[-1]].channels
        return ResNetTail(layers, in_channels=in_channels, out_channels=self._tail_channels, roi_size=self._roi_size)

    def _stem(self, images: Tensor) -> Tensor:
        return self.act1(convolve(self.conv1, self.bn1, images))

    def _add_stages(
        self,
        block: type[BasicBlock | Bottleneck | PreactBasicBlock | PreactBottleneck],
        plans: Sequence[StagePlan],
        *,
        in_channels: int,
        stochastic_depth: float,
    ) -> None:
        deaths = iter(linear_decay(stochastic_depth, sum(plan.count for plan in plans)))
        for i, plan in enumerate(plans):
            designs = [replace(plan.design, death=next(deaths), activated=i == j == 0) for j in range(plan.count)]
            if plan.first_dilation is not None:
                designs[0] = replace(designs[0], dilation=plan.first_dilation)
            stage = make_stage(block, in_channels, plan.width, stride=plan.stride, designs=designs)
            self.add_module(f"layer{i + 1}", stage)
            in_channels = plan.width * block.expansion
        if block.preact:
            design = plans[-1].design
            self.closing = nn.Sequential(design.norm(in_channels), design.activation(in_channels))
            self._parts[list(self._parts)[-1]] += ("closing",)

    def _freeze(self, freeze_at: int) -> None:
        for parts in [("conv1", "bn1", "act1"), *self._parts.values()][:freeze_at]:
            for part in parts:
                self.get_submodule(part).requires_grad_(False)


class ResNet(ResidualNetwork):
    """A residual network; the features are any of c2, c3, c4, c5 with strides 4, 8, 16, 32.

    Args:
        depth: 18, 34, 50, 101 or 152; with ``preact`` also 200.
        out_features: stages to return; those after the last one form the tail.
        preact: normalisation and activation come before every convolution (He et al. 2016, "Identity Mappings").
        se: every branch ends in squeeze-and-excitation (Hu et al. 2018).
        cbam: every branch ends in CBAM (Woo et al. 2018).
        stem: one 7x7 convolution, or "C" three 3x3 (He et al. 2019, "Bag of Tricks", section 4.1).
        avg_down: projections average 2x2 cells instead of using a stride; with stem "C", ResNet-D of that section.
        stride_in: which convolution of a bottleneck halves the size: "3x3" as in torchvision's weights, "1x1" as in
            the paper and its released weights. Basic blocks have no such choice.
        shortcut: "A" identity with zero-padded channels, "B" projection where the shape changes, "C" projection
            everywhere (section 4.1), "none" a plain network (section 3.3).
        groups: of the 3x3 convolutions of bottlenecks, each ``width_per_group`` channels wide in conv2_x (ResNeXt;
            Xie et al. 2017, "Aggregated Residual Transformations", table 1).
        activation: "relu", or "prelu" with a learned slope per channel (He et al. 2015, "Delving Deep").
        stochastic_depth: probability that a training step skips the branch of the last block; it falls linearly to
            the first (Huang et al. 2016). 0 skips nothing.
        dropblock: share of the cells that DropBlock drops in the last two stages (Ghiasi et al. 2018; 0.1 there).
        norm: kind of every normalisation layer.
        norm_eps: added to the variance.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also conv2_x, .. 5 everything. Frozen parameters need no gradient
            and batch normalisation among them keeps its statistics.
        fix_statistics: False lets the statistics of batch normalisation in frozen parts move, as in torchvision's
            detectors.
        tail_stride: stride of conv5_x in the tail; in the trunk it is 2.
        dilate_c5: conv5_x in the trunk keeps stride 16 and dilates its 3x3 convolutions instead ("DC5").
        output_stride: stride of c5 in the trunk. For 16 c5 keeps the stride of c4 and dilates its 3x3 convolutions,
            for 8 c4 does so too; the first block of such a stage dilates as the stage before it, as with torchvision's
            ``replace_stride_with_dilation``.
        deform: stages whose bottlenecks have deformable 3x3 convolutions (Dai et al. 2017), such as c3, c4 and c5.
        deform_modulated: these also weight their samples (Zhu et al. 2019).
        roi_size: side of the regions for the tail. By default the one that leaves 7x7 cells before the average: 14
            for conv5_x of stride 2 and 7 for stride 1.
        input_stats: how the input is normalised.

    Raises:
        ValueError: an argument is not one of the values above, or contradicts another.
    """

    def __init__(  # noqa: PLR0913  # one argument for every option that a name or a config may set
        self,
        depth: int,
        *,
        out_features: Sequence[str] = ("c4",),
        preact: bool = False,
        se: bool = False,
        cbam: bool = False,
        stem: Literal["7x7", "C"] = "7x7",
        avg_down: bool = False,
        stride_in: Literal["1x1", "3x3"] = "3x3",
        shortcut: Literal["A", "B", "C", "none"] = "B",
        groups: int = 1,
        width_per_group: int = 64,
        activation: ActivationKind = "relu",
        stochastic_depth: float = 0.0,
        dropblock: float = 0.0,
        norm: NormKind = "frozen_bn",
        norm_eps: float = 1e-5,
        freeze_at: int = 0,
        fix_statistics: bool = True,
        tail_stride: int = 2,
        dilate_c5: bool = False,
        output_stride: int = 32,
        deform: Sequence[str] = (),
        deform_modulated: bool = False,
        roi_size: int | None = None,
        input_stats: InputStats = IMAGENET_RGB,
    ) -> None:
        depths = PREACT_DEPTHS if preact else DEPTHS
        check_choice("depth", depth, tuple(depths))
        check_choice("stem", stem, ("7x7", "C"))
        check_choice("stride_in", stride_in, ("1x1", "3x3"))
        check_choice("freeze_at", freeze_at, range(6))
        check_choice("tail_stride", tail_stride, (1, 2))
        check_shortcut(shortcut, stochastic_depth=stochastic_depth)
        if avg_down and shortcut not in ("B", "C"):
            raise ValueError(f"avg_down applies to projections, and shortcut {shortcut!r} has none; use 'B' or 'C'")
        names = order_features(out_features, STAGES)
        if dilate_c5 and "c5" not in names:
            raise ValueError(f"dilate_c5 applies to c5 in the trunk; the features {', '.join(names)} end before it")
        check_output_stride(output_stride, names, dilate_c5=dilate_c5)

        block, counts = depths[depth]
        if block is not Bottleneck and (groups, width_per_group) != (1, 64):
            raise ValueError(f"groups and width_per_group are about bottlenecks; a network of depth {depth} has none")
        check_deform(deform, modulated=deform_modulated, bottlenecks=issubclass(block, Bottleneck | PreactBottleneck))
        c4, c5 = OUTPUT_STRIDES[output_stride]
        strides = (1, 2, c4.stride, 1 if dilate_c5 else c5.stride if "c5" in names else tail_stride)
        specs = {
            stage: FeatureSpec(64 * 2**i * block.expansion, 4 * math.prod(strides[: i + 1]))
            for i, stage in enumerate(STAGES)
        }
        super().__init__(specs, names, roi_size=roi_size, input_stats=input_stats)
        fixed = freeze_at if fix_statistics else 0
        norms = [make_norm(frozen_kind(norm) if part < fixed else norm, norm_eps) for part in range(5)]
        act = make_activation(activation)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False) if stem == "7x7" else _stem_c(norms[0], act)
        self.bn1 = norms[0](64)
        self.act1 = act(64)
        designs = [
            BlockDesign(shortcut, norm, act, stride_in, avg_down, se, groups=groups, width_per_group=width_per_group)
            for norm in norms[1:]
        ]
        if cbam:
            designs = [replace(design, cbam=True) for design in designs]
        if dropblock > 0:
            designs[-2:] = [replace(design, dropblock=dropblock) for design in designs[-2:]]
        for stage in deform:
            i = STAGES.index(stage)
            designs[i] = replace(designs[i], deform="modulated" if deform_modulated else "plain")
        if dilate_c5:
            designs[-1] = replace(designs[-1], dilation=2)
        if output_stride < FULL_STRIDE:
            designs[-2:] = [replace(designs[-2], dilation=c4.dilation), replace(designs[-1], dilation=c5.dilation)]
        first = (None, None, c4.first_dilation, c5.first_dilation)
        plans = [StagePlan(counts[i], 64 * 2**i, strides[i], designs[i], first[i]) for i in range(4)]
        self._add_stages(block, plans, in_channels=64, stochastic_depth=stochastic_depth)
        initialise(self, activation)
        self._freeze(freeze_at)

    def _stem(self, images: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, 64, H / 4, W / 4)."""
        return functional.max_pool2d(super()._stem(images), 3, stride=2, padding=1)


def check_output_stride(output_stride: int, names: Sequence[str], *, dilate_c5: bool) -> None:
    """Raises ValueError for an unknown stride, and for any but 32 without c5 in the trunk or with ``dilate_c5``."""
    check_choice("output_stride", output_stride, tuple(OUTPUT_STRIDES))
    if output_stride < FULL_STRIDE and (dilate_c5 or "c5" not in names):
        raise ValueError(
            f"output_stride {output_stride} applies to c5 in the trunk, whose features are {', '.join(names)}, and "
            f"takes the place of dilate_c5, which is {dilate_c5}; set it to {FULL_STRIDE} or leave dilate_c5 out"
        )


def check_shortcut(shortcut: str, *, stochastic_depth: float) -> None:
    """Raises ValueError for an unknown kind, and for a plain network that would skip whole layers."""
    check_choice("shortcut", shortcut, ("A", "B", "C", "none"))
    if shortcut == "none" and stochastic_depth > 0:
        raise ValueError(f"stochastic_depth {stochastic_depth} needs shortcuts, and a plain network has none; use 0")


def check_deform(deform: Sequence[str], *, modulated: bool, bottlenecks: bool) -> None:
    """Raises ValueError for an unknown stage, a network without bottlenecks, and an option without a stage."""
    for stage in deform:
        check_choice("deform", stage, STAGES)
    if deform and not bottlenecks:
        raise ValueError(f"deform applies to 3x3 convolutions of bottlenecks, and this network has none; got {deform}")
    if modulated and not deform:
        raise ValueError("deform_modulated applies to the stages in deform, which names none; set it to c3, c4 and c5")


def _stem_c(norm: NormLayer, activation: ActivationLayer) -> nn.Sequential:
    """Maps (N, 3, H, W) to (N, 64, H / 2, W / 2), by timm's names; the last normalisation is the network's bn1."""
    first, second, third = convolution(3, 32, 3, 2), convolution(32, 32, 3, 1), convolution(32, 64, 3, 1)
    return FoldingSequential(first, norm(32), activation(32), second, norm(32), activation(32), third)
