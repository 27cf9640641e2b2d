"""Folds fixed normalisation into the weights of the convolution before it, so that it costs no layer of its own.

Fixed normalisation is a scale and an offset per channel, and a convolution is linear: its weights times the scale, and
the offset as its bias, give the same up to rounding.  Weights on disk stay as they are.

- Frozen weights, and all weights in a test, are folded once and kept until one of their tensors changes.
- In training the scale is multiplied in at every step, and gradients are those of the unscaled weights.  A stage does
  so for all its weights at once, with one operator forward and two backward.  A network does not, so that the first
  gradients can be sent to other processes while the last are computed.  The scaled weights are kept until the backward
  pass, as much memory again as the weights take.

Shapes: N images, C input channels, O output channels, k k kernel, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.norm import FrozenBatchNorm

__all__ = ["FoldedWeights", "FoldingSequential", "Pair", "convolve", "fold_at_once", "run"]

Folded = tuple[Tensor, Tensor]  # weight (O, C, k, k) and bias (O,)
Pair = tuple[nn.Module, nn.Module]  # a convolution, and the norm of its output
FoldedWeights = Mapping[Pair, Folded]


def convolve(convolution: nn.Module, norm: nn.Module, x: Tensor, folded: FoldedWeights | None = None) -> Tensor:
    """Returns ``norm(convolution(x))`` (N, O, H, W), by one operator where ``norm`` is fixed.

    Other layers, and those with forward hooks, run one after the other.

    Args:
        convolution: (N, C, H, W) -> (N, O, H, W).
        norm: of its output.
        x: (N, C, H, W).
        folded: from ``fold_at_once``; a pair that is not in it is folded here.
    """
    pair = convolution, norm
    if not _is_foldable(pair):
        return norm(convolution(x))
    convolution, norm = pair
    if torch.compiler.is_compiling():
        weight, bias = _fold(convolution, norm)  # a compiler fuses what is repeated
    elif folded is not None and pair in folded:
        weight, bias = folded[pair]
    elif _learns(convolution):
        scale, bias = _affine(norm)
        weight = convolution.weight * scale
    else:
        tensors = [*convolution.parameters(recurse=False), *norm.buffers()]
        weight, bias = _kept(norm, "folded", lambda: _fold(convolution, norm), tensors)
    return functional.conv2d(
        x, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )


@contextmanager
def fold_at_once(pairs: Iterable[Pair]) -> Iterator[FoldedWeights]:
    """Yields the folded weights and biases of the trainable convolutions in ``pairs``, from one operator.

    Its backward pass is one operator too, and skips weights without a gradient.  Convolutions inside the context keep
    no folded weights for their backward passes; one more operator recomputes all of them.
    """
    learning = [pair for pair in pairs if _is_foldable(pair) and _learns(pair[0])]
    if torch.compiler.is_compiling() or not learning:
        yield {}
        return
    scales, biases = zip(*(_affine(norm) for _, norm in learning), strict=True)
    weights = [convolution.weight for convolution, _ in learning]
    folded = _ScaledWeights.apply(*scales, *weights)
    found: FoldedWeights = dict(zip(learning, zip(folded, biases, strict=True), strict=True))
    if type(folded[0]) is not Tensor:  # fake tensors have no place in memory, nor need one
        yield found
        return
    again = _MadeAgain(folded, weights, scales)
    with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
        yield found


class _MadeAgain:
    """Replaces saved folded weights between forward and backward, so that no second copy of the weights is kept.

    Args:
        folded: as the convolutions take them.
        weights, scales: whose products they are.
    """

    def __init__(self, folded: Sequence[Tensor], weights: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
        self.places = {values.data_ptr(): place for place, values in enumerate(folded)}
        self.weights, self.scales, self.versions = weights, scales, [weight._version for weight in weights]
        self.packed = self.left = 0
        self.values: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor | int:
        """Returns the index of a folded weight; other tensors are returned unchanged."""
        place = self.places.get(tensor.data_ptr())
        if place is None or tensor.shape != self.weights[place].shape:
            return tensor
        self.packed += 1
        return place

    def unpack(self, kept: Tensor | int) -> Tensor:
        """Returns the packed tensor.

        Raises:
            RuntimeError: the weights changed between forward and backward, as autograd has it.
        """
        if isinstance(kept, Tensor):
            return kept
        if not self.values:
            if [weight._version for weight in self.weights] != self.versions:
                raise RuntimeError("weights were modified by an in-place operation between forward and backward")
            with torch.no_grad():
                self.values, self.left = _multiply(self.weights, self.scales), self.packed
        value, self.left = self.values[kept], self.left - 1
        if not self.left:
            self.values = []
        return value


class FoldingSequential(nn.Sequential):
    """``nn.Sequential``, names included, in which convolutions take the fixed normalisation that follows them."""

    def pairs(self) -> list[Pair]:
        """Returns the convolutions that a norm follows, for ``fold_at_once``."""
        return [(one, other) for one, other in pairwise(self) if _is_pair(one, other)]

    def forward(self, input: Tensor, folded: FoldedWeights | None = None) -> Tensor:
        output = input
        for step in run(list(self), input, folded):
            _, output = step
        return output


def run(layers: Sequence[nn.Module], x: Tensor, folded: FoldedWeights | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yields the index and the output of each of ``layers`` in turn; a convolution and its norm count as the norm."""
    index = 0
    while index < len(layers):
        follower = layers[index + 1] if index + 1 < len(layers) else None
        if follower is not None and _is_pair(layers[index], follower):
            x, index = convolve(layers[index], follower, x, folded), index + 2
        else:
            x, index = layers[index](x), index + 1
        yield index - 1, x


