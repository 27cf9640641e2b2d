"""One-stage detectors: a head on every level of a pyramid, whose best boxes are the detections.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.
Shapes: N images, C channels, H W height and width of a level, A boxes of a cell, M_l = H * W * A boxes of an image at
one level, M at all, K classes, T best scores of a level, D detections.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from torch import Tensor, nn

from backbones.base import Backbone
from backbones.norm import NormLayer
from detection.boxes import clip, not_empty
from detection.model.architecture import Architecture
from detection.model.box_heads import conv_layers
from detection.model.class_rows import ClassRows
from detection.model.losses import focal
from detection.model.matcher import Matches
from detection.model.postprocess import Postprocessor
from detection.model.precision import at_least_single
from detection.padded import Found, Regions, Targets
from detection.structures import Detections, ImageBatch, Target

__all__ = ["Dense", "DenseHead", "LossScale", "Normalizer", "OneStage", "Picked", "output_layer", "pick"]

Normalizer = Literal["image", "batch", "running"]

RUNNING_START, RUNNING_SHARE = 100.0, 0.1  # initial positives of a batch; share of a step in the mean.  Detectron2's


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Settings that the heads of all one-stage detectors have.

    Attributes:
        convs: number of convolutions in each of the two towers, for classes and for boxes.
        norm: layer after each of them; None for none.
        prior: initial probability of every class.
        alpha: weight of the true class in the focal loss; that of the others is 1 - alpha.
        gamma: exponent of the focal loss, which lowers the loss of easy examples.
        normalizer: divisor of the losses: "image" and "batch", the number of positives of each image or of the batch;
            "running", the running mean of the latter.
        box_loss_weight: weight of the box loss.
        best: number of a level's best scores that enter NMS.
    """

    convs: int = 4
    norm: NormLayer | None = None
    prior: float = 0.01
    alpha: float = 0.25
    gamma: float = 2.0
    normalizer: Normalizer = "image"
    box_loss_weight: float = 1.0
    best: int = 1000

    def class_loss(self, logits: Tensor, labels: Tensor, matches: Matches, scale: Tensor) -> Tensor:
        """Returns the focal loss of ``logits`` (N, M, K), without ignored boxes.

        Args:
            logits: as above.
            labels: (N, M) of the positives.
            matches: matches of the M boxes.
            scale: (N, 1), the weight of each image.
        """
        weight = (matches.positive | matches.negative) * scale
        return focal(logits, labels, matches.positive, weight, alpha=self.alpha, gamma=self.gamma)


class LossScale(nn.Module):
    """Weight of each image in the losses, by the number of positives.

    The running mean is a buffer: it goes into checkpoints, and with several processes every step begins with the main
    one's.  Only training moves it.

    Args:
        normalizer: as in ``Dense``.
    """

    positives: Tensor  # scalar, mean number in a batch

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer
        if normalizer == "running":
            self.register_buffer("positives", torch.tensor(RUNNING_START))

    def forward(self, positive: Tensor) -> Tensor:
        """Returns the loss weights (N, 1) of images with positives ``positive`` (N, M) bool; called once per step."""
        counts = positive.sum(dim=1, keepdim=True)
        if self.normalizer == "image":
            return 1 / (counts.clamp(min=1) * len(positive))
        total = counts.sum().clamp(min=1)
        if self.normalizer == "running":
            if self.training:
                self.positives.lerp_(total.to(self.positives.dtype), RUNNING_SHARE)
            total = self.positives
        return (1 / total).expand_as(counts)


