"""Region proposal network, over one feature map or the levels of a pyramid.

Source: Faster R-CNN, section 3.1; "Feature Pyramid Networks", section 4.1.
Shapes: N images, C channels, A anchors per cell, L levels, R_l = H * W * A anchors of an image at one level, R at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import batched_nms

from detection.boxes import clip, inside
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.losses import smooth_l1
from detection.model.matcher import Matcher
from detection.model.precision import at_least_single
from detection.model.sampler import BalancedSampler
from detection.structures import Proposals, Target

__all__ = ["RPN", "ProposalFilter", "RPNHead"]


class RPNHead(nn.Module):
    """3x3 convolutions, then objectness and box deltas of the A anchors at every cell; the same on every level."""

    def __init__(self, in_channels: int, *, channels: int, num_anchors: int, convs: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.more = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs - 1)])
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for layer in (self.conv, *self.more, self.objectness, self.deltas):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)  # Faster R-CNN, section 3.1.3
            nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, R_l) and deltas (N, R_l, 4) from one level (N, C, H, W), in the order of the anchors."""
        hidden = F.relu(self.conv(feature))
        for layer in self.more:
            hidden = F.relu(layer(hidden))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)  # (N, A, H, W) -> (N, H * W * A)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1)  # (N, H, W, A * 4)
        return at_least_single(logits), at_least_single(deltas.reshape(len(feature), -1, 4))


class ProposalFilter:
    """Which decoded anchors become proposals: the best of each level, clipped, not tiny, and not doubled.

    Args:
        pre_nms: how many of a level's best scores enter NMS, which is done within each level.
        post_nms: how many proposals an image keeps.
        nms_iou: IoU above which the worse of two boxes goes.
        min_size: shortest side, pixels of the resized image.
    """

    def __init__(self, *, pre_nms: int, post_nms: int, nms_iou: float, min_size: float) -> None:
        self.pre_nms, self.post_nms, self.nms_iou, self.min_size = pre_nms, post_nms, nms_iou, min_size

    def top(self, logits: Tensor) -> Tensor:
        """Columns (N, <= pre_nms) of the best ``logits`` (N, R_l) of one level, best first."""
        return logits.topk(min(self.pre_nms, logits.shape[1]), dim=1).indices

    def __call__(self, boxes: Tensor, logits: Tensor, levels: Tensor, size: tuple[int, int]) -> Proposals:
        """Proposals from ``boxes`` (R, 4) with ``logits`` and ``levels`` (R,), best first, in an image of ``size``."""
        boxes = clip(boxes, size)
        sides = boxes[:, 2:] - boxes[:, :2]
        large = (sides >= self.min_size).all(dim=1) & (sides > 0).all(dim=1)
        boxes, logits, levels = boxes[large], logits[large], levels[large]
        kept = batched_nms(boxes, logits, levels, self.nms_iou)[: self.post_nms]
        return Proposals(boxes=boxes[kept], scores=logits[kept])


class RPN(nn.Module):
    """Proposals and, given targets, the two losses of the region proposal network.

    Args:
        anchors: those of each level.
        head: logits and deltas from a level.
        matcher, sampler, coder: how anchors are labelled, drawn and encoded.
        train_filter, test_filter: which boxes become proposals.
        allow_outside: whether anchors that cross the image border are trained on.
        smooth_l1_beta, box_loss_weight: of the box loss.
    """

    def __init__(
        self,
        anchors: Sequence[AnchorGenerator],
        head: RPNHead,
        *,
        matcher: Matcher,
        sampler: BalancedSampler,
        train_filter: ProposalFilter,
        test_filter: ProposalFilter,
        coder: BoxCoder | None = None,
        allow_outside: bool = False,
        smooth_l1_beta: float = 1 / 9,
        box_loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.anchors, self.head = nn.ModuleList(anchors), head
        self.matcher, self.sampler, self.coder = matcher, sampler, coder or BoxCoder()
        self.train_filter, self.test_filter = train_filter, test_filter
        self.allow_outside = allow_outside
        self.smooth_l1_beta, self.box_loss_weight = smooth_l1_beta, box_loss_weight

    def forward(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[Proposals]:
        """Test-time proposals of each image.

        Args:
            features: of each level (N, C, H, W).
            sizes: (height, width) of each image.
            padded: (height, width) of the batch that the features were computed from.
        """
        logits, deltas = self._predict(features)
        return self._proposals(logits, deltas, self._anchors(features, padded), sizes, self.test_filter)

    def losses(
        self,
        features: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        padded: tuple[int, int],
        targets: Sequence[Target],
        draws: Sequence[torch.Generator | None] | None = None,
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Training proposals of each image, without a gradient, and the losses ``rpn_objectness`` and ``rpn_box``.

        ``draws`` has the source of each image's random numbers; None: torch's own.
        """
        level_logits, level_deltas = self._predict(features)
        level_anchors = self._anchors(features, padded)
        proposals = self._proposals(level_logits, level_deltas, level_anchors, sizes, self.train_filter)
        anchors, logits, deltas = torch.cat(level_anchors), torch.cat(level_logits, 1), torch.cat(level_deltas, 1)
        images = zip(sizes, targets, draws or [None] * len(targets), strict=True)
        samples = [self._sample(anchors, size, target, draw) for size, target, draw in images]
        objectness, box, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for row, (positives, negatives, goals) in enumerate(samples):
            drawn = torch.cat([positives, negatives])
            labels = (torch.arange(len(drawn), device=drawn.device) < len(positives)).to(logits.dtype)
            objectness = objectness + F.binary_cross_entropy_with_logits(logits[row, drawn], labels, reduction="sum")
            box = box + smooth_l1(deltas[row, positives], goals, self.smooth_l1_beta)
            count += len(drawn)
        scale = 1 / max(count, 1)
        return proposals, {"rpn_objectness": objectness * scale, "rpn_box": box * scale * self.box_loss_weight}

    def _predict(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, R_l) and deltas (N, R_l, 4) of every level."""
        outputs = [self.head(feature) for feature in features]
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]

    def _anchors(self, features: Sequence[Tensor], padded: tuple[int, int]) -> list[Tensor]:
        """Anchors (R_l, 4) of every level."""
        pairs = zip(self.anchors, features, strict=True)
        return [anchors(feature.shape[-2], feature.shape[-1], padded) for anchors, feature in pairs]

    @torch.no_grad()
    def _sample(
        self, anchors: Tensor, size: tuple[int, int], target: Target, draw: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positive (P,) and negative (Q,) rows of ``anchors``, and the deltas (P, 4) wanted of the positives."""
        height, width = size
        in_padding = (anchors[:, 0] >= width) | (anchors[:, 1] >= height)
        usable = ~in_padding if self.allow_outside else inside(anchors, size)
        rows = usable.nonzero().flatten()
        matches = self.matcher(anchors[rows], target)
        positives, negatives = self.sampler(matches.states, draw)
        goals = self.coder.encode(target.boxes[matches.indices[positives]], anchors[rows[positives]])
        return rows[positives], rows[negatives], goals

    @torch.no_grad()
    def _proposals(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        keep: ProposalFilter,
    ) -> list[Proposals]:
        boxes, scores, levels = list[Tensor](), list[Tensor](), list[Tensor]()
        for number, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
            top = keep.top(level_logits)  # (N, T)
            chosen = level_deltas.gather(1, top[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen, level_anchors[top]))  # (N, T, 4)
            scores.append(level_logits.gather(1, top))
            levels.append(torch.full_like(top[0], number))
        joined = zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True)
        return [keep(image, image_scores, torch.cat(levels), size) for image, image_scores, size in joined]
