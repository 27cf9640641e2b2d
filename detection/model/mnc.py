"""Multi-task Network Cascades: boxes, then their masks, then the categories of both, and once more on better boxes.

docs/mnc.md lists the differences from the paper: regions are pooled by RoIAlign, so no gradient reaches a box.

Source: Dai, He and Sun 2016, "Instance-aware Semantic Segmentation via Multi-task Network Cascades", sections 3 and 4.
Shapes: N images, C channels, P proposals, R regions of all images, D detections, K classes, S side of the pooled
regions, M of the masks, V voters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import Backbone
from detection.boxes import iou, not_empty
from detection.mask_geometry import MaskGeometry, crop_and_resize
from detection.model.architecture import Architecture
from detection.model.box_coder import BoxCoder
from detection.model.box_stage import (
    BoxPredictor,
    BoxStage,
    RegionHead,
    RegionOutput,
    ScoredBoxes,
    image_rows,
)
from detection.model.matcher import Matcher
from detection.model.points import grid_points, on_image
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.model.precision import at_least_single
from detection.model.rpn import RPN
from detection.model.sampler import BalancedSampler
from detection.model.select import gather_rows, waiting_is_free
from detection.padded import Found, Regions, Targets
from detection.structures import Detections, ImageBatch, Target

__all__ = ["MNC", "MaskLayers", "MaskedStage", "vote"]

VOTERS = 32  # the best voters of a detection; later ones have little weight


class MaskLayers(nn.Module):
    """Two fully connected layers from a pooled region to its mask, the same for every category.

    Args:
        in_channels: C of the regions.
        pool_size: S.
        side: M.
        channels: width between the two layers.
        geometry: mask geometry of the targets; pasting must use the same.
    """

    def __init__(
        self,
        in_channels: int,
        pool_size: int,
        *,
        side: int = 28,
        channels: int = 256,
        geometry: MaskGeometry = "exact",
    ) -> None:
        super().__init__()
        self.side = side
        self.geometry: MaskGeometry = geometry
        self.narrow = nn.Linear(in_channels * pool_size**2, channels)
        self.mask = nn.Linear(channels, side**2)
        nn.init.normal_(self.mask.weight, std=0.01)
        nn.init.zeros_(self.mask.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """Returns logits (R, M, M) of regions (R, C, S, S)."""
        return self.mask(F.relu(self.narrow(regions.flatten(1)))).unflatten(1, (self.side, self.side))


@dataclass(frozen=True, slots=True)
class _MaskedOutput(RegionOutput):
    """The stage's output for the regions that it is trained on, with their masks."""

    masks: Tensor = None  # pyright: ignore[reportAssignmentType]  # (N * R, M, M) logits; it follows a default
    goals: Tensor = None  # pyright: ignore[reportAssignmentType]  # (N * R, M, M)
    counts: Tensor = None  # pyright: ignore[reportAssignmentType]  # (N * R,) bool: positives of known mask


