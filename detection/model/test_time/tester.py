"""The paper's test-time methods over one or several detectors: refinement, multi-scale, flip, ensemble.

Source: "Deep Residual Learning", appendix B.
Shapes: N images, R regions, K classes, D width of the tail's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detection.boxes import scale
from detection.model.architecture import RegionVerbs
from detection.model.box_stage import BoxStage, ScoredBoxes
from detection.model.postprocess import Postprocessor
from detection.model.test_time.views import adjacent_scales, flip_boxes, flip_images, resize_images
from detection.structures import Detections, ImageBatch, Proposals

__all__ = ["Methods", "Tester", "merge_scored", "refined_proposals"]


@dataclass(frozen=True, slots=True)
class Methods:
    """What is done beyond a plain test.

    Attributes:
        refine: a second pass pools from the boxes of the first; both passes' boxes enter NMS.
        scales: shorter sides, rising, in pixels, at which the box stage looks; empty: at the given scale only.
        flip: the box stage also looks at the mirrored image; scores and boxes are averaged.
    """

    refine: bool = False
    scales: tuple[int, ...] = ()
    flip: bool = False


class Tester(nn.Module):
    """Detections of images by ``detectors``, which may have different backbones and share their classes.

    Proposals are the union of the detectors'; scores and boxes of each proposal are averaged over detectors.

    Args:
        detectors: one, or an ensemble.
        methods: what is done.
        postprocess: which scored boxes become detections.
    """

    __test__ = False  # the name is no test case

    def __init__(self, detectors: Sequence[nn.Module], *, methods: Methods, postprocess: Postprocessor) -> None:
        super().__init__()
        if methods != Methods() and not all(isinstance(_stage(detector), BoxStage) for detector in detectors):
            raise ValueError(
                "refinement, scales and flip look at one box stage, and a cascade has several; set test.refine, "
                "test.scales and test.flip to their defaults"
            )
        self.detectors, self.methods, self.postprocess = nn.ModuleList(detectors), methods, postprocess

    def forward(self, images: ImageBatch) -> list[Detections]:
        """Detections of each image, best first, in pixels of the images as given."""
        lookups = [_Lookup(detector, images, self.methods) for detector in self._members()]
        per_member = [lookup.detector.propose(lookup.base, images) for lookup in lookups]
        proposals = [_union(image) for image in zip(*per_member, strict=True)]
        scored = self._score(lookups, proposals)
        if self.methods.refine:
            again = self._score(lookups, [refined_proposals(image) for image in scored])
            scored = [_join(first, second) for first, second in zip(scored, again, strict=True)]
        found = [self.postprocess(image) for image in scored]
        return merge_masks([lookup.detector.masks(lookup.base, found) for lookup in lookups])

    def _score(self, lookups: Sequence[_Lookup], proposals: Sequence[Proposals]) -> list[ScoredBoxes]:
        per_member = [lookup.score(proposals) for lookup in lookups]
        return [merge_scored(image) for image in zip(*per_member, strict=True)]

    def _members(self) -> list[RegionVerbs]:
        return [detector for detector in self.detectors if isinstance(detector, RegionVerbs)]


class _Lookup:
    """One detector's feature maps of a batch, at every scale and side that ``methods`` asks for."""

    def __init__(self, detector: RegionVerbs, images: ImageBatch, methods: Methods) -> None:
        self.detector, self.sizes, self.scales = detector, images.sizes, methods.scales
        self.base = detector.features(images)
        self.sides = [_Pyramid(detector, images, methods.scales, self.base)]
        if methods.flip:
            self.sides.append(_Pyramid(detector, flip_images(images), methods.scales))

    def score(self, proposals: Sequence[Proposals]) -> list[ScoredBoxes]:
        """Scores and boxes of the proposals of each image, averaged over the sides."""
        stage = _stage(self.detector)
        if not isinstance(stage, BoxStage):
            return self.detector.boxes(self.base, proposals, self.sizes)
        results = []
        for number, side in enumerate(self.sides):
            boxes = [image.boxes for image in proposals]
            if number:
                boxes = [flip_boxes(b, width) for b, (_, width) in zip(boxes, self.sizes, strict=True)]
            scored = stage.predict(side.vectors(boxes), boxes, self.sizes)
            if number:
                scored = [
                    ScoredBoxes(image.scores, flip_boxes(image.boxes, width))
                    for image, (_, width) in zip(scored, self.sizes, strict=True)
                ]
            results.append(scored)
        return [merge_scored(image) for image in zip(*results, strict=True)]


