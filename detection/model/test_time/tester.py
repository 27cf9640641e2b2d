"""The paper's test-time methods over one or several detectors: refinement, multi-scale, flip, ensemble.

Source: "Deep Residual Learning", appendix B.
Shapes: N images, R regions, K classes, D width of the tail's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detection.boxes import not_empty
from detection.model.architecture import Architecture, RegionVerbs
from detection.model.box_stage import BoxStage, ScoredBoxes, image_rows
from detection.model.postprocess import Postprocessor
from detection.model.test_time.views import adjacent_scales, flip_boxes, flip_images, resize_images
from detection.padded import Found, Regions
from detection.structures import Detections, ImageBatch

__all__ = ["Methods", "Tester", "merge_scored", "refined_proposals"]


@dataclass(frozen=True, slots=True)
class Methods:
    """The methods beyond a plain test.

    Attributes:
        refine: a second pass pools from the boxes of the first; both passes' boxes enter NMS.
        scales: shorter sides, rising, in pixels, to which images are resized; empty: the given scale only.
        flip: also run the box stage on the flipped image; scores and boxes are averaged.
    """

    refine: bool = False
    scales: tuple[int, ...] = ()
    flip: bool = False


class Tester(nn.Module):
    """Detections of images by ``detectors``, which may have different backbones and share their classes.

    Proposals are the union of the detectors'; scores and boxes of each proposal are averaged over detectors.

    Args:
        detectors: one, or an ensemble.
        methods: the test-time methods to apply.
        postprocess: selects the detections among scored boxes.
    """

    __test__ = False  # the name is no test case

    def __init__(self, detectors: Sequence[nn.Module], *, methods: Methods, postprocess: Postprocessor) -> None:
        super().__init__()
        if methods != Methods() and not all(isinstance(_stage(detector), BoxStage) for detector in detectors):
            raise ValueError(
                "refinement, scales and flip need a single box stage, but a cascade has several; set test.refine, "
                "test.scales and test.flip to their defaults"
            )
        if len(detectors) > 1 and any(getattr(detector, "keypoint_stage", None) is not None for detector in detectors):
            raise ValueError(
                "detectors with keypoints can't form an ensemble: keypoints can't be averaged; test them one by one"
            )
        if len(detectors) > 1 and any(getattr(detector, "label_stage", None) is not None for detector in detectors):
            raise ValueError("panoptic networks can't form an ensemble; test them one by one")
        self.detectors, self.methods, self.postprocess = nn.ModuleList(detectors), methods, postprocess

    def forward(self, images: ImageBatch) -> list[Detections]:
        """Returns detections of each image, best first, in pixels of the images as given."""
        return Architecture.ragged(self.detect(images), images)

    def detect(self, images: ImageBatch) -> Found:
        """Returns detections padded to the same number per image."""
        lookups = [_Lookup(detector, images, self.methods) for detector in self._members()]
        proposals = _union([lookup.detector.propose(lookup.base, images) for lookup in lookups])
        scored = merge_scored([lookup.score(proposals) for lookup in lookups])
        if self.methods.refine:
            refined = refined_proposals(scored)
            scored = _join(scored, merge_scored([lookup.score(refined) for lookup in lookups]))
        found = self.postprocess(scored)
        found = merge_masks([lookup.detector.masks(lookup.base, found) for lookup in lookups])
        first = lookups[0]  # the members of an ensemble have neither keypoints nor label scores
        return first.detector.label_scores(first.base, first.detector.keypoints(first.base, found), images)

    def _members(self) -> list[RegionVerbs]:
        return [detector for detector in self.detectors if isinstance(detector, RegionVerbs)]


class _Lookup:
    """One detector's feature maps of a batch, at every scale, plain and flipped, as ``methods`` asks."""

    def __init__(self, detector: RegionVerbs, images: ImageBatch, methods: Methods) -> None:
        self.detector, self.sizes = detector, images.sizes
        self.base = detector.features(images)
        self.sides = [_Pyramid(detector, images, methods.scales, self.base)]
        if methods.flip:
            self.sides.append(_Pyramid(detector, flip_images(images), methods.scales))

    def score(self, proposals: Regions) -> ScoredBoxes:
        """Returns scores and boxes of the proposals of each image, averaged over the plain and the flipped image."""
        stage = _stage(self.detector)
        if not isinstance(stage, BoxStage):
            return self.detector.boxes(self.base, proposals, self.sizes)
        results, widths = [], self.sizes[:, 1]
        for number, side in enumerate(self.sides):
            boxes = flip_boxes(proposals.boxes, widths) if number else proposals.boxes
            logits, deltas = stage.predictor(side.vectors(boxes))
            scored = stage.decode(logits, deltas, boxes, proposals.valid, self.sizes)
            results.append(replace(scored, boxes=flip_boxes(scored.boxes, widths)) if number else scored)
        return merge_scored(results)