class MaskedStage(BoxStage):
    """Predicts masks of regions, then categories and boxes from the whole and the masked regions; one or two looks.

    Args:
        pooler: pools regions to a multiple of ``roi_size``.
        head: runs on whole regions, pooled to ``roi_size``.
        mask_head: runs on masked regions.
        predictor: takes the vectors of both.
        layers: predict the masks.
        matcher, sampler, coder: as in a box stage.
        roi_size: side of the regions that ``head`` takes.
        looks: 1 for the paper's 3 stages; 2 for 5, the second look being at the boxes that the first one moved.
        smooth_l1_beta, box_loss_weight: beta and weight of the box loss.

    Raises:
        ValueError: regions that can't be pooled to ``roi_size``.
    """

    def __init__(
        self,
        pooler: RegionPooler,
        head: RegionHead,
        mask_head: RegionHead,
        predictor: BoxPredictor,
        layers: MaskLayers,
        *,
        matcher: Matcher,
        sampler: BalancedSampler,
        coder: BoxCoder,
        roi_size: int,
        looks: int = 2,
        smooth_l1_beta: float = 1.0,
        box_loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            pooler,
            head,
            predictor,
            matcher=matcher,
            sampler=sampler,
            coder=coder,
            smooth_l1_beta=smooth_l1_beta,
            box_loss_weight=box_loss_weight,
        )
        if pooler.size % roi_size:
            raise ValueError(
                f"mnc.pool_size is {pooler.size}, the layers after it take regions of {roi_size} x {roi_size}; "
                f"set mnc.pool_size to a multiple of {roi_size}"
            )
        self.mask_head, self.layers, self.roi_size, self.looks = mask_head, layers, roi_size, looks

    def instances(self, features: Sequence[Tensor], proposals: Regions, sizes: Tensor) -> tuple[ScoredBoxes, Tensor]:
        """Returns ``looks`` * P regions of each image with their scores, and their masks (N, looks * P, M, M) in 0..1.

        A mask belongs to the box that it was found in: a proposal, or one moved by the look before.
        """
        boxes, valid = proposals.boxes, proposals.valid
        parts: list[tuple[Tensor, ...]] = []
        for look in range(self.looks):
            logits, deltas, masks = self._look(features, boxes)
            scored = self.decode(logits, deltas, boxes, valid, sizes)
            parts.append((scored.scores, boxes[:, :, None], valid, masks.sigmoid().unflatten(0, boxes.shape[:2])))
            if look + 1 < self.looks:
                boxes = _of_best_class(scored)
                valid = valid & not_empty(boxes)
        scores, regions, counted, masks = (torch.cat(of_looks, dim=1) for of_looks in zip(*parts, strict=True))
        return ScoredBoxes(scores, regions, counted), masks

    def outputs(
        self, features: Sequence[Tensor], proposals: Regions, targets: Targets, sizes: Tensor, seeds: Tensor
    ) -> Iterator[RegionOutput]:
        """Yields each look's output for its regions: sampled for the first, refined by the one before for the others.

        Raises:
            ValueError: targets without masks.
        """
        if targets.masks is None or targets.mask_rows is None:
            raise ValueError(
                "training masks needs a data set with masks: COCO's segmentation, or VOC's with 'instances'"
            )
        sample = self.draw(proposals, targets, seeds)
        for look in range(self.looks):
            logits, deltas, masks = self._look(features, sample.boxes)
            rows = targets.mask_rows.gather(1, sample.objects).flatten()
            goals = crop_and_resize(
                targets.masks, sample.boxes.flatten(0, 1), self.layers.side, rows=rows, geometry=self.layers.geometry
            )
            counts = sample.positive.flatten() & targets.masks.flatten(1).any(dim=1)[rows]
            suffix = f"_{look + 1}" if self.looks > 1 else ""
            yield _MaskedOutput(self, sample, logits, deltas, suffix, masks, goals, counts)
            if look + 1 < self.looks:
                with torch.no_grad():
                    boxes = _of_best_class(self.decode(logits, deltas, sample.boxes, sample.valid, sizes))
                    sample = self.label(boxes, sample.valid & not_empty(boxes), targets)

    def losses(self, output: RegionOutput) -> dict[str, Tensor]:
        """Returns the losses of a box stage and ``mask``, the cross-entropy per pixel of the positive regions."""
        assert isinstance(output, _MaskedOutput)
        weight = output.counts[:, None, None].expand_as(output.masks)
        loss = F.binary_cross_entropy_with_logits(output.masks, output.goals, weight=weight, reduction="sum")
        mask = {f"mask{output.suffix}": loss / weight.sum().clamp(min=1)}
        return super().losses(output) | mask

    def _look(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns class logits (N, P, K + 1), deltas (N, P, K or 1, 4), mask logits (N * P, M, M) of ``boxes``."""
        regions = self.pooler(features, boxes.flatten(0, 1), image_rows(boxes))
        masks = at_least_single(self.layers(regions))
        shares = F.adaptive_avg_pool2d(masks.sigmoid()[:, None], self.pooler.size).to(regions.dtype)
        masked = regions * shares
        vectors = torch.cat([self.head(self._shrunk(regions)), self.mask_head(self._shrunk(masked))], dim=1)
        return *self.predictor(vectors.unflatten(0, boxes.shape[:2])), masks

    def _shrunk(self, regions: Tensor) -> Tensor:
        factor = self.pooler.size // self.roi_size
        return regions if factor == 1 else F.max_pool2d(regions, factor)


class MNC(Architecture):
    """Losses for images with targets, detections with masks for images without.

    Args:
        backbone: the trunk, whose features feed the RPN and the stage.
        rpn: proposals.
        box_stage: masks, scores and boxes of proposals.
        postprocess: selects the detections among the regions.
        vote_iou: a detection's mask is the mean, weighted by score, of the masks of all regions whose boxes overlap its
            box by at least this; None: the mask is its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        rpn: RPN,
        box_stage: MaskedStage,
        *,
        postprocess: Postprocessor,
        vote_iou: float | None = 0.5,
    ) -> None:
        super().__init__(backbone)
        self.rpn, self.box_stage, self.postprocess, self.vote_iou = rpn, box_stage, postprocess, vote_iou

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads are the base class's
        self,
        images: ImageBatch,
        targets: Targets | Sequence[Target] | None = None,
        proposals: Regions | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Returns losses by name if there are targets, else detections; ``proposals`` replace the RPN's."""
        if targets is None:
            return self.detect(images, proposals).ragged()
        targets = self.padded_targets(images, targets)
        features, seeds = self.features(images), images.draw_seeds()
        padded = self.normalize.padded(images)
        own, losses = self.rpn.losses(features, images.sizes, padded, targets, seeds)
        proposals = own if proposals is None else proposals
        for output in self.box_stage.outputs(features, proposals, targets, images.sizes, seeds):
            losses |= output.stage.losses(output)
        return losses

    def detect(self, images: ImageBatch, proposals: Regions | None = None) -> Found:
        """Returns detections padded to the same number per image: a test as one graph."""
        features = self.features(images)
        own = self.rpn(features, images.sizes, self.normalize.padded(images)) if proposals is None else proposals
        scored, masks = self.box_stage.instances(features, own, images.sizes)
        found = self.postprocess(scored)
        found = found.trimmed() if waiting_is_free(found.valid) else found
        # Above an IoU of 1 there is nothing but the box itself.
        return replace(found, masks=vote(found, scored, masks, 1.0 if self.vote_iou is None else self.vote_iou))

    def head_modules(self) -> list[nn.Module]:
        """Returns the parts that run on every region."""
        return [self.box_stage]

    def facts(self) -> dict[str, str]:
        """Returns the facts, by name, that a comparison lists besides the backbone."""
        return {"tail": f"{self.box_stage.looks} looks, each of two times {self.box_stage.describe()}"}


