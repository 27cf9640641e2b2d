"""Localises given classes by a region proposal network with outputs per class, and an R-CNN on warped regions.

An image classifier predicts the class; these two networks predict only the box.
Source: "Deep Residual Learning for Image Recognition", appendix C.
Shapes: N images, C channels, H W height and width, A anchors per cell, R = H * W * A anchors of an image, M sampled
anchors, K classes, Q requested classes, T best anchors of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import Backbone
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.losses import smooth_l1
from detection.model.matcher import Matcher
from detection.model.normalize import Normalize
from detection.model.rpn import ANCHORS, ProposalFilter, places, usable_anchors
from detection.model.sampler import BalancedSampler
from detection.model.select import gather_rows, hash32
from detection.padded import Regions, Targets
from detection.structures import Detections, ImageBatch

__all__ = ["ClassLayers", "ClassRPN", "RegionClassifier"]


class ClassLayers(nn.Module):
    """The two sibling 1x1 convolutions: K logits and K x 4 deltas for each of the A anchors of a cell.

    With K = 1000 their whole output is too large, so they are linear layers on single cells: training computes sampled
    cells, and a test computes the rows of the requested classes.
    """

    def __init__(self, channels: int, *, num_anchors: int, num_classes: int) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes
        self.classes = nn.Linear(channels, num_anchors * num_classes)
        self.deltas = nn.Linear(channels, num_anchors * num_classes * 4)
        _initialise(self.classes, self.deltas, num_classes)

    def forward(self, cells: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (R, Q) and deltas (R, Q, 4) of ``classes`` (Q,) at all ``cells`` (H * W, C) of an image."""
        rows = (torch.arange(self.num_anchors, device=classes.device)[:, None] * self.num_classes + classes).flatten()
        deltas = (rows[:, None] * 4 + torch.arange(4, device=rows.device)).flatten()
        logits = F.linear(cells, self.classes.weight[rows], self.classes.bias[rows])  # (H * W, A * Q)
        moves = F.linear(cells, self.deltas.weight[deltas], self.deltas.bias[deltas])  # (H * W, A * Q * 4)
        shape = (self.num_anchors, len(classes))
        return logits.unflatten(1, shape).flatten(0, 1).float(), moves.unflatten(1, (*shape, 4)).flatten(0, 1).float()

    def logits_at(self, vectors: Tensor, anchors: Tensor) -> Tensor:
        """Returns logits (M, K) of the ``anchors`` (M,), 0..A-1, of the cells that ``vectors`` (M, C) belong to."""
        weights = self.classes.weight.unflatten(0, (self.num_anchors, -1))
        biases = self.classes.bias.unflatten(0, (self.num_anchors, -1))
        order = anchors.argsort()
        parts = vectors[order].split(anchors.bincount(minlength=self.num_anchors).tolist())
        logits = [F.linear(*part) for part in zip(parts, weights, biases, strict=True)]
        return torch.cat(logits)[order.argsort()].float()

    def deltas_at(self, vectors: Tensor, anchors: Tensor, labels: Tensor) -> Tensor:
        """Returns deltas (M, 4) of one class ``labels`` (M,) each; other arguments as for ``logits_at``."""
        shape = (self.num_anchors, self.num_classes, 4)
        weights = self.deltas.weight.unflatten(0, shape)[anchors, labels]  # (M, 4, C)
        moves = (weights @ vectors[:, :, None]).squeeze(2)
        return moves.float() + self.deltas.bias.unflatten(0, shape)[anchors, labels]


