"""The Fast R-CNN stage: scores and refined boxes of proposals.

Source: Fast R-CNN, sections 2.1 to 2.3; "Deep Residual Learning", appendix A (the tail as head).
Shapes: N images, C channels, P proposals, R regions that are trained on, K classes, S pooled size, D width of the
head's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import Tail
from detection.boxes import clip
from detection.model.box_coder import BoxCoder
from detection.model.class_rows import ClassRows
from detection.model.losses import giou, smooth_l1
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.precision import at_least_single
from detection.model.sampler import BalancedSampler
from detection.model.select import gather_rows, hash32, waiting_is_free
from detection.padded import Regions, Targets

__all__ = ["BoxPredictor", "BoxStage", "RegionHead", "RegionOutput", "RegionSample", "ScoredBoxes", "image_rows"]

REGIONS = 2  # stream of random numbers, see ``hash32``
OBJECTS = 1 << 24  # number of an image's first object among the candidates, after all proposals


class RegionHead(Protocol):
    """A module from pooled regions (R, C, S, S) to vectors (R, D): such as a backbone's tail."""

    out_channels: int  # D

    def __call__(self, regions: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ScoredBoxes:
    """The stage's output for the proposals of every image, before postprocessing."""

    scores: Tensor  # (N, P, K) probabilities; the background has the rest to 1
    boxes: Tensor  # (N, P, K or 1, 4) clipped, pixels of the resized image; 1: the same box for every class
    valid: Tensor  # (N, P) bool


@dataclass(frozen=True, slots=True)
class RegionSample:
    """The regions of every image that are trained on."""

    boxes: Tensor  # (N, R, 4)
    labels: Tensor  # (N, R) int64, K for the background
    objects: Tensor  # (N, R) int64, the row of the target that a positive belongs to
    goals: Tensor  # (N, R, 4) that object's box
    positive: Tensor  # (N, R) bool
    valid: Tensor  # (N, R) bool; the others have no part in a loss

    def first(self, count: int) -> RegionSample:
        """Returns the first ``count`` columns."""
        return RegionSample(*(getattr(self, field.name)[:, :count] for field in fields(self)))

    def positives(self, most: int) -> RegionSample:
        """Returns the first columns, which hold all positive regions: ``most``, or only as many as the images have."""
        most = max(1, int(self.positive.sum(dim=1).max())) if waiting_is_free(self.positive) else most
        return self.first(most)


@dataclass(frozen=True, slots=True)
class RegionOutput:
    """The stage's output for the regions that it is trained on."""

    stage: BoxStage
    sample: RegionSample
    logits: Tensor  # (N, R, K + 1)
    deltas: Tensor  # (N, R, K or 1, 4)
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
        """Returns logits (..., K + 1) and deltas (..., K or 1, 4), in float32 or float64, of ``vectors`` (..., D)."""
        return at_least_single(self.classes(vectors)), at_least_single(self.deltas(vectors).unflatten(-1, (-1, 4)))


class BoxStage(nn.Module):
    """Pools regions, runs the head and predicts; given targets, samples regions and returns losses.

    Args:
        pooler: pools regions from the feature maps.
        head: the backbone's tail, or layers of its own.
        predictor: the two sibling layers.
        matcher, sampler, coder: label, sample and encode regions.
        smooth_l1_beta, box_loss_weight: beta and weight of the box loss.
        use_giou: use the generalised IoU loss on boxes instead of smooth L1 on deltas.
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

    @property
    def most_positives(self) -> int:
        """The most regions of an image that can be sampled as positive; they come first."""
        return self.sampler.most_positives

    def forward(self, features: Sequence[Tensor], proposals: Regions, sizes: Tensor) -> ScoredBoxes:
        """Returns scores and boxes of ``proposals`` from ``features`` (N, C, H, W) of images of ``sizes`` (N, 2)."""
        logits, deltas = self.predictor(self.batch_vectors(features, proposals.boxes, sizes))
        return self.decode(logits, deltas, proposals.boxes, proposals.valid, sizes)

    def batch_vectors(self, features: Sequence[Tensor], boxes: Tensor, sizes: Tensor) -> Tensor:
        """Returns the head's vectors (N, P, D) of the regions ``boxes`` (N, P, 4); (N, P, 2 D) with context."""
        images = image_rows(boxes)
        return self.vectors(features, boxes.flatten(0, 1), images, sizes).unflatten(0, boxes.shape[:2])

    def vectors(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor, sizes: Tensor) -> Tensor:
        """Returns the head's vectors (R, D) of regions ``boxes`` (R, 4) of the ``images`` (R,); (R, 2 D) with context.

        ``sizes`` (N, 2) are the heights and widths of all N images.
        """
        if not self.context:
            return self.head(self.pooler(features, boxes, images))
        corners = sizes.flip(1).to(boxes.dtype)  # (N, 2)
        whole = torch.cat([torch.zeros_like(corners), corners], dim=1)
        rows = torch.cat([images, torch.arange(len(sizes), device=images.device)])
        regions, context = self.head(self.pooler(features, torch.cat([boxes, whole]), rows)).split(
            [len(boxes), len(sizes)]
        )
        return torch.cat([regions, context[images]], dim=1)

    def decode(self, logits: Tensor, deltas: Tensor, boxes: Tensor, valid: Tensor, sizes: Tensor) -> ScoredBoxes:
        """Returns scores and boxes from the predictor's ``logits`` (N, P, K + 1) and ``deltas`` (N, P, K or 1, 4)."""
        decoded = clip(self.coder.decode(deltas, boxes[:, :, None]), sizes)
        return ScoredBoxes(logits.softmax(dim=-1)[..., :-1], decoded, valid)

    @torch.no_grad()
    def draw(self, proposals: Regions, targets: Targets, seeds: Tensor) -> RegionSample:
        """Samples the training regions of each image from its proposals and its objects, positives first.

        ``seeds`` (N,) are the random seeds of the images.
        """
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)  # objects too, as py-faster-rcnn
        valid = torch.cat([proposals.valid, targets.wanted], dim=1)
        matches = self.matcher(boxes, targets, valid)
        # An object's number does not depend on how many proposals the batch is padded to.
        own = torch.arange(proposals.boxes.shape[1], device=boxes.device)
        places = torch.cat([own, torch.arange(OBJECTS, OBJECTS + targets.boxes.shape[1], device=boxes.device)])
        drawn = self.sampler(matches.positive, matches.negative, hash32(seeds, places, REGIONS))
        sample = self._labelled(
            gather_rows(boxes, drawn.columns),
            targets,
            matches.indices.gather(1, drawn.columns),
            drawn.positive,
            drawn.valid,
        )
        if not waiting_is_free(valid):
            return sample
        return sample.first(max(1, int(sample.valid.sum(dim=1).max())))

    @torch.no_grad()
    def label(self, boxes: Tensor, valid: Tensor, targets: Targets) -> RegionSample:
        """Labels all of ``boxes`` (N, R, 4) that are ``valid`` (N, R) and not ignored, without sampling."""
        matches = self.matcher(boxes, targets, valid)
        used = matches.positive | matches.negative
        return self._labelled(boxes, targets, matches.indices, matches.positive, used)

    def outputs(
        self, features: Sequence[Tensor], proposals: Regions, targets: Targets, sizes: Tensor, seeds: Tensor
    ) -> Iterator[RegionOutput]:
        """Yields the stage's output for the training regions sampled from ``proposals``."""
        sample = self.draw(proposals, targets, seeds)
        yield RegionOutput(self, sample, *self.predictor(self.batch_vectors(features, sample.boxes, sizes)))

    def losses(self, output: RegionOutput) -> dict[str, Tensor]:
        """Returns the losses ``box_class`` and ``box_regression`` of its own ``output``."""
        sample, agnostic = output.sample, output.deltas.shape[2] == 1
        rows = torch.zeros_like(sample.labels) if agnostic else sample.labels.clamp(max=self.num_classes - 1)
        deltas = output.deltas.gather(2, rows[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)  # (N, R, 4)
        # Regions without an object regress to themselves, with the weight zero; padding is empty, which has no deltas.
        regions = torch.where(sample.positive[..., None], sample.boxes, sample.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        goals = torch.where(sample.positive[..., None], sample.goals, regions)
        if self.use_giou:
            box = giou(self.coder.decode(deltas, regions), goals, weight=sample.positive)
        else:
            box = smooth_l1(deltas, self.coder.encode(goals, regions), self.smooth_l1_beta, weight=sample.positive)
        scale = 1 / sample.valid.sum().clamp(min=1)
        entropy = F.cross_entropy(output.logits.flatten(0, 1), sample.labels.flatten(), reduction="none")
        return {
            f"box_class{output.suffix}": (entropy * sample.valid.flatten()).sum() * scale,
            f"box_regression{output.suffix}": box * (scale * self.box_loss_weight),
        }

    def _labelled(
        self, boxes: Tensor, targets: Targets, objects: Tensor, positive: Tensor, valid: Tensor
    ) -> RegionSample:
        labels = torch.where(positive, targets.labels.gather(1, objects), self.num_classes)
        return RegionSample(boxes, labels, objects, gather_rows(targets.boxes, objects), positive, valid)


def image_rows(boxes: Tensor) -> Tensor:
    """Returns the image (N * R,) int64 of each of ``boxes`` (N, R, 4)."""
    images, regions = boxes.shape[:2]
    return torch.arange(images * regions, device=boxes.device) // regions
