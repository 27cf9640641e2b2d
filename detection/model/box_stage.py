"""The Fast R-CNN stage: scores and refined boxes of proposals.

Source: Fast R-CNN, sections 2.1 to 2.3; "Deep Residual Learning", appendix A (the tail as head).
Shapes: N images, C channels, R regions, K classes, S pooled size, D width of the head's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.boxes import clip
from detection.model.box_coder import BoxCoder
from detection.model.losses import smooth_l1
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.sampler import BalancedSampler
from detection.structures import Proposals, Target

__all__ = ["BoxPredictor", "BoxStage", "RegionHead", "ScoredBoxes"]


class RegionHead(Protocol):
    """What turns pooled regions (R, C, S, S) into vectors (R, D): a backbone's tail, or any such module."""

    out_channels: int  # D

    def __call__(self, regions: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ScoredBoxes:
    """What the stage says of the R proposals of one image, before anything is thrown away."""

    scores: Tensor  # (R, K) probabilities; the background's is what is left to 1
    boxes: Tensor  # (R, K, 4) clipped, pixels of the resized image


class BoxPredictor(nn.Module):
    """The two sibling layers: K + 1 class logits (the last is the background) and K x 4 box deltas."""

    def __init__(self, in_channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(in_channels, num_classes + 1)
        self.deltas = nn.Linear(in_channels, num_classes * 4)
        nn.init.normal_(self.classes.weight, std=0.01)  # Fast R-CNN, section 2.3
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K, 4), float32, of ``vectors`` (R, D)."""
        return self.classes(vectors).float(), self.deltas(vectors).unflatten(1, (-1, 4)).float()


class BoxStage(nn.Module):
    """Pool, head, predict; given targets, sample regions and return losses.

    Args:
        pooler: regions of the feature map.
        head: the backbone's tail.
        predictor: the two sibling layers.
        matcher, sampler, coder: how regions are labelled, drawn and encoded.
        smooth_l1_beta, box_loss_weight: of the box loss.
        context: append the vector of the whole image, pooled as one region, to every region's; the predictor then takes
            2 D ("Deep Residual Learning", appendix B, global context).
    """

    def __init__(
        self,
        pooler: RegionPooler,
        head: RegionHead,
        predictor: BoxPredictor,
        *,
        matcher: Matcher,
        sampler: BalancedSampler,
        coder: BoxCoder,
        smooth_l1_beta: float = 1.0,
        box_loss_weight: float = 1.0,
        context: bool = False,
    ) -> None:
        super().__init__()
        self.pooler, self.head, self.predictor, self.context = pooler, head, predictor, context
        self.matcher, self.sampler, self.coder = matcher, sampler, coder
        self.smooth_l1_beta, self.box_loss_weight = smooth_l1_beta, box_loss_weight

    @property
    def num_classes(self) -> int:
        """K."""
        return self.predictor.classes.out_features - 1

    def forward(
        self, feature: Tensor, proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[ScoredBoxes]:
        """Scores and boxes of each image's ``proposals`` from ``feature`` (N, C, H, W)."""
        boxes = [image.boxes for image in proposals]
        return self.predict(self.vectors(feature, boxes, sizes), boxes, sizes)

    def vectors(self, feature: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(R, D) what the head says of the regions ``boxes`` (R_i, 4) of each image; (R, 2 D) with context."""
        if not self.context:
            return self.head(self.pooler(feature, boxes))
        whole = [image.new_tensor([[0, 0, width, height]]) for image, (height, width) in zip(boxes, sizes, strict=True)]
        joined = [torch.cat([image, context]) for image, context in zip(boxes, whole, strict=True)]
        per_image = self.head(self.pooler(feature, joined)).split([len(image) for image in joined])
        pairs = [torch.cat([image[:-1], image[-1:].expand(len(image) - 1, -1)], dim=1) for image in per_image]
        return torch.cat(pairs)

    def predict(self, vectors: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[ScoredBoxes]:
        """Scores and boxes from the ``vectors`` of the regions ``boxes`` (R_i, 4) of each image."""
        logits, deltas = self.predictor(vectors)
        counts = [len(image) for image in boxes]
        scored = []
        for image, image_logits, image_deltas, size in zip(
            boxes, logits.split(counts), deltas.split(counts), sizes, strict=True
        ):
            decoded = self.coder.decode(image_deltas, image[:, None])  # (R, K, 4)
            scored.append(ScoredBoxes(image_logits.softmax(dim=1)[:, :-1], clip(decoded, size)))
        return scored

    def losses(
        self,
        feature: Tensor,
        proposals: Sequence[Proposals],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """The losses ``box_class`` and ``box_regression`` of regions drawn from proposals and ground truth."""
        samples = [self._sample(image, target) for image, target in zip(proposals, targets, strict=True)]
        logits, deltas = self.predictor(self.vectors(feature, [boxes for boxes, _, _ in samples], sizes))
        labels = torch.cat([labels for _, labels, _ in samples])
        goals = torch.cat([goals for _, _, goals in samples])
        positives = (labels < self.num_classes).nonzero().flatten()
        scale = 1 / max(len(labels), 1)
        return {
            "box_class": F.cross_entropy(logits, labels, reduction="sum") * scale,
            "box_regression": smooth_l1(deltas[positives, labels[positives]], goals, self.smooth_l1_beta)
            * (scale * self.box_loss_weight),
        }

    @torch.no_grad()
    def _sample(self, proposals: Proposals, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Regions (R, 4), positives first; labels (R,), K for the background; deltas (P, 4) of the positives."""
        wanted = ~target.ignore
        boxes = torch.cat([proposals.boxes, target.boxes[wanted]])  # objects too, as py-faster-rcnn
        matches = self.matcher(boxes, target)
        positives, negatives = self.sampler(matches.states)
        objects = matches.indices[positives]
        labels = torch.cat([target.labels[objects], torch.full_like(negatives, self.num_classes)])
        goals = self.coder.encode(target.boxes[objects], boxes[positives])
        return boxes[torch.cat([positives, negatives])], labels, goals
