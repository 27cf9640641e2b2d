"""Faster, Mask, Keypoint and Cascade R-CNN, PointRend and Panoptic FPN: trunk, RPN, box stage, later stages.

Source: Faster R-CNN (Ren et al. 2017); "Deep Residual Learning", appendix A; Mask R-CNN (He et al. 2017).
Shapes: N images, C channels, H W height and width of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor, nn

from backbones.base import Backbone
from detection.model.architecture import Architecture
from detection.model.box_stage import BoxStage, RegionSample, ScoredBoxes
from detection.model.cascade import CascadeBoxStage
from detection.model.keypoint_stage import KeypointStage
from detection.model.mask_stage import MaskStage
from detection.model.panoptic_fpn import LabelStage
from detection.model.pointrend import PointStage
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN
from detection.model.select import waiting_is_free
from detection.padded import Found, Regions, Targets
from detection.structures import Detections, ImageBatch, Target

__all__ = ["FasterRCNN"]


class FasterRCNN(Architecture):
    """Losses for images with targets, detections for images without.

    The methods ``features``, ``propose``, ``boxes``, ``masks``, ``keypoints`` and ``label_scores`` are the steps of a
    test, which test-time methods compose.

    Args:
        backbone: the trunk; its features, finest first, feed the RPN and the stages.
        rpn: proposals.
        box_stage: scores and boxes of proposals.
        mask_stage: masks of detections; None for a detector without.
        keypoint_stage: keypoints of detections; None for a detector without.
        label_stage: labels of every pixel; None for a detector without.
        postprocess: selects the detections among them.
    """

    def __init__(
        self,
        backbone: Backbone,
        rpn: RPN,
        box_stage: BoxStage | CascadeBoxStage,
        *,
        postprocess: Postprocessor,
        mask_stage: MaskStage | PointStage | None = None,
        keypoint_stage: KeypointStage | None = None,
        label_stage: LabelStage | None = None,
    ) -> None:
        super().__init__(backbone)
        self.rpn, self.box_stage, self.postprocess = rpn, box_stage, postprocess
        self.mask_stage, self.keypoint_stage, self.label_stage = mask_stage, keypoint_stage, label_stage

    def fix(self, parts: Sequence[str]) -> None:
        """Freezes ``parts``, of "backbone", "rpn" and "box_stage"; the last also freezes the stages after it."""
        later = {
            "mask_stage": self.mask_stage,
            "keypoint_stage": self.keypoint_stage,
            "label_stage": self.label_stage,
        }
        with_boxes = [name for name, stage in later.items() if stage is not None and "box_stage" in parts]
        super().fix([*parts, *with_boxes])

    @overload
    def forward(
        self, images: ImageBatch, targets: Targets | Sequence[Target], proposals: Regions | None = None
    ) -> dict[str, Tensor]: ...
    @overload
    def forward(
        self, images: ImageBatch, targets: None = None, proposals: Regions | None = None
    ) -> list[Detections]: ...
    def forward(
        self,
        images: ImageBatch,
        targets: Targets | Sequence[Target] | None = None,
        proposals: Regions | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Returns scalar losses of the trained parts by name if there are targets; else each image's detections.

        ``proposals`` replace the RPN's. All boxes are in pixels of the images as given.
        """
        if targets is None:
            return self.ragged(self.detect(images, proposals), images)
        targets = self.padded_targets(images, targets)
        features, seeds = self.features(images), images.draw_seeds()
        losses: dict[str, Tensor] = {}
        if "rpn" not in self.fixed:
            own, losses = self.rpn.losses(features, images.sizes, self.normalize.padded(images), targets, seeds)
            proposals = own if proposals is None else proposals
        if "box_stage" not in self.fixed:
            proposals = self.propose(features, images) if proposals is None else proposals
            outputs = list(self.box_stage.outputs(features, proposals, targets, images.sizes, seeds))
            for output in outputs:
                losses |= output.stage.losses(output)
            losses |= self._later_losses(features, outputs[0].sample, targets, seeds)
            if self.label_stage is not None:
                losses |= self.label_stage.losses(features, targets, self.normalize.padded(images))
        return losses

    def _later_losses(
        self, features: Sequence[Tensor], sample: RegionSample, targets: Targets, seeds: Tensor
    ) -> dict[str, Tensor]:
        """Returns losses of the stages after the box stage, on its sampled positive regions."""
        losses: dict[str, Tensor] = {}
        if self.mask_stage is None and self.keypoint_stage is None:
            return losses
        positives = sample.positives(self.box_stage.most_positives)
        if isinstance(self.mask_stage, PointStage):
            losses |= self.mask_stage.losses(features, positives, targets, seeds)
        elif self.mask_stage is not None:
            losses |= self.mask_stage.losses(features, positives, targets, self.box_stage.shared_body())
        if self.keypoint_stage is not None:
            losses |= self.keypoint_stage.losses(features, positives, targets)
        return losses

    def detect(self, images: ImageBatch, proposals: Regions | None = None) -> Found:
        """Returns detections padded to the same number per image: a test as one graph."""
        features = self.features(images)
        proposals = self.propose(features, images) if proposals is None else proposals
        found = self.postprocess(self.boxes(features, proposals, images.sizes))
        return self.label_scores(features, self.keypoints(features, self.masks(features, found)), images)

    def propose(self, features: Sequence[Tensor], images: ImageBatch) -> Regions:
        """Returns proposals of each of ``images``, whose features are given, best first."""
        return self.rpn(features, images.sizes, self.normalize.padded(images))

    def boxes(self, features: Sequence[Tensor], proposals: Regions, sizes: Tensor) -> ScoredBoxes:
        """Returns scores and boxes of every proposal of each image, before thresholds and NMS."""
        return self.box_stage(features, proposals, sizes)

    def masks(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns ``found`` with masks; unchanged if there is no mask stage."""
        if self.mask_stage is None:
            return found
        if isinstance(self.mask_stage, PointStage):
            return self.mask_stage(features, _trimmed(found))
        return self.mask_stage(features, _trimmed(found), self.box_stage.shared_body())

    def keypoints(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns ``found`` with keypoints; unchanged if there is no keypoint stage."""
        return found if self.keypoint_stage is None else self.keypoint_stage(features, _trimmed(found))

    def label_scores(self, features: Sequence[Tensor], found: Found, images: ImageBatch) -> Found:
        """Returns ``found`` with scores of every pixel of ``images``; unchanged if there is no label stage."""
        if self.label_stage is None:
            return found
        height, width = images.pixels.shape[2:]
        return self.label_stage(features, found, size=(height, width), padded=self.normalize.padded(images))

    def head_modules(self) -> list[nn.Module]:
        """Returns the parts after the backbone, except the RPN."""
        parts = (self.box_stage, self.mask_stage, self.keypoint_stage, self.label_stage)
        return [part for part in parts if part is not None]

    def facts(self) -> dict[str, str]:
        """Returns the facts, by name, that a comparison lists besides the backbone."""
        labels = {} if self.label_stage is None else {"labels": self.label_stage.describe()}
        return {"tail": self.box_stage.describe(), **labels}


def _trimmed(found: Found) -> Found:
    """Returns ``found`` without columns of padding, unless that would wait for a GPU."""
    return found.trimmed() if waiting_is_free(found.valid) else found
