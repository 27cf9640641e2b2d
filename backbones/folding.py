"""Convolutions that take the fixed normalisation after them into their weights, so that it costs no layer of its own.

Fixed normalisation is a scale and an offset per channel, and a convolution is linear: its weights times the scale, and
the offset as its bias, give the same up to rounding.  Weights on disk stay as they are.

- Weights that are not trained, and all in a test, are folded once and kept until one of their tensors changes.
- In training the scale is multiplied in at every step, forward and again on the way back, which keeps no second copy of
  the weights in between; the gradient of the weights themselves comes back.

Shapes: N images, C input channels, O output channels, k k kernel, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.norm import FrozenBatchNorm

__all__ = ["FoldingSequential", "convolve", "run"]

Folded = tuple[Tensor, Tensor]  # weight (O, C, k, k) and bias (O,)


def convolve(convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Returns ``norm(convolution(x))`` (N, O, H, W), by one operator where ``norm`` is fixed.

    Other layers, and those with forward hooks, run one after the other.
    """
    if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, FrozenBatchNorm) and _foldable(convolution, norm)):
        return norm(convolution(x))
    learns = torch.is_grad_enabled() and convolution.weight.requires_grad
    if torch.compiler.is_compiling() or (learns and _autocasts(x)):
        weight, bias = _fold(convolution, norm)  # a compiler fuses what is repeated; autocast keeps a small copy anyway
    elif learns:
        scale, offset = _kept(norm, "affine", norm.affine, norm.buffers())
        geometry = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        return _ScaledConvolution.apply(x, convolution.weight, scale, offset, *geometry)
    else:
        tensors = [*convolution.parameters(recurse=False), *norm.buffers()]
        weight, bias = _kept(norm, "folded", lambda: _fold(convolution, norm), tensors)
    return functional.conv2d(
        x, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )


class FoldingSequential(nn.Sequential):
    """``nn.Sequential``, names included, in which convolutions take the fixed normalisation that follows them."""

    def forward(self, input: Tensor) -> Tensor:
        output = input
        for step in run(list(self), input):
            _, output = step
        return output


def run(layers: Sequence[nn.Module], x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields the index and the output of each of ``layers`` in turn; a convolution and its norm are one, the norm."""
    index = 0
    while index < len(layers):
        follower = layers[index + 1] if index + 1 < len(layers) else None
        if isinstance(layers[index], nn.Conv2d) and isinstance(follower, FrozenBatchNorm):
            x, index = convolve(layers[index], follower, x), index + 2
        else:
            x, index = layers[index](x), index + 1
        yield index - 1, x


class _ScaledConvolution(torch.autograd.Function):
    """A convolution with weights times ``scale`` (O,) and the bias ``offset`` (O,), both fixed.

    Keeps what a convolution without scale keeps.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor, *geometry: Any) -> Tensor:
        return functional.conv2d(x, weight * scale.view(-1, 1, 1, 1), offset, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scale, _, *geometry = inputs
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = geometry

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        if gradient.numel() < weight.numel():  # scales whichever is smaller
            of_x, of_weight = _backward(ctx, gradient * scale.view(-1, 1, 1), x, weight)
        else:
            of_x, of_weight = _backward(ctx, gradient, x, weight * scale.view(-1, 1, 1, 1))
            of_weight = None if of_weight is None else of_weight.mul_(scale.view(-1, 1, 1, 1))
        return of_x, of_weight, *[None] * 6


def _backward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of the input and of the weights of a convolution, where they are needed."""
    stride, padding, dilation, groups = ctx.geometry
    needed = (*ctx.needs_input_grad[:2], False)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, needed
    )
    return of_x, of_weight


def _autocasts(x: Tensor) -> bool:
    """Tells whether operators on ``x`` take lower precision; "meta" has no such mode."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _foldable(convolution: nn.Conv2d, norm: FrozenBatchNorm) -> bool:
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in (convolution, norm))
    plain = type(convolution) is nn.Conv2d and type(norm) is FrozenBatchNorm and convolution.padding_mode == "zeros"
    trained_bias = convolution.bias is not None and convolution.weight.requires_grad
    return plain and not hooked and not trained_bias and not isinstance(convolution.padding, str)


def _fold(convolution: nn.Conv2d, norm: FrozenBatchNorm) -> Folded:
    scale, offset = norm.affine()
    bias = offset if convolution.bias is None else torch.addcmul(offset, convolution.bias, scale)
    return convolution.weight * scale.view(-1, 1, 1, 1), bias


def _kept(norm: FrozenBatchNorm, name: str, compute: Callable[[], Folded], tensors: Iterable[Tensor]) -> Folded:
    """Returns what ``norm`` keeps under ``name``; computes it anew where one of ``tensors`` is not what it was."""
    states = [(tensor, *_state(tensor)) for tensor in tensors]
    known = norm.kept.get(name)
    if known is None or not all(map(_same, known[0], states)):
        with torch.inference_mode(False), torch.no_grad():
            known = norm.kept[name] = states, compute()
    return known[1]


def _state(tensor: Tensor) -> tuple[int, int]:
    """Returns what changes with the values of ``tensor``: its count of changes in place, and where they lie."""
    version = -1 if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else 0


def _same(one: tuple[Tensor, int, int], other: tuple[Tensor, int, int]) -> bool:
    return one[0] is other[0] and one[1:] == other[1:] and one[1] >= 0
