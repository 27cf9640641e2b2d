"""Matching: assigns a ground-truth box, or none, to each anchor or region.

Source: Faster R-CNN, section 3.1.2 (anchors), and Fast R-CNN, section 2.3 (regions).
Shapes: N images, M anchors or regions, G ground-truth boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detection.boxes import areas, intersection
from detection.padded import Targets

__all__ = ["Matcher", "Matches"]

# Boxes whose IoU with an object is the best up to this factor tie. Rounding alone makes 1e-6: equal anchors at other
# places of the image differ by that, and the best of them would be random.
TIE = 1 - 1e-4

# The matrix of objects with boxes is computed for a part of the objects at a time, with at most this many elements
# (256 MiB of float32).
MAX_ELEMENTS = 1 << 26


@dataclass(frozen=True, slots=True)
class Matches:
    """One row per anchor or region of every image; what is neither positive nor negative is ignored."""

    positive: Tensor  # (N, M) bool
    negative: Tensor  # (N, M) bool
    indices: Tensor  # (N, M) int64: the image's object with the highest IoU; any where there is none


@dataclass(frozen=True)
class Matcher:
    """Labels boxes by their highest IoU with the objects that are not ignored.

    Attributes:
        positive_iou: at least this makes a positive.
        negative_iou: below this makes a negative; between the two a box is ignored.
        negative_iou_low: below this a box is no negative either (Fast R-CNN's hard-negative heuristic, 0.1 on VOC).
        match_best: the best box of every object is positive too, ties included, however low its IoU.
        ignore_overlap: a box with this share of its area in an ignored object is no negative.
    """

    positive_iou: float
    negative_iou: float
    negative_iou_low: float = 0.0
    match_best: bool = False
    ignore_overlap: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou_low <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                "a matcher needs 0 <= negative_iou_low <= negative_iou <= positive_iou <= 1, got "
                f"{self.negative_iou_low}, {self.negative_iou}, {self.positive_iou}"
            )

    def __call__(self, boxes: Tensor, targets: Targets, usable: Tensor) -> Matches:
        """Returns the matches of ``boxes`` with ``targets``, in pixels of the same images.

        Args:
            boxes: (N, M, 4), or (1, M, 4) for the same boxes in every image.
            targets: of the N images.
            usable: (N, M) bool; the others are ignored, and are not the best of any object.
        """
        step = max(1, MAX_ELEMENTS // max(1, usable.numel()))
        starts = range(0, targets.boxes.shape[1], step)
        best, indices, special, covered = self._match(boxes, targets, usable, slice(0, step))
        for start in starts[1:]:
            highest, rows, reached, hidden = self._match(boxes, targets, usable, slice(start, start + step))
            indices = torch.where(highest > best, rows + start, indices)
            best, special, covered = torch.maximum(best, highest), special | reached, covered | hidden
        positive = ((best >= self.positive_iou) | special) & usable
        negative = (best < self.negative_iou) & ~(covered | positive) & usable
        if self.negative_iou_low > 0:
            negative = negative & (best >= self.negative_iou_low)
        return Matches(positive, negative, indices)

    def _match(
        self, boxes: Tensor, targets: Targets, usable: Tensor, part: slice
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the best IoU, its row in ``part``, and whether a box is an object's best or in an ignored one."""
        objects, area, tiny = targets.boxes[:, part], areas(boxes)[:, None], torch.finfo(boxes.dtype).tiny
        common = intersection(objects, boxes)  # (N, g, M)
        hidden = ((common >= area * self.ignore_overlap) & targets.ignore[:, part, None]).any(dim=1)
        union = (areas(objects)[..., None] + area).sub_(common).clamp_(min=tiny)
        overlaps = common.div_(union).mul_(targets.wanted[:, part, None])
        best, rows = overlaps.max(dim=1)
        if not self.match_best or not usable.shape[1]:
            return best, rows, torch.zeros_like(usable), hidden
        overlaps = overlaps * usable[:, None]
        limits = (overlaps.amax(dim=2, keepdim=True) * TIE).clamp(min=tiny)
        return best, rows, (overlaps >= limits).any(dim=1), hidden
