"""Semantic segmentation networks: a head over the trunk's features, whose logits are resized to the image.

Source: Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation", section 3.
Shapes: N images, C channels, K classes, h w height and width of a feature map, H W those of the padded batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, overload

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import Backbone
from detection.model.architecture import Architecture
from detection.model.losses import pixel_cross_entropy
from detection.model.precision import at_least_single
from detection.padded import Found, Regions, Targets
from detection.structures import Detections, ImageBatch, Target

__all__ = ["LabelHead", "SemanticNetwork", "pixel_logits", "pixel_loss"]


class LabelHead(nn.Module, ABC):
    """Scores of the classes in every cell.

    Attributes:
        finest: the head predicts at the cells of the first feature; else of the last.
    """

    finest: ClassVar[bool] = False

    @abstractmethod
    def forward(self, features: Sequence[Tensor], sizes: Tensor | None = None) -> Tensor:
        """Returns logits (N, K, h, w) of the trunk's features (N, C, h, w), finest first.

        ``sizes`` (N, 2) are the images' heights and widths; None: all fill the batch.
        """

    @abstractmethod
    def describe(self) -> str:
        """Returns a short description for comparisons."""


class SemanticNetwork(Architecture):
    """Losses for images with label maps, scores of each pixel for images without.

    Args:
        backbone: the trunk; its features, finest first, feed the head.
        head: logits of the trunk's features.
        auxiliary: a second head, used in training only, over all features but the last; None for none.
        loss_weight: weight of the head's loss.
        aux_weight: weight of the second head's loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: LabelHead,
        *,
        auxiliary: LabelHead | None = None,
        loss_weight: float = 1.0,
        aux_weight: float = 0.5,
    ) -> None:
        super().__init__(backbone)
        with suppress(ValueError):  # VGG's fully connected layers, which it has no use for; ResNet has none left
            backbone.tail()
        self.head, self.auxiliary = head, auxiliary
        self.loss_weight, self.aux_weight = loss_weight, aux_weight

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
        """Returns scalar losses by name if there are targets, else the ``label_scores`` of each image, without objects.

        Raises:
            ValueError: ``proposals`` are given, which it does not use, or targets have no label maps.
        """
        if proposals is not None:
            raise ValueError("a network of label maps takes no proposals; choose architecture faster_rcnn for them")
        if targets is None:
            return self.ragged(self.detect(images), images)
        targets = self.padded_targets(images, targets)
        features, padded = self.features(images), self.normalize.padded(images)
        losses = {"semantic": pixel_loss(self.head(features, images.sizes), targets, padded) * self.loss_weight}
        if self.auxiliary is not None:
            logits = self.auxiliary(features[:-1], images.sizes)
            losses["semantic_aux"] = pixel_loss(logits, targets, padded) * self.aux_weight
        return losses

    def detect(self, images: ImageBatch) -> Found:
        """Returns scores of every pixel of the batch, and no objects: a test as one graph."""
        logits = pixel_logits(self.head(self.features(images), images.sizes), self.normalize.padded(images))
        height, width = images.pixels.shape[2:]
        none = logits.new_zeros(len(images), 0)
        return Found(
            boxes=logits.new_zeros(len(images), 0, 4),
            valid=none.bool(),
            scores=none,
            labels=none.long(),
            label_scores=logits[:, :, :height, :width],
        )

    def head_modules(self) -> list[nn.Module]:
        """Returns the head, without the one for training only."""
        return [self.head]

    def facts(self) -> dict[str, str]:
        """Returns the facts, by name, that a comparison lists besides the backbone."""
        extra = "" if self.auxiliary is None else f"; a second head in training, weight {self.aux_weight:g}"
        spec = list(self.backbone.specs.values())[0 if self.head.finest else -1]
        return {"head": f"{self.head.describe()}, on stride {spec.stride}{extra}"}


def pixel_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns ``logits`` (N, K, h, w) interpolated to ``size`` (H, W) of their images, in float32 at least."""
    return F.interpolate(at_least_single(logits), size=size, mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, targets: Targets, padded: tuple[int, int]) -> Tensor:
    """Returns cross-entropy of ``logits`` (N, K, h, w) with the label maps of ``targets``, mean over labelled pixels.

    Args:
        logits: of images of size ``padded``.
        targets: with label maps (N, H, W), which may be smaller than ``padded`` at the right and at the bottom.
        padded: (height, width).

    Raises:
        ValueError: targets without label maps.
    """
    if targets.label_maps is None:
        raise ValueError(
            "training a network of label maps needs a data set with label maps, and targets that have them"
        )
    height, width = targets.label_maps.shape[1:]
    return pixel_cross_entropy(pixel_logits(logits, padded)[:, :, :height, :width], targets.label_maps)