class ClassRPN(nn.Module):
    """A region proposal network that proposes boxes of given classes.

    Args:
        backbone: the trunk; its last feature map is used.
        anchors: the anchors of that feature map.
        num_classes: K.
        channels: C, channels of the 3x3 convolution.
        matcher, sampler, coder: label, sample and encode anchors.
        keep: selects the boxes of a class that become proposals.
        allow_outside: whether anchors that cross the image border are trained on.
        smooth_l1_beta, box_loss_weight: of the box loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        anchors: AnchorGenerator,
        *,
        num_classes: int,
        channels: int,
        matcher: Matcher,
        sampler: BalancedSampler,
        keep: ProposalFilter,
        coder: BoxCoder | None = None,
        allow_outside: bool = False,
        smooth_l1_beta: float = 1 / 9,
        box_loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone, self.anchors = backbone, anchors
        self.normalize = Normalize(backbone.input_stats)
        self.feature, spec = list(backbone.specs.items())[-1]
        self.conv = nn.Conv2d(spec.channels, channels, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # pyright: ignore[reportArgumentType]  # a convolution made with a bias has one
        self.layers = ClassLayers(channels, num_anchors=anchors.num_anchors, num_classes=num_classes)
        self.matcher, self.sampler, self.coder = matcher, sampler, coder or BoxCoder()
        self.keep, self.allow_outside = keep, allow_outside
        self.smooth_l1_beta, self.box_loss_weight = smooth_l1_beta, box_loss_weight

    def forward(self, images: ImageBatch, targets: Targets, proposals: Regions | None = None) -> dict[str, Tensor]:
        """Returns the losses ``rpn_class`` and ``rpn_box``; ``proposals``, an argument of all models, is not used."""
        hidden = self.hidden(images)
        image, rows, labels, goals = self._draw(hidden, images, targets)
        cells, numbers = rows // self.anchors.num_anchors, rows % self.anchors.num_anchors
        vectors = _cells(hidden)[image, cells]  # (M, C)
        logits = self.layers.logits_at(vectors, numbers)
        positives = (labels < self.layers.num_classes).nonzero().flatten()
        deltas = self.layers.deltas_at(vectors[positives], numbers[positives], labels[positives])
        box = smooth_l1(deltas, goals[positives], self.smooth_l1_beta, weight=torch.ones_like(deltas[:, 0]))
        scale = 1 / max(len(rows), 1)
        return {"rpn_class": _logistic(logits, labels) * scale, "rpn_box": box * scale * self.box_loss_weight}

    def hidden(self, images: ImageBatch) -> Tensor:
        """Returns the input (N, C, H / stride, W / stride) of the sibling layers."""
        return F.relu(self.conv(self.backbone(self.normalize(images))[self.feature]))

    @torch.no_grad()
    def propose(self, hidden: Tensor, sizes: Tensor, classes: Sequence[Tensor]) -> list[Detections]:
        """Returns the boxes of each image's ``classes`` (Q,) that ``keep`` selects: class by class, best first.

        Scores are the logistic outputs of the class, 0..1.  ``sizes`` (N, 2) are the heights and widths.
        """
        anchors = self.anchors(*hidden.shape[-2:])
        parts = zip(_cells(hidden), sizes, classes, strict=True)
        return [self._propose(cells, anchors, size, asked) for cells, size, asked in parts]

    def _propose(self, cells: Tensor, anchors: Tensor, size: Tensor, classes: Tensor) -> Detections:
        logits, deltas = self.layers(cells, classes)
        best, columns = self.keep.top([logits.T])  # (Q, 1, T): one feature map
        asked = torch.arange(len(classes), device=classes.device)[:, None, None]
        boxes = self.coder.decode(deltas[columns, asked], anchors[columns])
        found = self.keep(boxes, best, size.expand(len(classes), 2))
        labels = classes[:, None].expand_as(found.valid)
        return Detections(found.boxes[found.valid], found.scores[found.valid].sigmoid(), labels[found.valid])

    @torch.no_grad()
    def _draw(self, hidden: Tensor, images: ImageBatch, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Samples the M anchors of all images that are trained on, image by image.

        Returns:
            Image (M,), row (M,) among the image's anchors, label (M,), K for a negative, and deltas (M, 4) wanted.
        """
        anchors = self.anchors(*hidden.shape[-2:])
        usable = usable_anchors(anchors, images.sizes, allow_outside=self.allow_outside)
        matches = self.matcher(anchors[None], targets, usable)
        numbers = hash32(images.draw_seeds(), places(anchors), ANCHORS)
        drawn = self.sampler(matches.positive, matches.negative, numbers)
        objects = matches.indices.gather(1, drawn.columns)
        labels = torch.where(drawn.positive, targets.labels.gather(1, objects), self.layers.num_classes)
        own = anchors[drawn.columns]
        goals = torch.where(drawn.positive[..., None], gather_rows(targets.boxes, objects), own)
        image, _ = drawn.valid.nonzero().unbind(1)
        parts = drawn.columns, labels, self.coder.encode(goals, own)
        rows, labels, deltas = (values[drawn.valid] for values in parts)
        return image, rows, labels, deltas


