"""Translations to standard ONNX of the operators for which PyTorch's exporter has none that is exact.

``resdet::nms`` becomes NonMaxSuppression, whose candidates go by falling score and, in ties, by position, as ours do.

onnxscript is optional, so that it is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from detection.export.extras import optional
from detection.model.select import single_below

__all__ = ["OPSET", "TENSORRT_LACKS", "translations"]

OPSET = 18
NEED = "ONNX"

# Operators that we emit and that TensorRT's list lacks: RoI pooling of box.pool roi_pool.
# Source: github.com/onnx/onnx-tensorrt, docs/operators.md of TensorRT 8.5.
TENSORRT_LACKS = frozenset({"MaxRoiPool"})

Translation = Callable[..., Any]


def translations(num_classes: int) -> Mapping[Any, Translation]:
    """Returns PyTorch's operators with what stands for them in a graph of ``num_classes`` classes.

    Raises:
        ImportError: onnxscript is missing.
    """
    return {
        torch.ops.resdet.nms.default: _nms(num_classes),
        torch.ops.aten.sort.stable: _stable_sort,
        torch.ops.torchvision.roi_align.default: _roi_align,
        torch.ops.torchvision.roi_pool.default: _roi_pool,
    }


def _nms(num_classes: int) -> Translation:
    op, ir = _onnx(), optional("onnxscript.ir", NEED)
    numbers = np.arange(num_classes, dtype=np.int64).reshape(1, -1, 1)

    def translate(boxes: Any, scores: Any, classes: Any = None, iou_threshold: float = 0.5, wanted: int = 1) -> Any:
        nothing = op.Constant(value_float=-np.inf)
        per_class = op.Unsqueeze(scores, op.Constant(value_ints=[1]))  # (N, 1 or K, M)
        if classes is not None:
            own = op.Equal(
                op.Unsqueeze(classes, op.Constant(value_ints=[1])),
                op.Constant(value=ir.tensor(numbers, name="classes")),
            )
            per_class = op.Where(own, per_class, nothing)
        chosen = op.NonMaxSuppression(  # rows of image, class, box
            boxes,
            per_class,
            op.Constant(value_ints=[wanted]),
            op.Constant(value_floats=[single_below(iou_threshold)]),
            op.Constant(value_floats=[float(np.finfo(np.float32).min)]),  # -inf is no candidate
        )
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        return op.ScatterND(op.Expand(nothing, op.Shape(scores)), places, op.GatherND(scores, places))

    return translate


def _onnx() -> Any:
    """Returns the operators of ``OPSET``."""
    return getattr(optional("onnxscript", NEED), f"opset{OPSET}")


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """TopK of everything, which takes the lower index first in ties."""
    op = _onnx()
    count = op.Constant(value_ints=[int(values.shape[dim])])
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _roi_align(
    feature: Any,
    regions: Any,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    op = _onnx()
    rows = op.Gather(regions, op.Constant(value_int=0), axis=1)
    return op.RoiAlign(
        feature,
        op.Gather(regions, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
        op.Cast(rows, to=7),  # int64
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=pooled_height,
        output_width=pooled_width,
        sampling_ratio=max(sampling_ratio, 0),  # 0: one sample per cell, as torchvision's -1
        spatial_scale=spatial_scale,
    )


def _roi_pool(feature: Any, regions: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
    op = _onnx()
    pooled = op.MaxRoiPool(feature, regions, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale)
    return pooled, pooled  # the second, places of the maxima, is for training
