"""The precision of logits, deltas, boxes and losses: float32 under mixed precision, float64 in a float64 detector."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_single"]


def at_least_single(x: Tensor) -> Tensor:
    """Returns ``x`` in float32; float64 stays."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
