"""A classifier of another library as a backbone: its graph, cut after the last feature map that is needed.

The graph is traced with torch.fx. Parameter names stay those of the library, so that its weights fit.
Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.feature_extraction import DualGraphModule, create_feature_extractor

from backbones.base import Backbone, FeatureSpec, InputStats, Tail, check_choice, order_features
from backbones.norm import FrozenBatchNorm
from backbones.weights.load import LoadReport, load_matching

__all__ = ["AUXILIARY", "Leaves", "Stage", "TracedBackbone", "fix_norms", "pad_borders"]

# Errors of other libraries' code that cannot be traced, or cannot run on an image size.
_UNUSABLE = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)

# Auxiliary classifiers: files have their weights, but no backbone has the layers.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")

_ODD = (65, 94)  # odd before every halving; even, odd, even, ..


@dataclass(frozen=True, slots=True)
class Stage:
    """The module of a classifier that a feature map comes from, and the channels of that map."""

    module: str
    channels: int


@dataclass(frozen=True, slots=True)
class Leaves:
    """Modules and functions of a library that its graphs keep whole."""

    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., object], ...] = ()


class TracedBackbone(Backbone):
    """Any of c2..c5 (strides 4, 8, 16 and 32) of a classifier; layers after the last of them are dropped.

    Maps have exactly ceil(size / stride) cells.  If layers of the classifier round sizes down, images are padded with
    zeros below and to the right, up to a multiple of the last stride, and the maps are cropped.  If that is not enough,
    because unpadded layers lose cells, these layers are padded too (``pad_borders``).  Weights stay valid.

    Args:
        model: the classifier; it is modified in place.
        name: the backbone's name in error messages.
        stages: c1..c5 as far as the classifier has them.
        out_features: stages to return, of c2..c5.
        norm: "bn", or "frozen_bn" for fixed statistics, scale and offset; None is "frozen_bn" where there is batch
            normalisation.
        freeze_at: k freezes all layers up to c_k, including their batch normalisation; 0 freezes none.
        input_stats: how the input is normalised.
        leaves: modules and functions that the tracer must not enter.

    Raises:
        ValueError: an argument is not one of the values above, the classifier cannot be traced, or its maps do not have
            the expected sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        stages: Mapping[str, Stage],
        out_features: Sequence[str],
        norm: Literal["bn", "frozen_bn"] | None,
        freeze_at: int,
        input_stats: InputStats,
        leaves: Leaves = Leaves(),
    ) -> None:
        offered = {stage: _spec(stage, origin) for stage, origin in stages.items() if stage != "c1"}
        if "c4" not in offered:
            strides = [spec.stride for spec in offered.values()]
            raise ValueError(f"{name} has no map of stride 16, which detectors here need; its strides are {strides}")
        names = order_features(out_features, tuple(offered))
        super().__init__({stage: offered[stage] for stage in names}, input_stats)
        self.name = name
        self.trunk = _trace(model, {stages[stage].module: stage for stage in names}, leaves, name=name)
        kept = self.trunk.state_dict()
        self._unused = (*AUXILIARY, *(entry for entry in model.state_dict() if entry not in kept))
        frozen = _frozen_stem(model, stages, freeze_at, leaves, name=name)
        fix_norms(self.trunk, norm, frozen, name=name)
        self._multiple = self._fit_sizes()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns feature maps (N, C, ceil(H / stride), ceil(W / stride)) of normalised float images (N, 3, H, W)."""
        height, width = images.shape[-2:]
        if self._multiple > 1:
            images = functional.pad(images, (0, -width % self._multiple, 0, -height % self._multiple))
        maps = self.trunk(images)
        return {
            name: maps[name][:, :, : -(-height // spec.stride), : -(-width // spec.stride)]
            for name, spec in self.specs.items()
        }

    def tail(self) -> Tail:
        """Raises ValueError: no layers after the trunk are kept.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} has no tail; set box.head to fc, or classification.network to spp")

    @property
    def dropped(self) -> tuple[str, ...]:
        """Name prefixes of the layers that the whole classifier has beyond this trunk, such as its head."""
        return tuple(f"trunk.{name}" for name in self._unused)

    def load(self, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
        """Loads weights by the library's names; weights of dropped layers are ignored.

        Args:
            state: tensors by name.
            source: origin of the weights, for error messages.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs; nothing is loaded then.
        """
        return load_matching(self.trunk, state, source=source, unused_ok=self._unused)

    @abstractmethod
    def load_weights(self, weights: str) -> LoadReport:
        """Loads ``weights``: the name of the library, which downloads its own, or the path of a file.

        Raises:
            ValueError: the weights are unavailable or do not fit.
        """

    def _fit_sizes(self) -> int:
        """Returns the multiple to which image sides are padded; unpadded layers of the trunk are padded if need be.

        Raises:
            ValueError: the maps are not ceil(size / stride) either way.
        """
        coarsest = list(self.specs.values())[-1].stride
        reason = ""
        for padded in (False, True):
            if padded:
                pad_borders(self.trunk)
            if not self._misfit(_ODD):
                return 1
            misfit = self._misfit((3 * coarsest, 5 * coarsest))
            if not misfit:
                return coarsest
            reason = reason or misfit
        raise ValueError(f"{self.name} cannot be a backbone: {reason}; choose a convolutional network")

    @torch.no_grad()
    def _misfit(self, size: tuple[int, int]) -> str:
        """Returns the problem with the trunk's maps for an image of this size; empty if there is none."""
        parameter = next(self.trunk.parameters())
        training = self.trunk.training
        self.trunk.eval()
        try:
            # not by a call, which prints where in the graph an error arose
            maps = self.trunk.forward(parameter.new_zeros(1, 3, *size))
            shapes = {name: tuple(maps[name].shape) for name in self.specs}
        except _UNUSABLE as error:
            return f"it does not run on images of {size[0]} x {size[1]} pixels ({error})"
        finally:
            self.trunk.train(training)
        for name, spec in self.specs.items():
            expected = (1, spec.channels, -(-size[0] // spec.stride), -(-size[1] // spec.stride))
            if shapes[name] != expected:
                return f"{name} of an image of {size[0]} x {size[1]} pixels is {shapes[name]}, not {expected}"
        return ""


class _FrozenBatchNormAct(FrozenBatchNorm):
    """A batch normalisation of timm with its dropout and activation; everything but these two is fixed."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__(layer.num_features, layer.eps)
        self.drop, self.act = layer.get_submodule("drop"), layer.get_submodule("act")

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        return self.act(self.drop(super().forward(x)))


def pad_borders(trunk: DualGraphModule) -> None:
    """Pads unpadded convolutions and pools with odd kernels in place, by half the kernel on each side.

    A layer of stride s then gives ceil(size / s) cells.  Cells whose inputs lie inside the image keep their value up to
    a shift of the image by a few pixels; those at the border see zeros (pools: nothing) where the network, as it was
    trained, had no cell.  Affects Inception-v3 and -v4, Inception-ResNet-v2 and Xception.
    """
    for layer in trunk.modules():
        # exact types only: subclasses pad in their own ways
        if type(layer) is nn.Conv2d and not isinstance(layer.padding, str):
            layer.padding = _padding(layer.kernel_size, layer.padding, layer.dilation)
        elif type(layer) is nn.MaxPool2d or type(layer) is nn.AvgPool2d:
            _pad_pool(layer)
    for graph in (trunk.train_graph, trunk.eval_graph):
        for node in graph.nodes:
            if node.target is functional.max_pool2d:
                padding = _padding(node.args[1], node.kwargs["padding"])  # torch hands it over in this form only
                if padding != _pair(node.kwargs["padding"]):
                    node.kwargs = {**node.kwargs, "padding": padding, "ceil_mode": False}
    trunk.graph = trunk.train_graph if trunk.training else trunk.eval_graph


def _pad_pool(layer: nn.MaxPool2d | nn.AvgPool2d) -> None:
    padding = _padding(layer.kernel_size, layer.padding)
    if padding != _pair(layer.padding):
        layer.padding, layer.ceil_mode = padding, False
        if isinstance(layer, nn.AvgPool2d):
            layer.count_include_pad = False


def _padding(
    kernel: int | tuple[int, ...], padding: int | tuple[int, ...], dilation: tuple[int, ...] = (1, 1)
) -> tuple[int, int]:
    """Returns ``padding``, with half the kernel in place of 0 along sides with an odd kernel."""
    vertical, horizontal = (
        d * (k // 2) if p == 0 and k % 2 else p for k, p, d in zip(_pair(kernel), _pair(padding), dilation, strict=True)
    )
    return vertical, horizontal


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value


def _spec(stage: str, origin: Stage) -> FeatureSpec:
    return FeatureSpec(origin.channels, 2 ** int(stage.removeprefix("c")))


def _trace(model: nn.Module, nodes: Mapping[str, str], leaves: Leaves, *, name: str) -> DualGraphModule:
    """Returns ``model`` up to the last of the modules ``nodes`` (module -> key of its output); it shares the layers."""
    kept = {"leaf_modules": list(leaves.modules), "autowrap_functions": list(leaves.functions)}
    try:
        trunk = create_feature_extractor(model, dict(nodes), tracer_kwargs=kept, suppress_diff_warning=True)
    except _UNUSABLE as error:
        raise ValueError(
            f"{name} cannot be a backbone: its graph cannot be traced ({error}); choose a convolutional network"
        ) from error
    assert isinstance(trunk, DualGraphModule)
    return trunk


def _frozen_stem(
    model: nn.Module, stages: Mapping[str, Stage], freeze_at: int, leaves: Leaves, *, name: str
) -> set[str]:
    """Freezes the parameters of the modules up to c_k, k = ``freeze_at``, and returns the names of these modules."""
    choices = [0, *(int(stage.removeprefix("c")) for stage in stages)]
    if freeze_at not in choices:
        raise ValueError(
            f"freeze_at must be one of {', '.join(map(str, choices))} for {name}, got {freeze_at}: "
            "stage k ends at the map of stride 2^k"
        )
    if freeze_at == 0:
        return set()
    stem = _trace(model, {stages[f"c{freeze_at}"].module: "last"}, leaves, name=name).requires_grad_(False)
    return {key for key, _ in stem.named_modules()}


def fix_norms(trunk: nn.Module, norm: Literal["bn", "frozen_bn"] | None, frozen: set[str], *, name: str) -> None:
    """Fixes the statistics of batch norms in the modules ``frozen``, or everywhere, unless ``norm`` is "bn"."""
    check_choice(f"norm of {name}", norm, (None, "bn", "frozen_bn"))
    layers = {key: layer for key, layer in trunk.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    if norm is not None and not layers:
        raise ValueError(f"{name} has no batch normalisation; leave norm unset, got {norm!r}")
    for key, layer in layers.items():
        if norm != "bn" or key in frozen:
            trunk.set_submodule(key, _fixed(layer))


def _fixed(layer: nn.BatchNorm2d) -> FrozenBatchNorm:
    """Returns ``layer`` with fixed statistics, scale and offset."""
    fixed = _FrozenBatchNormAct(layer) if hasattr(layer, "act") else FrozenBatchNorm(layer.num_features, layer.eps)
    fixed.load_state_dict(fixed.state_dict() | layer.state_dict())
    return fixed
