"""Matching: which ground-truth box, if any, an anchor or a region is trained on.

Source: Faster R-CNN, section 3.1.2 (anchors), and Fast R-CNN, section 2.3 (regions).
Shapes: R anchors or regions, G ground-truth boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detection.boxes import intersection_over_area, iou, row_slices
from detection.structures import Target

__all__ = ["IGNORED", "NEGATIVE", "POSITIVE", "Matcher", "Matches"]

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True, slots=True)
class Matches:
    """One row per anchor or region."""

    states: Tensor  # (R,) int8: POSITIVE, NEGATIVE or IGNORED
    indices: Tensor  # (R,) int64 into the target's rows: the box with the highest IoU; 0 where there is none


@dataclass(frozen=True)
class Matcher:
    """Labels boxes by their highest IoU with the objects that are not ignored.

    Attributes:
        positive_iou: at least this makes a positive.
        negative_iou: below this makes a negative; between the two a box is ignored.
        negative_iou_low: below this a box is no negative either (Fast R-CNN's hard-negative heuristic, 0.1 on VOC).
        match_best: also the best box of every object is positive, ties included, however low its IoU.
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

    def __call__(self, boxes: Tensor, target: Target) -> Matches:
        """Matches of ``boxes`` (R, 4) with ``target``; both in pixels of the same image."""
        best, indices, best_per_object, wanted = self._best(boxes, target)
        states = torch.full_like(best, IGNORED, dtype=torch.int8)
        states[(best >= self.negative_iou_low) & (best < self.negative_iou)] = NEGATIVE
        states[self._covered(boxes, target.boxes[target.ignore]) & (states == NEGATIVE)] = IGNORED
        states[best >= self.positive_iou] = POSITIVE
        if self.match_best:
            states[_reach_best(boxes, target.boxes[wanted], best_per_object)] = POSITIVE
        return Matches(states, indices)

    def _best(self, boxes: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Highest IoU (R,) and its row of the target (R,); highest IoU (G',) per wanted object and their rows (G',)."""
        wanted = (~target.ignore).nonzero().flatten()
        objects = target.boxes[wanted]
        best, indices = boxes.new_zeros(len(boxes)), wanted.new_zeros(len(boxes))
        best_per_object = boxes.new_zeros(len(wanted))
        if len(wanted):
            for rows in row_slices(len(boxes), len(wanted)):
                overlaps = iou(boxes[rows], objects)
                best[rows], columns = overlaps.max(dim=1)
                indices[rows] = wanted[columns]
                best_per_object = torch.maximum(best_per_object, overlaps.amax(dim=0))
        return best, indices, best_per_object, wanted

    def _covered(self, boxes: Tensor, ignored: Tensor) -> Tensor:
        covered = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        if len(ignored):
            for rows in row_slices(len(boxes), len(ignored)):
                covered[rows] = intersection_over_area(boxes[rows], ignored).amax(dim=1) >= self.ignore_overlap
        return covered


def _reach_best(boxes: Tensor, objects: Tensor, best_per_object: Tensor) -> Tensor:
    """Whether (R,) a box has the highest IoU, above zero, of any object."""
    reached = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if len(objects):
        for rows in row_slices(len(boxes), len(objects)):
            overlaps = iou(boxes[rows], objects)
            reached[rows] = ((overlaps == best_per_object) & (overlaps > 0)).any(dim=1)
    return reached