class _Pyramid:
    """One detector's feature maps of a batch at all scales."""

    def __init__(
        self, detector: RegionVerbs, images: ImageBatch, scales: Sequence[int], base: list[Tensor] | None = None
    ) -> None:
        self.detector, self.sizes, self.scales = detector, images.sizes, scales
        views = [resize_images(images, shorter) for shorter in scales] or [images]
        self.view_sizes = [view.sizes for view in views]
        self.features = [base] if base is not None and not scales else [detector.features(view) for view in views]

    def vectors(self, boxes: Tensor) -> Tensor:
        """Returns (N, P, D) of the regions ``boxes`` (N, P, 4), in pixels of the images as given.

        With scales, each region's vector is the element-wise maximum (maxout) over its two adjacent scales.
        """
        stage = _stage(self.detector)
        assert isinstance(stage, BoxStage)
        if not self.scales:
            return stage.batch_vectors(self.features[0], boxes, self.sizes)
        images, flat = image_rows(boxes), boxes.flatten(0, 1)
        lower = adjacent_scales(flat, self.sizes.amin(dim=1)[images], self.scales)
        merged: Tensor | None = None
        for level, (features, sizes) in enumerate(zip(self.features, self.view_sizes, strict=True)):
            rows = ((lower == level) | (lower + 1 == level)).nonzero().flatten()
            factors = (sizes / self.sizes).flip(1).repeat(1, 2)[images[rows]].to(flat.dtype)  # (R, 4): x, y, x, y
            vectors = stage.vectors(features, flat[rows] * factors, images[rows], sizes)
            if merged is None:
                merged = vectors.new_full((len(lower), vectors.shape[1]), float("-inf"))
            merged[rows] = torch.maximum(merged[rows], vectors)
        assert merged is not None
        return merged.unflatten(0, boxes.shape[:2])


def _stage(detector: RegionVerbs | nn.Module) -> object:
    return getattr(detector, "box_stage", None)


def refined_proposals(scored: ScoredBoxes) -> Regions:
    """Returns the refined box of every proposal's best class, as proposals for a second pass."""
    scores, labels = scored.scores.max(dim=2)
    rows = labels if scored.boxes.shape[2] > 1 else torch.zeros_like(labels)
    boxes = scored.boxes.gather(2, rows[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
    return Regions(boxes=boxes, valid=scored.valid & not_empty(boxes), scores=scores)


def merge_scored(members: Sequence[ScoredBoxes]) -> ScoredBoxes:
    """Returns the mean scores and boxes of ``members`` for the same proposals."""
    if len(members) == 1:
        return members[0]
    scores = torch.stack([member.scores for member in members]).mean(dim=0)
    shape = torch.broadcast_shapes(*(member.boxes.shape for member in members))
    boxes = torch.stack([member.boxes.expand(shape) for member in members]).mean(dim=0)
    return ScoredBoxes(scores, boxes, members[0].valid)


def merge_masks(members: Sequence[Found]) -> Found:
    """Returns the same detections, with the mean of the masks of those ``members`` that have any."""
    masks = [member.masks for member in members if member.masks is not None]
    having = next((member for member in members if member.masks is not None), members[0])
    return replace(having, masks=torch.stack(masks).mean(dim=0) if masks else None)


def _union(members: Sequence[Regions]) -> Regions:
    """Returns all proposals of the ``members``; they are no longer sorted, which scoring does not need."""
    return Regions(
        boxes=torch.cat([member.boxes for member in members], dim=1),
        valid=torch.cat([member.valid for member in members], dim=1),
        scores=torch.cat([member.scores for member in members], dim=1),
    )


def _join(first: ScoredBoxes, second: ScoredBoxes) -> ScoredBoxes:
    return ScoredBoxes(
        torch.cat([first.scores, second.scores], dim=1),
        torch.cat([first.boxes, second.boxes], dim=1),
        torch.cat([first.valid, second.valid], dim=1),
    )
