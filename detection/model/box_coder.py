"""Box regression: the deltas (dx, dy, dw, dh) that turn an anchor into a box.

Source: R-CNN (Girshick et al. 2014), appendix C; the weights follow Fast R-CNN.

Shapes: ``...`` is any leading shape, such as (R,) or (R, K); anchors broadcast against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detection.model.precision import at_least_single

__all__ = ["MAX_LOG_SCALE", "BoxCoder"]

# exp(dw) is capped so that a 16 px anchor grows to 1000 px at most; without it early training overflows.
MAX_LOG_SCALE = math.log(1000 / 16)


@dataclass(frozen=True)
class BoxCoder:
    """Encodes boxes against anchors and decodes them back: ``decode(encode(b, a), a) == b``.

    Attributes:
        weights: factors on (dx, dy, dw, dh); larger values make small deltas weigh more in the loss.
    """

    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.weights) != 4:
            raise ValueError(f"a box coder takes four weights, got {self.weights}")

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Returns deltas (..., 4) from ``anchors`` (..., 4) to ``boxes`` (..., 4); both need positive sides."""
        box_center, box_size = _center_and_size(boxes)
        anchor_center, anchor_size = _center_and_size(anchors)
        shift = (box_center - anchor_center) / anchor_size
        log_scale = torch.log(box_size / anchor_size)
        deltas = torch.cat([shift, log_scale], dim=-1)
        return deltas if self.weights == (1.0,) * 4 else deltas * boxes.new_tensor(self.weights)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Returns boxes (..., 4), in float32 or float64, reached from ``anchors`` (..., 4) by ``deltas`` (..., 4)."""
        deltas = at_least_single(deltas)  # half precision loses pixels
        deltas = deltas if self.weights == (1.0,) * 4 else deltas / deltas.new_tensor(self.weights)
        anchor_center, anchor_size = _center_and_size(anchors.to(deltas.dtype))
        center = anchor_center + deltas[..., :2] * anchor_size
        half_size = anchor_size * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
        return torch.cat([center - half_size, center + half_size], dim=-1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Maps boxes (..., 4) xyxy to centers (..., 2) as (x, y) and sizes (..., 2) as (width, height)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return (top_left + bottom_right) / 2, bottom_right - top_left
