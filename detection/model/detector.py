"""Faster R-CNN over any backbone: trunk, region proposal network, box stage.

Source: Faster R-CNN (Ren et al. 2017); "Deep Residual Learning", appendix A.
Shapes: N images, C channels, H W height and width of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, overload

import torch
from torch import Tensor, nn

from backbones.base import Backbone
from detection.model.box_stage import BoxStage, ScoredBoxes
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN
from detection.structures import Detections, ImageBatch, Proposals, Target

__all__ = ["Detector"]


class Detector(nn.Module):
    """Losses of images with targets, detections of images without.

    The verbs ``features``, ``propose`` and ``boxes`` are the steps of a test; methods that change how a detector is
    tested compose them.

    Args:
        backbone: the trunk; its last feature feeds the RPN and the box stage.
        rpn: proposals.
        box_stage: scores and boxes of proposals.
        postprocess: which of these become detections.
        fixed: of "backbone", "rpn" and "box_stage" those that are not trained: no gradient, no loss, always eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        rpn: RPN,
        box_stage: BoxStage,
        *,
        postprocess: Postprocessor,
        fixed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.fixed = tuple(fixed)
        self.backbone, self.rpn, self.box_stage, self.postprocess = backbone, rpn, box_stage, postprocess
        self.feature = list(backbone.specs)[-1]
        stats = backbone.input_stats
        self.bgr = stats.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(stats.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stats.std).view(3, 1, 1), persistent=False)
        for name in self.fixed:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all parts but the fixed ones, whose statistics must not move."""
        super().train(mode)
        for name in self.fixed:
            self.get_submodule(name).eval()
        return self

    @overload
    def forward(
        self, images: ImageBatch, targets: Sequence[Target], proposals: Sequence[Proposals] | None = None
    ) -> dict[str, Tensor]: ...
    @overload
    def forward(
        self, images: ImageBatch, targets: None = None, proposals: Sequence[Proposals] | None = None
    ) -> list[Detections]: ...
    def forward(
        self,
        images: ImageBatch,
        targets: Sequence[Target] | None = None,
        proposals: Sequence[Proposals] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Scalar losses by name, of the parts that are not fixed, if there are targets; else each image's detections.

        ``proposals`` take the place of the RPN's. All boxes are in pixels of the images as given.
        """
        feature = self.features(images)
        if targets is None:
            proposals = self.propose(feature, images.sizes) if proposals is None else proposals
            return [self.postprocess(scored) for scored in self.boxes(feature, proposals, images.sizes)]
        losses: dict[str, Tensor] = {}
        if "rpn" not in self.fixed:
            own, losses = self.rpn.losses(feature, images.sizes, targets)
            proposals = own if proposals is None else proposals
        if "box_stage" not in self.fixed:
            proposals = self.propose(feature, images.sizes) if proposals is None else proposals
            losses = losses | self.box_stage.losses(feature, proposals, targets, images.sizes)
        return losses

    def features(self, images: ImageBatch) -> Tensor:
        """The trunk's last feature map (N, C, H / stride, W / stride)."""
        return self.backbone(self._normalize(images))[self.feature]

    def propose(self, feature: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """Proposals of each image, best first."""
        return self.rpn(feature, sizes)

    def boxes(
        self, feature: Tensor, proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[ScoredBoxes]:
        """Scores and boxes of every proposal of each image, before thresholds and NMS."""
        return self.box_stage(feature, proposals, sizes)

    def _normalize(self, images: ImageBatch) -> Tensor:
        """(N, 3, H, W) float32 in the backbone's channel order; the padding is zero, which is the mean colour."""
        pixels = images.pixels.flip(1) if self.bgr else images.pixels
        batch = torch.zeros_like(pixels, dtype=torch.float32, memory_format=torch.channels_last)
        for image, row, (height, width) in zip(pixels, batch, images.sizes, strict=True):
            row[:, :height, :width] = (image[:, :height, :width] - self.mean) / self.std
        return batch
