"""What is kept of the scored boxes of an image: score threshold, NMS within each class, the best of what is left.

Shapes: M boxes, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detection.boxes import iou, scale
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
        vote_iou: box voting: every detection's box becomes the mean, weighted by score, of all boxes of its class that
            overlap it by at least this IoU, those that NMS removed included; None for no voting.

        soft_nms_sigma: lowers scores of overlapping boxes instead of dropping the boxes; None for plain NMS.

    Source: py-faster-rcnn's test settings, which the papers leave open; voting: Gidaris and Komodakis 2015, 3.3;
    Soft-NMS: Bodla et al. 2017, section 3, the Gaussian.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.3
    max_detections: int = 100
    vote_iou: float | None = None
    soft_nms_sigma: float | None = None

    def __call__(self, scored: ScoredBoxes) -> Detections:
        """Detections, best first, in the pixels of ``scored``."""
        sides = scored.boxes[..., 2:] - scored.boxes[..., :2]
        rows, labels = ((scored.scores > self.score_threshold) & (sides > 0).all(dim=-1)).nonzero().unbind(1)
        found = Detections(boxes=scored.boxes[rows, labels], scores=scored.scores[rows, labels], labels=labels)
        if self.soft_nms_sigma is None:
            kept = found[batched_nms(found.boxes, found.scores, labels, self.nms_iou)[: self.max_detections]]
        else:
            kept = _soften(found, self.soft_nms_sigma, self.score_threshold, self.max_detections)
        return kept if self.vote_iou is None else replace(kept, boxes=_vote(kept, found, self.vote_iou))


def _vote(kept: Detections, voters: Detections, vote_iou: float) -> Tensor:
    """The boxes (N, 4) of ``kept``, each the mean of the ``voters`` of its class that agree with it."""
    agrees = (iou(kept.boxes, voters.boxes) >= vote_iou) & (kept.labels[:, None] == voters.labels)
    weights = agrees * voters.scores  # (N, M); every kept box is among its own voters
    return (weights @ voters.boxes) / weights.sum(dim=1, keepdim=True)


def _soften(found: Detections, sigma: float, score_threshold: float, most: int) -> Detections:
    """The ``most`` best of ``found`` with the scores that Soft-NMS leaves them, those above the threshold.

    A score only falls, and not once its box was the best of those that wait: boxes leave in the order of their final
    scores, so that what leaves after the ``most`` first need not be known.
    """
    waiting, chosen = found.scores.clone(), list[int]()
    scores = found.scores.clone()
    for _ in range(min(most, len(found))):
        best = int(waiting.argmax())
        if waiting[best] <= score_threshold:
            break
        chosen.append(best)
        scores[best] = waiting[best]
        overlap = iou(found.boxes[best : best + 1], found.boxes)[0]  # (M,)
        decay = torch.exp(-overlap.square() / sigma)
        waiting = torch.where(found.labels == found.labels[best], waiting * decay, waiting)
        waiting[best] = -1.0  # and times any decay it stays below every threshold
    rows = torch.tensor(sorted(chosen), dtype=torch.int64, device=scores.device)
    softened = replace(found, scores=scores)[rows]
    return softened[softened.scores.argsort(descending=True, stable=True)]


def rescale(detections: Detections, size: tuple[int, int], new_size: tuple[int, int]) -> Detections:
    """``detections`` of an image of ``size`` (height, width), in pixels of the same image at ``new_size``."""
    return replace(detections, boxes=scale(detections.boxes, size, new_size))