class _Pyramid:
    """One detector's feature maps of a batch at all scales."""

    def __init__(
        self, detector: RegionVerbs, images: ImageBatch, scales: Sequence[int], base: list[Tensor] | None = None
    ) -> None:
        self.detector, self.sizes, self.scales = detector, images.sizes, scales
        views = [resize_images(images, shorter) for shorter in scales] or [images]
        self.view_sizes = [view.sizes for view in views]
        self.features = [base] if base is not None and not scales else [detector.features(view) for view in views]

    def vectors(self, boxes: Sequence[Tensor]) -> Tensor:
        """(R, D) of the regions ``boxes`` (R_i, 4) of each image, in pixels of the images as given.

        With scales, each region's vector is the element-wise maximum (maxout) over its two adjacent scales.
        """
        stage = _stage(self.detector)
        assert isinstance(stage, BoxStage)
        if not self.scales:
            return stage.vectors(self.features[0], boxes, self.sizes)
        lower = torch.cat([adjacent_scales(b, size, self.scales) for b, size in zip(boxes, self.sizes, strict=True)])
        image = torch.cat([torch.full((len(b),), row) for row, b in enumerate(boxes)]).to(lower.device)
        merged: Tensor | None = None
        for level, (features, sizes) in enumerate(zip(self.features, self.view_sizes, strict=True)):
            looked_up = (lower == level) | (lower + 1 == level)
            regions = [
                scale(b, size, view)[looked_up[image == row]]
                for row, (b, size, view) in enumerate(zip(boxes, self.sizes, sizes, strict=True))
            ]
            vectors = stage.vectors(features, regions, sizes)
            if merged is None:
                merged = vectors.new_full((len(lower), vectors.shape[1]), float("-inf"))
            merged[looked_up] = torch.maximum(merged[looked_up], vectors)
        assert merged is not None
        return merged


def _stage(detector: RegionVerbs | nn.Module) -> object:
    return getattr(detector, "box_stage", None)


def refined_proposals(scored: ScoredBoxes) -> Proposals:
    """The box that every proposal's best class moved it to, as proposals for a second pass."""
    scores, labels = scored.scores.max(dim=1)
    boxes = scored.boxes[torch.arange(len(labels), device=labels.device), labels]
    usable = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    return Proposals(boxes=boxes[usable], scores=scores[usable])


def merge_scored(members: Sequence[ScoredBoxes]) -> ScoredBoxes:
    """The mean of what ``members`` say of the same R proposals."""
    if len(members) == 1:
        return members[0]
    scores = torch.stack([member.scores for member in members]).mean(dim=0)
    return ScoredBoxes(scores, torch.stack([member.boxes for member in members]).mean(dim=0))


def merge_masks(members: Sequence[list[Detections]]) -> list[Detections]:
    """The same detections of each image, with the mean of the masks of those ``members`` that have any."""
    merged = []
    for image in zip(*members, strict=True):
        masks = [member.masks for member in image if member.masks is not None]
        merged.append(replace(image[0], masks=torch.stack(masks).mean(dim=0) if masks else None))
    return merged


def _union(members: Sequence[Proposals]) -> Proposals:
    return Proposals(
        boxes=torch.cat([member.boxes for member in members]), scores=torch.cat([member.scores for member in members])
    )


def _join(first: ScoredBoxes, second: ScoredBoxes) -> ScoredBoxes:
    return ScoredBoxes(torch.cat([first.scores, second.scores]), torch.cat([first.boxes, second.boxes]))
