"""Normalisation layers of the backbones, among them batch normalisation with fixed statistics.

Source: He et al. 2016, appendix A: in detection, batch normalisation is a fixed scale and offset per channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FrozenBatchNorm", "NormKind", "NormLayer", "frozen_kind", "make_norm"]

NormKind = Literal["bn", "frozen_bn", "gn", "sync_bn"]
NormLayer = Callable[[int], nn.Module]  # channels -> layer

MAX_GROUPS = 32  # Wu and He 2018, "Group Normalization"


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed scale, offset and statistics, named as in BatchNorm2d."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.kept = dict[str, Any]()  # what backbones/folding.py computes of these and of a convolution's weights

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        normalise = _FixedBatchNorm.apply if torch.is_grad_enabled() and x.requires_grad else _normalise
        return normalise(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns the scale and the offset (C,) that the layer applies."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out cached values, so that copies and files hold no second set of weights."""
        return self.__dict__ | {"kept": {}}

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # BatchNorm2d counts its training steps; fixed statistics have no use for the counter. torch hands each
        # load its own copy of the mapping, so the caller's keeps the entry.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _normalise(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


class _FixedBatchNorm(torch.autograd.Function):
    """Fixed batch normalisation that saves no input for the backward pass.

    PyTorch's saves it for the gradients of scale and offset, which are fixed here.
    """

    @staticmethod
    def forward(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return _normalise(x, mean, var, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, var, weight, _, eps = inputs
        ctx.save_for_backward(var, weight)
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        var, weight = ctx.saved_tensors
        (gradient,) = gradients
        scale = (weight * (var + ctx.eps).rsqrt()).to(gradient.dtype)
        return gradient * scale.view(-1, 1, 1), None, None, None, None, None


def make_norm(kind: NormKind, eps: float) -> NormLayer:
    """Returns a function from a number of channels to a normalisation layer of this kind.

    Group normalisation takes gcd(32, channels) groups: 32 where that divides the channels, else the largest power
    of two that does.

    Raises:
        ValueError: an unknown kind; and, from the function, an odd number of channels for group normalisation.
    """
    match kind:
        case "bn":
            return partial(nn.BatchNorm2d, eps=eps)
        case "frozen_bn":
            return partial(FrozenBatchNorm, eps=eps)
        case "gn":
            return partial(_group_norm, eps=eps)
        case "sync_bn":
            return partial(nn.SyncBatchNorm, eps=eps)
        case _:
            raise ValueError(f"norm must be one of 'bn', 'frozen_bn', 'gn', 'sync_bn', got {kind!r}")


def frozen_kind(kind: NormKind) -> NormKind:
    """Returns the norm for frozen layers: batch norm becomes fixed, as its statistics move without a gradient."""
    return "frozen_bn" if kind in ("bn", "sync_bn") else kind


class _GroupNorm(nn.GroupNorm):
    """Group normalisation that also accepts one image of one cell with one channel per group.

    torch raises an error there, but returns the offsets for two such images: a lone value minus its mean is 0.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _group_norm(channels: int, *, eps: float) -> nn.GroupNorm:
    groups = math.gcd(MAX_GROUPS, channels)
    if groups == 1:
        raise ValueError(f"group normalisation needs an even number of channels to split, got {channels}")
    return _GroupNorm(groups, channels, eps=eps)