class RegionClassifier(nn.Module):
    """R-CNN: predicts class scores and boxes of regions, each warped to a separate image.

    Args:
        backbone: a classification network, run on the warped regions up to the end of its tail.
        num_classes: K.
        coder: encodes boxes relative to their region.
        smooth_l1_beta, box_loss_weight: of the box loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        coder: BoxCoder,
        smooth_l1_beta: float = 1.0,
        box_loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone, self.tail = backbone, backbone.tail()
        self.normalize = Normalize(backbone.input_stats)
        self.feature = list(backbone.specs)[-1]
        self.classes = nn.Linear(self.tail.out_channels, num_classes)
        self.deltas = nn.Linear(self.tail.out_channels, num_classes * 4)
        _initialise(self.classes, self.deltas, num_classes)
        self.coder = coder
        self.smooth_l1_beta, self.box_loss_weight = smooth_l1_beta, box_loss_weight

    def forward(self, images: ImageBatch, targets: Targets, proposals: Regions | None = None) -> dict[str, Tensor]:
        """Returns the losses ``rcnn_class`` and ``rcnn_box`` of warped regions; ``proposals`` are not used.

        A target holds the object that its region must find, in pixels of the warped region, or nothing.
        """
        logits, deltas = self._outputs(images)  # (N, K), (N, K, 4)
        positive, objects = targets.valid[:, 0], targets.labels[:, 0]
        labels = torch.where(positive, objects, logits.shape[1])
        corners = images.sizes.flip(1).to(deltas.dtype)
        whole = torch.cat([torch.zeros_like(corners), corners], dim=1)
        goals = torch.where(positive[:, None], targets.boxes[:, 0], whole)
        own = deltas[torch.arange(len(objects), device=objects.device), objects]
        box = smooth_l1(own, self.coder.encode(goals, whole), self.smooth_l1_beta, weight=positive)
        scale = 1 / len(images)
        return {"rcnn_class": _logistic(logits, labels) * scale, "rcnn_box": box * scale * self.box_loss_weight}

    @torch.no_grad()
    def predict(self, images: ImageBatch, regions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scores (M,), 0..1, and boxes (M, 4) of one class ``labels`` (M,) per warped region.

        ``regions`` (M, 4) are the boxes that ``images`` were cut from; the returned boxes are in the same pixels.
        """
        logits, deltas = self._outputs(images)
        rows = torch.arange(len(labels), device=labels.device)
        return logits[rows, labels].sigmoid(), self.coder.decode(deltas[rows, labels], regions)

    def _outputs(self, images: ImageBatch) -> tuple[Tensor, Tensor]:
        feature = self.backbone(self.normalize(images))[self.feature]
        vectors = self.tail(self.tail.pool_whole_image(feature))
        return self.classes(vectors).float(), self.deltas(vectors).unflatten(1, (-1, 4)).float()


def _cells(hidden: Tensor) -> Tensor:
    """Maps (N, C, H, W) to (N, H * W, C)."""
    return hidden.permute(0, 2, 3, 1).flatten(1, 2)


def _logistic(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the sum over ``logits`` (M, K) of K binary cross-entropies; the label K (M,) is none of the classes."""
    wanted = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


def _initialise(classes: nn.Linear, deltas: nn.Linear, num_classes: int) -> None:
    """Draws small random weights; scores begin at 1 / (2 K).

    Half of the samples are positive, for one class of K.  With scores of 1/2 the loss would begin at K ln 2, which is
    693 for 1000 classes.
    """
    for layer in (classes, deltas):
        nn.init.normal_(layer.weight, std=0.01)  # Faster R-CNN, section 3.1.3
        nn.init.zeros_(layer.bias)
    nn.init.constant_(classes.bias, -math.log(2 * num_classes - 1))
