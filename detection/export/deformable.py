"""Translates torchvision's deformable convolution to ONNX of an opset without one: GridSample, then a convolution.

GridSample reads 0 outside the map and interpolates between cells as the operator does; a 1x1 convolution sums the
samples.

Shapes: N images, C input and O output channels, G groups, T samples of a kernel, H W and H' W' input and output cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from detection.export.extras import optional

__all__ = ["translate_deform_conv2d"]


def translate_deform_conv2d(op: Any) -> Callable[..., Any]:
    """Returns the translation of the operator to ``op``, an opset of at least 16; all groups share their offsets."""
    tensor = optional("onnxscript.ir", "ONNX").tensor

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def constant(values: Any) -> Any:
        return op.Constant(value=tensor(np.asarray(values, np.float32)))

    def translate(  # noqa: PLR0913  # the operator's
        input: Any,  # (N, C, H, W)
        weight: Any,  # (O, C / G, kernel height, kernel width)
        offset: Any,  # (N, 2 T, H', W'), offsets (dy, dx) of the samples, in cells
        mask: Any,  # (N, T, H', W'), weights of the samples if use_mask
        bias: Any,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
        groups: int,
        offset_groups: int,
        use_mask: bool,
    ) -> Any:
        (images, channels, *cells), (outputs, _, rows, columns) = _shape(input), _shape(weight)
        taps, (height, width) = rows * columns, _shape(offset)[2:]
        numbers = np.arange(taps)[:, None, None]
        firsts = (
            numbers // columns * dilation_h - pad_h + np.arange(height)[:, None] * stride_h,
            numbers % columns * dilation_w - pad_w + np.arange(width) * stride_w,
        )
        moves, places = op.Reshape(offset, ints(images, taps, 2, height, width)), list[Any]()
        for axis in (1, 0):  # GridSample expects x before y
            move = op.Gather(moves, op.Constant(value_int=axis), axis=2)
            place = op.Add(move, constant(np.broadcast_to(firsts[axis] + 0.5, (1, taps, height, width))))
            # The centre of cell p lies at (2 p + 1) / cells - 1 (align_corners 0).
            scaled = op.Sub(op.Mul(place, constant(2 / cells[axis])), constant(1.0))
            places.append(op.Reshape(scaled, ints(images, taps * height, width, 1)))
        grid = op.Concat(*places, axis=-1)
        samples = op.GridSample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=0)  # (N, C, T H', W')
        if use_mask:
            apart = op.Reshape(samples, ints(images, channels, taps, height, width))
            samples = op.Mul(apart, op.Reshape(mask, ints(images, 1, taps, height, width)))
        products = op.Reshape(weight, ints(outputs, channels // groups * taps, 1, 1))
        return op.Conv(op.Reshape(samples, ints(images, channels * taps, height, width)), products, bias, group=groups)

    return translate


def _shape(value: Any) -> list[int]:
    return [int(side) for side in value.shape]
