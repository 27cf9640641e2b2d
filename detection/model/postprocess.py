"""What is kept of the scored boxes of an image: score threshold, NMS within each class, the best of what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torchvision.ops import batched_nms

from detection.boxes import scale
from detection.model.box_stage import ScoredBoxes
from detection.structures import Detections

__all__ = ["Postprocessor", "rescale"]


@dataclass(frozen=True)
class Postprocessor:
    """Detections of one image from its scored boxes.

    Attributes:
        score_threshold: probability that a detection must exceed.
        nms_iou: IoU above which the worse of two boxes of a class goes.
        max_detections: per image.

    Source: py-faster-rcnn's test settings; the papers leave the threshold and the number open.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.3
    max_detections: int = 100

    def __call__(self, scored: ScoredBoxes) -> Detections:
        """Detections, best first, in the pixels of ``scored``."""
        sides = scored.boxes[..., 2:] - scored.boxes[..., :2]
        rows, labels = ((scored.scores > self.score_threshold) & (sides > 0).all(dim=-1)).nonzero().unbind(1)
        boxes, scores = scored.boxes[rows, labels], scored.scores[rows, labels]
        kept = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


def rescale(detections: Detections, size: tuple[int, int], new_size: tuple[int, int]) -> Detections:
    """``detections`` of an image of ``size`` (height, width), in pixels of the same image at ``new_size``."""
    return replace(detections, boxes=scale(detections.boxes, size, new_size).to(torch.float32))
