"""Postprocessing of scored boxes: score threshold, NMS within each class, the best detections.

Shapes: N images, P proposals, K classes, M candidates, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detection.boxes import iou, not_empty, scale
from detection.model.box_stage import ScoredBoxes
from detection.model.select import gather_rows, nms, select_top, waiting_is_free
from detection.padded import Found
from detection.structures import Detections

__all__ = ["Postprocessor", "rescale"]


@dataclass(frozen=True)
class Postprocessor:
    """Detections from scored boxes.

    Attributes:
        score_threshold: probability that a detection must exceed.
        nms_iou: IoU above which the worse of two boxes of a class is removed.
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

    def __call__(self, scored: ScoredBoxes) -> Found:
        """Returns detections of each image, best first, in the pixels of ``scored``."""
        return self.choose(self._candidates(scored))

    def choose(self, candidates: Found) -> Found:
        """Returns each image's detections, best first, among the ``candidates`` that are ``valid``."""
        if self.soft_nms_sigma is None:
            boxes, scores, labels = candidates.boxes, candidates.scores, candidates.labels
            kept = nms(boxes, scores, labels, self.nms_iou, self.max_detections)
        else:
            kept = _soften(candidates, self.soft_nms_sigma, self.score_threshold, self.max_detections)
        columns, scores = select_top(kept, self.max_detections)
        found = Found(
            boxes=gather_rows(candidates.boxes, columns),
            valid=scores > -torch.inf,
            scores=scores,
            labels=candidates.labels.gather(1, columns),
        )
        return found if self.vote_iou is None else replace(found, boxes=_vote(found, candidates, self.vote_iou))

    def _candidates(self, scored: ScoredBoxes) -> Found:
        """Returns the scored boxes of all classes above the threshold that are not empty, region by region.

        Ties are then broken by position, independently of the batch: regions over the same cells often have equal
        scores.

        Scores of a region add up to 1 at most, so no more than 1 / threshold of its classes are above it.
        """
        _, proposals, classes = scored.scores.shape
        scores = self._usable(scored).flatten(1)
        most = proposals * min(classes, max(1, int(1 / max(self.score_threshold, 1e-9))))
        if waiting_is_free(scores):
            most = min(most, max(1, int((scores > -torch.inf).sum(dim=1).max())))
        columns = scores.topk(most, dim=1).indices.sort(dim=1).values
        scores, regions, labels = scores.gather(1, columns), columns // classes, columns % classes
        boxes = gather_rows(scored.boxes, regions)  # (N, M, K or 1, 4)
        if boxes.shape[2] > 1:
            boxes = boxes.gather(2, labels[..., None, None].expand(-1, -1, 1, 4))
        return Found(boxes=boxes[:, :, 0], valid=scores > -torch.inf, scores=scores, labels=labels)

    def _usable(self, scored: ScoredBoxes) -> Tensor:
        """Returns the scores (N, P, K), -inf of boxes that are padding, empty or not above the threshold."""
        usable = (scored.scores > self.score_threshold) & not_empty(scored.boxes) & scored.valid[..., None]
        return scored.scores.masked_fill(~usable, -torch.inf)


def _vote(found: Found, voters: Found, vote_iou: float) -> Tensor:
    """Returns the boxes (N, D, 4) of ``found``, each the mean of the ``voters`` of its class that agree with it."""
    agrees = (iou(found.boxes, voters.boxes) >= vote_iou) & (found.labels[:, :, None] == voters.labels[:, None])
    weights = agrees * voters.scores.clamp(min=0)[:, None]  # (N, D, M); every detection is among its own voters
    return (weights @ voters.boxes) / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _soften(candidates: Found, sigma: float, score_threshold: float, most: int) -> Tensor:
    """Returns the scores (N, M) that Soft-NMS leaves the ``most`` best of ``candidates``; -inf for the others.

    Scores only fall, and a box's score is final once it is the best of the remaining ones.  Boxes are thus taken in the
    order of their final scores, and those after the first ``most`` need not be computed.
    """
    waiting = candidates.scores
    final = torch.full_like(waiting, -torch.inf)
    for _ in range(min(most, waiting.shape[1])):
        score, best = waiting.max(dim=1, keepdim=True)  # (N, 1)
        # An image whose candidates are all taken has -inf for its best, whose place may be that of one taken before.
        own = torch.where(score > score_threshold, score, final.gather(1, best))
        final = final.scatter(1, best, own)
        overlap = iou(gather_rows(candidates.boxes, best), candidates.boxes)[:, 0]  # (N, M)
        same = (candidates.labels == candidates.labels.gather(1, best)) & (waiting > -torch.inf)  # 0 * -inf is NaN
        waiting = torch.where(same, waiting * torch.exp(-overlap.square() / sigma), waiting).scatter(
            1, best, -torch.inf
        )
    return final


def rescale(detections: Detections, size: tuple[int, int], new_size: tuple[int, int]) -> Detections:
    """Returns ``detections`` of an image of ``size`` (height, width), in pixels of the same image at ``new_size``."""
    boxes, keypoints = scale(detections.boxes, size, new_size), detections.keypoints
    if keypoints is not None:
        keypoints = keypoints * keypoints.new_tensor([new_size[1] / size[1], new_size[0] / size[0], 1.0])
    return replace(detections, boxes=boxes, keypoints=keypoints)