def vote(found: Found, scored: ScoredBoxes, masks: Tensor, vote_iou: float) -> Tensor:
    """Returns the masks (N, D, M, M) of ``found``, each the weighted mean of the masks of regions that overlap its box.

    Weights are the regions' scores of the detection's class.  A voter's mask is interpolated on the detection's cells.

    Args:
        found: detections whose boxes are among the regions.
        scored: P regions of each image, with one box each.
        masks: (N, P, M, M) of the regions, 0..1.
        vote_iou: least IoU of the boxes at which a region votes.
    """
    regions, side = scored.boxes[:, :, 0], masks.shape[-1]
    overlaps = iou(found.boxes, regions)  # (N, D, P)
    scores = scored.scores.transpose(1, 2)  # (N, K, P)
    own = scores.gather(1, found.labels[..., None].expand(-1, -1, scores.shape[2]))  # (N, D, P)
    # Rounding may leave the overlap of a box with itself below 1.
    agree = (overlaps >= min(vote_iou, 1 - 1e-5)) & scored.valid[:, None]
    weights, columns = (own * agree).topk(min(VOTERS, own.shape[2]), dim=2)  # (N, D, V)
    boxes, voters = gather_rows(regions, columns.flatten(1)), gather_rows(masks, columns.flatten(1))
    boxes = boxes.unflatten(1, columns.shape[1:])  # (N, D, V, 4)
    places = on_image(grid_points(side, regions), found.boxes)[:, :, None]  # (N, D, 1, M * M, 2)
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    points = ((places - boxes[..., None, :2]) / sides[..., None, :]).flatten(0, 2).unflatten(1, (side, side))
    drawn = F.grid_sample(voters.flatten(0, 1)[:, None], 2 * points - 1, align_corners=False)  # (N * D * V, 1, M, M)
    drawn = drawn[:, 0].view(*columns.shape, side, side)
    shares = weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return (drawn * shares[..., None, None]).sum(dim=2)


def _of_best_class(scored: ScoredBoxes) -> Tensor:
    """Returns the boxes (N, P, 4) of ``scored``, those of the class with the best score."""
    if scored.boxes.shape[2] == 1:
        return scored.boxes[:, :, 0]
    best = scored.scores.argmax(dim=2)[..., None, None]
    return scored.boxes.gather(2, best.expand(-1, -1, 1, 4))[:, :, 0]