class DenseHead(nn.Module, ABC):
    """Scores and boxes of every cell of every level; given targets, the losses.

    Args:
        in_channels: C of every level.
        num_classes: K.
        boxes: A, boxes per cell.
        settings: settings of all one-stage detectors.
        bias: convolutions have a bias before a norm too.
    """

    def __init__(self, in_channels: int, *, num_classes: int, boxes: int, settings: Dense, bias: bool = False) -> None:
        super().__init__()
        self.num_classes, self.settings, self.scale = num_classes, settings, LossScale(settings.normalizer)
        self.class_tower = _tower(in_channels, settings.convs, settings.norm, bias=bias)
        self.box_tower = _tower(in_channels, settings.convs, settings.norm, bias=bias)
        self.class_rows = {"classes": ClassRows(boxes)}
        start = math.log(settings.prior / (1 - settings.prior))
        self.classes = output_layer(in_channels, num_classes * boxes, bias=start)
        self.deltas = output_layer(in_channels, 4 * boxes)

    @abstractmethod
    def forward(self, features: Sequence[Tensor], padded: tuple[int, int]) -> Found:
        """Returns the best boxes (N, D, 4) of each level with their class; not clipped, all valid.

        Args:
            features: (N, C, H, W) of each level, finest first.
            padded: (height, width) in pixels that they were computed from.
        """

    @abstractmethod
    def losses(
        self, features: Sequence[Tensor], sizes: Tensor, padded: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """Returns scalar losses by name; ``sizes`` (N, 2) are the images' heights and widths."""

    @abstractmethod
    def describe(self) -> str:
        """Returns a short description for comparisons."""

    def logits(self, feature: Tensor) -> Tensor:
        """Returns logits (N, M_l, K) of a level (N, C, H, W); the layer's rows of a class lie together."""
        maps = self.classes(self.class_tower(feature)).permute(0, 2, 3, 1)  # (N, H, W, K * A)
        rows = maps.unflatten(-1, (self.num_classes, -1)).transpose(-1, -2)  # (N, H, W, A, K)
        return at_least_single(rows.reshape(len(feature), -1, self.num_classes))


class OneStage(Architecture):
    """Losses for images with targets, detections for images without.

    Args:
        backbone: the trunk; its features, finest first, feed the head.
        head: predicts classes and boxes.
        postprocess: selects the detections among them.
        clip_first: boxes are clipped to the image before NMS; else after it.
    """

    def __init__(
        self, backbone: Backbone, head: DenseHead, *, postprocess: Postprocessor, clip_first: bool = True
    ) -> None:
        super().__init__(backbone)
        self.head, self.postprocess, self.clip_first = head, postprocess, clip_first

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
        """Returns losses by name if there are targets, else each image's detections, in pixels of ``images``.

        Raises:
            ValueError: ``proposals`` are given, which it does not use.
        """
        if proposals is not None:
            raise ValueError(f"{self.name} takes no proposals; choose architecture faster_rcnn for them")
        if targets is None:
            return self.detect(images).ragged()
        targets = self.padded_targets(images, targets)
        return self.head.losses(self.features(images), images.sizes, self.normalize.padded(images), targets)

    def detect(self, images: ImageBatch) -> Found:
        """Returns detections padded to the same number per image: a test as one graph."""
        found = self.head(self.features(images), self.normalize.padded(images))
        clipped = clip(found.boxes, images.sizes)
        valid = (found.scores > self.postprocess.score_threshold) & not_empty(clipped)
        boxes, scores = clipped if self.clip_first else found.boxes, found.scores.masked_fill(~valid, -torch.inf)
        found = self.postprocess.choose(replace(found, boxes=boxes, valid=valid, scores=scores))
        return found if self.clip_first else replace(found, boxes=clip(found.boxes, images.sizes))

    def head_modules(self) -> list[nn.Module]:
        """Returns the head."""
        return [self.head]

    def facts(self) -> Mapping[str, str]:
        """Returns the facts, by name, that a comparison lists besides the backbone."""
        return {"head": self.head.describe()}


@dataclass(frozen=True, slots=True)
class Picked:
    """The best scores of a level."""

    rows: Tensor  # (N, T) int64, of the level's boxes
    labels: Tensor  # (N, T) int64
    scores: Tensor  # (N, T)


def pick(scores: Tensor, count: int) -> Picked:
    """Returns the ``count`` best of the ``scores`` (N, M_l, K) of a level, or all, in the order of their places.

    NMS then breaks ties by position, independently of the batch.
    """
    flat, classes = scores.flatten(1), scores.shape[2]
    columns = flat.topk(min(count, flat.shape[1]), dim=1).indices.sort(dim=1).values
    return Picked(columns // classes, columns % classes, flat.gather(1, columns))


def _tower(channels: int, count: int, norm: NormLayer | None, *, bias: bool) -> nn.Sequential:
    """Returns ``count`` 3x3 convolutions of ``channels``, with ReLU, from a Gaussian of the paper's deviation 0.01."""
    layers = conv_layers(channels, channels, count, norm, bias=bias)
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
    return layers


def output_layer(in_channels: int, out_channels: int, *, bias: float = 0.0) -> nn.Conv2d:
    """Returns a 3x3 convolution, from a Gaussian of deviation 0.01, whose biases begin with ``bias``."""
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
