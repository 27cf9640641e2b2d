"""Exact translations to standard ONNX of operators that PyTorch's exporter does not translate exactly.

``resdet::nms`` becomes NonMaxSuppression, which orders candidates by falling score and ties by position, as ours does.

onnxscript is optional and therefore imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from detection.export.deformable import translate_deform_conv2d
from detection.export.extras import optional
from detection.model.select import single_below

__all__ = ["OPSET", "TENSORRT_LACKS", "shorten_sorts", "translations"]

OPSET = 18
NEED = "ONNX"

# Operators of our graphs that TensorRT's list lacks: RoI pooling, with box.pool roi_pool.
# Source: github.com/onnx/onnx-tensorrt, docs/operators.md of TensorRT 8.5.
TENSORRT_LACKS = frozenset({"MaxRoiPool"})

Translation = Callable[..., Any]


def translations(num_classes: int) -> Mapping[Any, Translation]:
    """Returns the translation of each of PyTorch's operators, for a graph of ``num_classes`` classes.

    Raises:
        ImportError: onnxscript is missing.
    """
    return {
        torch.ops.resdet.nms.default: _nms(num_classes),
        torch.ops.aten.sort.stable: _stable_sort,
        torch.ops.torchvision.roi_align.default: _roi_align,
        torch.ops.torchvision.roi_pool.default: _roi_pool,
        torch.ops.torchvision.deform_conv2d.default: translate_deform_conv2d(_onnx()),
    }


def _nms(num_classes: int) -> Translation:
    op, ir = _onnx(), optional("onnxscript.ir", NEED)

    def translate(boxes: Any, scores: Any, classes: Any = None, iou_threshold: float = 0.5, wanted: int = 1) -> Any:
        nothing = op.Constant(value_float=-np.inf)
        counts = op.Cast(op.Greater(scores, nothing), to=1)  # float32, as TensorRT's NonZero requires
        places = op.Transpose(op.NonZero(counts), perm=[1, 0])  # (T, 2)
        candidates = op.GatherND(scores, places)
        groups = op.Gather(places, op.Constant(value_int=0), axis=1)
        count = int(scores.shape[0])
        if classes is not None:  # each class of an image is a group of its own
            groups = op.Add(op.Mul(groups, op.Constant(value_int=num_classes)), op.GatherND(classes, places))
            count *= num_classes
        numbers = op.Constant(value=ir.tensor(np.arange(count, dtype=np.int64)[:, None], name="groups"))
        per_group = op.Where(op.Equal(groups, numbers), candidates, nothing)  # (count, T)
        chosen = op.NonMaxSuppression(  # rows of 0, group, candidate
            op.Unsqueeze(op.GatherND(boxes, places), op.Constant(value_ints=[0])),
            op.Unsqueeze(per_group, op.Constant(value_ints=[0])),
            op.Constant(value_ints=[wanted]),
            op.Constant(value_floats=[single_below(iou_threshold)]),
            op.Constant(value_floats=[float(np.finfo(np.float32).min)]),  # -inf is no candidate
        )
        kept = op.Gather(chosen, op.Constant(value_int=2), axis=1)
        everywhere = op.Expand(nothing, op.Shape(scores))
        return op.ScatterND(everywhere, op.Gather(places, kept, axis=0), op.Gather(candidates, kept, axis=0))

    return translate


def _onnx() -> Any:
    """Returns the operators of ``OPSET``."""
    return getattr(optional("onnxscript", NEED), f"opset{OPSET}")


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Sorts by a TopK of all elements, which orders ties by index."""
    op = _onnx()
    count = op.Constant(value_ints=[int(values.shape[dim])])
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def shorten_sorts(model: Any) -> None:
    """Shortens each TopK of all elements in onnxscript's ``model`` of which only the first are used."""
    for node in model.graph:
        if node.op_type != "TopK":
            continue
        slices = [use.node for output in node.outputs for use in output.uses()]
        firsts = {_first_taken(user, node.attributes["axis"].as_int()) for user in slices}
        if len(firsts) == 1 and 0 < min(firsts) < _number(node.inputs[1]):
            everything, first = node.inputs[1], slices[0]
            node.replace_input_with(1, first.inputs[2])
            for output in node.outputs:
                output.shape = first.outputs[0].shape
            if not everything.uses():
                model.graph.initializers.pop(everything.name)


def _first_taken(node: Any, axis: int) -> int:
    """Returns k if ``node`` only slices the first k elements along ``axis``, else 0."""
    if node.op_type != "Slice" or _number(node.inputs[1]) or _number(node.inputs[3]) != axis:
        return 0
    return _number(node.inputs[2])


def _number(value: Any) -> int:
    return int(value.const_value.numpy().item()) if value.const_value is not None else 0


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
    return pooled, pooled  # the second output, indices of the maxima, is for training
