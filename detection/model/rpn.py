"""Region proposal network.

Source: Faster R-CNN, section 3.1.
Shapes: N images, C channels, A anchors per cell, R = H * W * A anchors of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import nms

from detection.boxes import clip, inside
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.losses import smooth_l1
from detection.model.matcher import Matcher
from detection.model.sampler import BalancedSampler
from detection.structures import Proposals, Target

__all__ = ["RPN", "ProposalFilter", "RPNHead"]


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas of the A anchors at every cell."""

    def __init__(self, in_channels: int, *, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # Faster R-CNN, section 3.1.3
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  # a convolution made with a bias has one

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, R) and deltas (N, R, 4) from ``feature`` (N, C, H, W), in the order of the anchors."""
        hidden = F.relu(self.conv(feature))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)  # (N, A, H, W) -> (N, H * W * A)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1)  # (N, H, W, A * 4)
        return logits.float(), deltas.reshape(len(feature), -1, 4).float()


class ProposalFilter:
    """Which decoded anchors become proposals: the best, clipped, not tiny, and not doubled.

    Args:
        pre_nms: how many of the best scores enter NMS.
        post_nms: how many proposals an image keeps.
        nms_iou: IoU above which the worse of two boxes goes.
        min_size: shortest side, pixels of the resized image.
    """

    def __init__(self, *, pre_nms: int, post_nms: int, nms_iou: float, min_size: float) -> None:
        self.pre_nms, self.post_nms, self.nms_iou, self.min_size = pre_nms, post_nms, nms_iou, min_size

    def top(self, logits: Tensor) -> Tensor:
        """Rows of the ``pre_nms`` best of ``logits`` (R,), best first."""
        return logits.topk(min(self.pre_nms, len(logits))).indices

    def __call__(self, boxes: Tensor, logits: Tensor, size: tuple[int, int]) -> Proposals:
        """Proposals from ``boxes`` (R, 4) with ``logits`` (R,), best first, in an image of ``size``."""
        boxes = clip(boxes, size)
        sides = boxes[:, 2:] - boxes[:, :2]
        large = (sides >= self.min_size).all(dim=1) & (sides > 0).all(dim=1)
        boxes, logits = boxes[large], logits[large]
        kept = nms(boxes, logits, self.nms_iou)[: self.post_nms]
        return Proposals(boxes=boxes[kept], scores=logits[kept])


class RPN(nn.Module):
    """Proposals and, given targets, the two losses of the region proposal network.

    Args:
        anchors: the anchors of the feature map.
        head: logits and deltas from the feature map.
        matcher, sampler, coder: how anchors are labelled, drawn and encoded.
        train_filter, test_filter: which boxes become proposals.
        allow_outside: whether anchors that cross the image border are trained on.
        smooth_l1_beta, box_loss_weight: of the box loss.
    """

    def __init__(
        self,
        anchors: AnchorGenerator,
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
        self.anchors, self.head = anchors, head
        self.matcher, self.sampler, self.coder = matcher, sampler, coder or BoxCoder()
        self.train_filter, self.test_filter = train_filter, test_filter
        self.allow_outside = allow_outside
        self.smooth_l1_beta, self.box_loss_weight = smooth_l1_beta, box_loss_weight

    def forward(self, feature: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """Test-time proposals of each image from ``feature`` (N, C, H, W)."""
        logits, deltas = self.head(feature)
        return self._proposals(logits, deltas, self.anchors(*feature.shape[-2:]), sizes, self.test_filter)

    def losses(
        self, feature: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Training proposals of each image, without a gradient, and the losses ``rpn_objectness`` and ``rpn_box``."""
        logits, deltas = self.head(feature)
        anchors = self.anchors(*feature.shape[-2:])
        proposals = self._proposals(logits, deltas, anchors, sizes, self.train_filter)
        samples = [self._sample(anchors, size, target) for size, target in zip(sizes, targets, strict=True)]
        objectness, box, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for row, (positives, negatives, goals) in enumerate(samples):
            drawn = torch.cat([positives, negatives])
            labels = (torch.arange(len(drawn), device=drawn.device) < len(positives)).float()
            objectness = objectness + F.binary_cross_entropy_with_logits(logits[row, drawn], labels, reduction="sum")
            box = box + smooth_l1(deltas[row, positives], goals, self.smooth_l1_beta)
            count += len(drawn)
        scale = 1 / max(count, 1)
        return proposals, {"rpn_objectness": objectness * scale, "rpn_box": box * scale * self.box_loss_weight}

    @torch.no_grad()
    def _sample(self, anchors: Tensor, size: tuple[int, int], target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Positive (P,) and negative (Q,) rows of ``anchors``, and the deltas (P, 4) wanted of the positives."""
        height, width = size
        in_padding = (anchors[:, 0] >= width) | (anchors[:, 1] >= height)
        usable = ~in_padding if self.allow_outside else inside(anchors, size)
        rows = usable.nonzero().flatten()
        matches = self.matcher(anchors[rows], target)
        positives, negatives = self.sampler(matches.states)
        goals = self.coder.encode(target.boxes[matches.indices[positives]], anchors[rows[positives]])
        return rows[positives], rows[negatives], goals

    @torch.no_grad()
    def _proposals(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        sizes: Sequence[tuple[int, int]],
        keep: ProposalFilter,
    ) -> list[Proposals]:
        proposals = []
        for image_logits, image_deltas, size in zip(logits, deltas, sizes, strict=True):
            top = keep.top(image_logits)
            boxes = self.coder.decode(image_deltas[top], anchors[top])
            proposals.append(keep(boxes, image_logits[top], size))
        return proposals
