"""The Fast R-CNN stage: scores and refined boxes of proposals.

Source: Fast R-CNN, sections 2.1 to 2.3; "Deep Residual Learning", appendix A (the tail as head).
Shapes: N images, C channels, R regions, P of them positive, K classes, S pooled size, D width of the head's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import Tail
from detection.boxes import clip
from detection.model.box_coder import BoxCoder
from detection.model.class_rows import ClassRows
from detection.model.losses import giou, smooth_l1
from detection.model.matcher import NEGATIVE, POSITIVE, Matcher
from detection.model.pooler import RegionPooler
from detection.model.precision import at_least_single
from detection.model.sampler import BalancedSampler
from detection.structures import Proposals, Target

__all__ = ["BoxPredictor", "BoxStage", "RegionHead", "RegionOutput", "RegionSample", "ScoredBoxes"]


class RegionHead(Protocol):
    """What turns pooled regions (R, C, S, S) into vectors (R, D): a backbone's tail, or any such module."""

    out_channels: int  # D

    def __call__(self, regions: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ScoredBoxes:
    """What the stage says of the R proposals of one image, before anything is thrown away."""

    scores: Tensor  # (R, K) probabilities; the background's is what is left to 1
    boxes: Tensor  # (R, K, 4) clipped, pixels of the resized image


@dataclass(frozen=True, slots=True)
class RegionSample:
    """The R regions of one image that are trained on, the P positives first."""

    boxes: Tensor  # (R, 4)
    labels: Tensor  # (R,) int64, K for the background
    objects: Tensor  # (P,) int64, the row of the target that a positive belongs to
    goals: Tensor  # (P, 4) that object's box


@dataclass(frozen=True, slots=True)
class RegionOutput:
    """What a stage says of the regions that it is trained on, R of all images together."""

    stage: BoxStage
    samples: Sequence[RegionSample]
    logits: Tensor  # (R, K + 1)
    deltas: Tensor  # (R, K or 1, 4)
    suffix: str = ""  # of the names of its losses, where there are several stages


class BoxPredictor(nn.Module):
    """The two sibling layers: K + 1 class logits (the last is the background) and K x 4 box deltas.

    With ``class_agnostic`` there is one set of deltas for all classes.
    """

    def __init__(self, in_channels: int, *, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.class_rows = {"classes": ClassRows(1, background=True)} | (
            {} if class_agnostic else {"deltas": ClassRows(4)}
        )
        self.classes = nn.Linear(in_channels, num_classes + 1)
        self.deltas = nn.Linear(in_channels, 4 if class_agnostic else num_classes * 4)
        nn.init.normal_(self.classes.weight, std=0.01)  # Fast R-CNN, section 2.3
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K or 1, 4), in float32 or float64, of ``vectors`` (R, D)."""
        return at_least_single(self.classes(vectors)), at_least_single(self.deltas(vectors).unflatten(1, (-1, 4)))


class BoxStage(nn.Module):
    """Pool, head, predict; given targets, sample regions and return losses.

    Args:
        pooler: regions of the feature maps.
        head: the backbone's tail, or layers of its own.
        predictor: the two sibling layers.
        matcher, sampler, coder: how regions are labelled, drawn and encoded.
        smooth_l1_beta, box_loss_weight: of the box loss.
        use_giou: the box loss is the generalised IoU's, on boxes, instead of smooth L1's on deltas.
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
        use_giou: bool = False,
        context: bool = False,
    ) -> None:
        super().__init__()
        self.pooler, self.head, self.predictor, self.context = pooler, head, predictor, context
        self.matcher, self.sampler, self.coder = matcher, sampler, coder
        self.smooth_l1_beta, self.box_loss_weight, self.use_giou = smooth_l1_beta, box_loss_weight, use_giou

    @property
    def num_classes(self) -> int:
        """K."""
        return self.predictor.classes.out_features - 1

    def describe(self) -> str:
        """Returns its head and the size of the regions that it sees."""
        return f"{type(self.head).__name__} on regions of {self.pooler.size} x {self.pooler.size}"

    def shared_body(self) -> Callable[[Tensor], Tensor] | None:
        """Returns the tail up to its last maps, which a mask stage shares; None for a head of its own."""
        return self.head.maps if isinstance(self.head, Tail) else None

    def forward(
        self, features: Sequence[Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[ScoredBoxes]:
        """Scores and boxes of each image's ``proposals`` from the levels ``features`` (N, C, H, W)."""
        boxes = [image.boxes for image in proposals]
        return self.predict(self.vectors(features, boxes, sizes), boxes, sizes)

    def vectors(self, features: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(R, D) what the head says of the regions ``boxes`` (R_i, 4) of each image; (R, 2 D) with context."""
        if not self.context:
            return self.head(self.pooler(features, boxes))
        whole = [image.new_tensor([[0, 0, width, height]]) for image, (height, width) in zip(boxes, sizes, strict=True)]
        joined = [torch.cat([image, context]) for image, context in zip(boxes, whole, strict=True)]
        per_image = self.head(self.pooler(features, joined)).split([len(image) for image in joined])
        pairs = [torch.cat([image[:-1], image[-1:].expand(len(image) - 1, -1)], dim=1) for image in per_image]
        return torch.cat(pairs)

    def predict(self, vectors: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[ScoredBoxes]:
        """Scores and boxes from the ``vectors`` of the regions ``boxes`` (R_i, 4) of each image."""
        logits, deltas = self.predictor(vectors)
        return self.decode(logits, deltas, boxes, sizes)

    def decode(
        self, logits: Tensor, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[ScoredBoxes]:
        """Scores and boxes from the predictor's ``logits`` (R, K + 1) and ``deltas`` (R, K or 1, 4)."""
        counts = [len(image) for image in boxes]
        scored = []
        for image, image_logits, image_deltas, size in zip(
            boxes, logits.split(counts), deltas.split(counts), sizes, strict=True
        ):
            decoded = clip(self.coder.decode(image_deltas, image[:, None]), size)  # (R, K or 1, 4)
            scores = image_logits.softmax(dim=1)[:, :-1]
            scored.append(ScoredBoxes(scores, decoded.expand(-1, scores.shape[1], -1)))
        return scored

    @torch.no_grad()
    def sample(
        self,
        proposals: Sequence[Proposals],
        targets: Sequence[Target],
        draws: Sequence[torch.Generator | None] | None = None,
    ) -> list[RegionSample]:
        """The regions of each image to train on, drawn from its proposals and its objects.

        ``draws`` has the source of each image's random numbers; None: torch's own.
        """
        samples = []
        for image, target, draw in zip(proposals, targets, draws or [None] * len(targets), strict=True):
            boxes = torch.cat([image.boxes, target.boxes[~target.ignore]])  # objects too, as py-faster-rcnn
            matches = self.matcher(boxes, target)
            positives, negatives = self.sampler(matches.states, draw)
            samples.append(self._labelled(boxes, target, positives, negatives, matches.indices))
        return samples

    @torch.no_grad()
    def label(self, boxes: Sequence[Tensor], targets: Sequence[Target]) -> list[RegionSample]:
        """All of ``boxes`` (R_i, 4) of each image that are not ignored, as they are trained on without drawing."""
        samples = []
        for image, target in zip(boxes, targets, strict=True):
            matches = self.matcher(image, target)
            positives = (matches.states == POSITIVE).nonzero().flatten()
            negatives = (matches.states == NEGATIVE).nonzero().flatten()
            samples.append(self._labelled(image, target, positives, negatives, matches.indices))
        return samples

    def outputs(
        self,
        features: Sequence[Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        draws: Sequence[torch.Generator | None] | None = None,
    ) -> Iterator[RegionOutput]:
        """Yields what the stage says of the regions that are drawn from ``proposals`` for training."""
        samples = self.sample(proposals, targets, draws)
        logits, deltas = self.predictor(self.vectors(features, [sample.boxes for sample in samples], sizes))
        yield RegionOutput(self, samples, logits, deltas)

    def losses(self, output: RegionOutput) -> dict[str, Tensor]:
        """Returns the losses ``box_class`` and ``box_regression`` of its own ``output``."""
        logits, deltas, samples = output.logits, output.deltas, output.samples
        labels = torch.cat([sample.labels for sample in samples])
        goals = torch.cat([sample.goals for sample in samples])
        positives = (labels < self.num_classes).nonzero().flatten()
        chosen = deltas[positives, labels[positives] if deltas.shape[1] > 1 else 0]  # (P, 4)
        regions = torch.cat([sample.boxes for sample in samples])[positives]
        if self.use_giou:
            box = giou(self.coder.decode(chosen, regions), goals)
        else:
            box = smooth_l1(chosen, self.coder.encode(goals, regions), self.smooth_l1_beta)
        scale = 1 / max(len(labels), 1)
        return {
            f"box_class{output.suffix}": F.cross_entropy(logits, labels, reduction="sum") * scale,
            f"box_regression{output.suffix}": box * (scale * self.box_loss_weight),
        }

    def _labelled(
        self, boxes: Tensor, target: Target, positives: Tensor, negatives: Tensor, matched: Tensor
    ) -> RegionSample:
        objects = matched[positives]
        labels = torch.cat([target.labels[objects], torch.full_like(negatives, self.num_classes)])
        return RegionSample(boxes[torch.cat([positives, negatives])], labels, objects, target.boxes[objects])
