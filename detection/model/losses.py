"""Loss formulas.  Which rows enter them is decided by the RPN and the box stage."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

__all__ = ["smooth_l1"]


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Sum over all elements of 0.5 x^2 / beta for |x| < beta, else |x| - beta / 2; a scalar in float32.

    Source: Fast R-CNN, equation 3; py-faster-rcnn's sigma is 1 / sqrt(beta).
    """
    return F.smooth_l1_loss(deltas.float(), targets.float(), beta=beta, reduction="sum")
