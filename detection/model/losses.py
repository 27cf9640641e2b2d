"""Loss formulas.  Which rows enter them is decided by the RPN and the box stage."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import generalized_box_iou_loss

from detection.model.precision import at_least_single

__all__ = ["giou", "smooth_l1"]


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float, weight: Tensor) -> Tensor:
    """Sum over all elements of 0.5 x^2 / beta for |x| < beta, else |x| - beta / 2; beta 0 is L1. Scalar, of the
    precision of ``deltas``, at least float32.

    Args:
        deltas: (..., 4).
        targets: (..., 4), finite.
        beta: as above.
        weight: (...) of each row; 0 leaves it out.

    Source: Fast R-CNN, equation 3; py-faster-rcnn's sigma is 1 / sqrt(beta).
    """
    deltas = at_least_single(deltas)
    return (F.smooth_l1_loss(deltas, targets.to(deltas.dtype), beta=beta, reduction="none") * weight[..., None]).sum()


def giou(boxes: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Sum over ``boxes`` (..., 4) of 1 - generalised IoU with ``targets`` (..., 4), 0 to 2 each; a scalar.

    ``weight`` (...) is that of each row; 0 leaves it out.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 2.
    """
    boxes = at_least_single(boxes)
    return (generalized_box_iou_loss(boxes, targets.to(boxes.dtype), reduction="none") * weight).sum()
