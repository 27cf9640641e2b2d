"""Loss formulas; the RPN and the stages decide which rows enter them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.boxes import areas
from detection.model.precision import at_least_single
from detection.structures import VOID

__all__ = ["focal", "giou", "pixel_cross_entropy", "smooth_l1"]

TINY = 1e-7  # square pixels; torchvision's loss, which waits for a GPU at its boolean indices, adds as much


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float, weight: Tensor) -> Tensor:
    """Returns the sum over all elements of 0.5 x^2 / beta for |x| < beta, else |x| - beta / 2; beta 0 is L1.

    It is a scalar of the precision of ``deltas``, at least float32.

    Args:
        deltas: (..., 4).
        targets: (..., 4), finite.
        beta: as above.
        weight: (...) weight of each row; 0 leaves it out.

    Source: Fast R-CNN, equation 3; py-faster-rcnn's sigma is 1 / sqrt(beta).
    """
    deltas = at_least_single(deltas)
    return (F.smooth_l1_loss(deltas, targets.to(deltas.dtype), beta=beta, reduction="none") * weight[..., None]).sum()


def giou(boxes: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Returns the sum over ``boxes`` (..., 4) of 1 - generalised IoU with ``targets`` (..., 4), 0 to 2 each; a scalar.

    ``weight`` (...) is that of each row; 0 leaves it out.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 2.
    """
    boxes = at_least_single(boxes)
    targets = targets.to(boxes.dtype)
    inner = torch.minimum(boxes[..., 2:], targets[..., 2:]) - torch.maximum(boxes[..., :2], targets[..., :2])
    outer = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    width, height = inner.clamp(min=0).unbind(-1)
    common, hull = width * height, outer[..., 0] * outer[..., 1]
    union = areas(boxes) + areas(targets) - common
    return ((1 - common / (union + TINY) + (hull - union) / (hull + TINY)) * weight).sum()


def focal(logits: Tensor, labels: Tensor, positive: Tensor, weight: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Returns the sum over rows and classes of -alpha_t (1 - p_t)^gamma log(p_t), p of sigmoids; a scalar.

    No target as large as the logits is made: all classes count as background, then the true class of each positive
    row is corrected.

    Args:
        logits: (..., K).
        labels: (...) int64 0..K-1, of the positive rows.
        positive: (...) bool; other rows are of no class.
        weight: (...) weight of each row; 0 leaves it out.
        alpha: weight of the true class, 0 to 1; that of the others is 1 - alpha.
        gamma: 0 is cross-entropy.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5.
    """
    logits = at_least_single(logits)
    own = logits.gather(-1, labels[..., None])[..., 0]
    missed = alpha * (-own).sigmoid().pow(gamma) * F.softplus(-own)
    rows = _background(logits, alpha, gamma).sum(dim=-1) + (missed - _background(own, alpha, gamma)) * positive
    return (rows * weight).sum()


def pixel_cross_entropy(logits: Tensor, label_maps: Tensor) -> Tensor:
    """Returns the mean cross-entropy over the labelled pixels of all images, a scalar; 0 where no pixel is labelled.

    Args:
        logits: (N, K, H, W).
        label_maps: (N, H, W) uint8, VOID where a pixel has no label.
    """
    labels = label_maps.long()
    # Unreduced: the loss's own sum on a GPU has no fixed order.
    losses = F.cross_entropy(at_least_single(logits), labels, ignore_index=VOID, reduction="none")
    return losses.sum() / (labels != VOID).sum().clamp(min=1)


def _background(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Returns the focal loss (...) of ``logits`` (...) of classes other than a row's own."""
    return (1 - alpha) * logits.sigmoid().pow(gamma) * F.softplus(logits)