class _ScaledWeights(torch.autograd.Function):
    """Weights (O, C, k, k) of several convolutions times their scales (O, 1, 1, 1), which come first and are fixed."""

    @staticmethod
    def forward(*scales_and_weights: Tensor) -> tuple[Tensor, ...]:
        half = len(scales_and_weights) // 2
        return tuple(_multiply(scales_and_weights[half:], scales_and_weights[:half]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[: len(output)])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        scales = ctx.saved_tensors
        came = [(gradient, scale) for gradient, scale in zip(gradients, scales, strict=True) if gradient is not None]
        if came:  # in place: they are the convolutions' own, and a second copy of a stage is 60 MB of ResNet-50
            torch.ops.aten._foreach_mul_.List(*zip(*came, strict=True))
        return *[None] * len(scales), *gradients


def _multiply(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Returns the pairwise products, by one operator; a device may still compute them in turn, as sizes differ."""
    return torch.ops.aten._foreach_mul.List(tensors, others)


def _is_pair(layer: nn.Module, follower: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and isinstance(follower, FrozenBatchNorm)


def _learns(convolution: nn.Conv2d) -> bool:
    return torch.is_grad_enabled() and convolution.weight.requires_grad


def _is_foldable(pair: Pair) -> TypeGuard[tuple[nn.Conv2d, FrozenBatchNorm]]:
    convolution, norm = pair
    if type(convolution) is not nn.Conv2d or type(norm) is not FrozenBatchNorm:
        return False
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in pair)
    trained_bias = convolution.bias is not None and convolution.weight.requires_grad
    plain = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return plain and not hooked and not trained_bias


def _fold(convolution: nn.Conv2d, norm: FrozenBatchNorm) -> Folded:
    scale, offset = norm.affine()
    bias = offset if convolution.bias is None else torch.addcmul(offset, convolution.bias, scale)
    return convolution.weight * scale.view(-1, 1, 1, 1), bias


def _affine(norm: FrozenBatchNorm) -> Folded:
    """Returns the scale (O, 1, 1, 1) and the offset (O,) of ``norm``."""

    def compute() -> Folded:
        scale, offset = norm.affine()
        return scale.view(-1, 1, 1, 1), offset

    return _kept(norm, "affine", compute, norm.buffers())


def _kept(norm: FrozenBatchNorm, name: str, compute: Callable[[], Folded], tensors: Iterable[Tensor]) -> Folded:
    """Returns the value cached in ``norm`` under ``name``, recomputed if one of ``tensors`` has changed."""
    states = [(tensor, *_state(tensor)) for tensor in tensors]
    known = norm.kept.get(name)
    if known is None or not all(map(_same, known[0], states)):
        with torch.inference_mode(False), torch.no_grad():
            known = norm.kept[name] = states, compute()
    return known[1]


def _state(tensor: Tensor) -> tuple[int, int]:
    """Returns the version counter and the memory address of ``tensor``, which change with its values."""
    version = -1 if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else 0


def _same(one: tuple[Tensor, int, int], other: tuple[Tensor, int, int]) -> bool:
    return one[0] is other[0] and one[1:] == other[1:] and one[1] >= 0
