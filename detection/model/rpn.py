"""Region proposal network, over one feature map or the levels of a pyramid.

Source: Faster R-CNN, section 3.1; "Feature Pyramid Networks", section 4.1.
Shapes: N images, C channels, A anchors per cell, L levels, M_l = H * W * A anchors of an image at one level, M at all,
T best anchors of a level, P proposals, R drawn anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.boxes import clip, inside
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.losses import smooth_l1
from detection.model.matcher import Matcher
from detection.model.precision import at_least_single
from detection.model.sampler import BalancedSampler, Drawn
from detection.model.select import gather_rows, hash32, nms, pad_columns, select_top, waiting_is_free
from detection.padded import Regions, Targets

__all__ = ["ANCHORS", "RPN", "ProposalFilter", "RPNHead", "places", "usable_anchors"]

ANCHORS = 1  # stream of random numbers, see ``hash32``


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
        """Returns logits (N, M_l) and deltas (N, M_l, 4) from one level (N, C, H, W), in the order of the anchors."""
        hidden = F.relu(self.conv(feature))
        for layer in self.more:
            hidden = F.relu(layer(hidden))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)  # (N, A, H, W) -> (N, H * W * A)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1)  # (N, H, W, A * 4)
        return at_least_single(logits), at_least_single(deltas.reshape(len(feature), -1, 4))


class ProposalFilter:
    """Selects proposals among decoded anchors: the best of each level, clipped, not tiny, after NMS.

    Args:
        pre_nms: number of a level's best scores that enter NMS, which runs within each level.
        post_nms: number of proposals that an image keeps.
        nms_iou: IoU above which the worse of two boxes is removed.
        min_size: shortest side, pixels of the resized image.
    """

    def __init__(self, *, pre_nms: int, post_nms: int, nms_iou: float, min_size: float) -> None:
        self.pre_nms, self.post_nms, self.nms_iou, self.min_size = pre_nms, post_nms, nms_iou, min_size

    def top(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the best logits of each level and their columns among all anchors, (N, L, T) each.

        ``levels`` are logits (N, M_l); T is the most that a level gives, -inf where another has fewer.
        """
        most = max(min(self.pre_nms, logits.shape[1]) for logits in levels)
        best: list[Tensor] = []
        columns: list[Tensor] = []
        first = 0
        for logits in levels:
            top = logits.topk(min(self.pre_nms, logits.shape[1]), dim=1)
            best.append(pad_columns(top.values, most, -torch.inf))
            columns.append(pad_columns(top.indices + first if first else top.indices, most, 0))
            first += logits.shape[1]
        return torch.stack(best, 1), torch.stack(columns, 1)

    def __call__(self, boxes: Tensor, logits: Tensor, sizes: Tensor) -> Regions:
        """Returns the proposals, best first, among ``boxes`` (N, L, T, 4) with ``logits`` (N, L, T).

        ``sizes`` (N, 2) are the images' heights and widths.
        """
        boxes = clip(boxes, sizes)
        sides = boxes[..., 2:] - boxes[..., :2]
        # Clipping may leave a side of 0, which even a minimum of 0 must not admit.
        large = (sides >= max(self.min_size, torch.finfo(sides.dtype).tiny)).all(dim=-1)
        scores = logits.masked_fill(~large, -torch.inf).flatten(0, 1)  # (N * L, T)
        kept = nms(boxes.flatten(0, 1), scores, None, self.nms_iou, self.post_nms)
        columns, logits = select_top(kept.view(len(boxes), boxes.shape[1] * boxes.shape[2]), self.post_nms)
        proposals = Regions(gather_rows(boxes.flatten(1, 2), columns), valid=logits > -torch.inf, scores=logits)
        return proposals.trimmed() if waiting_is_free(logits) else proposals


class RPN(nn.Module):
    """Proposals and, given targets, the two losses of the region proposal network.

    Args:
        anchors: those of each level.
        head: logits and deltas from a level.
        matcher, sampler, coder: label, sample and encode anchors.
        train_filter, test_filter: select proposals in training and in a test.
        allow_outside: whether anchors that cross the image border are trained on.
        smooth_l1_beta, box_loss_weight: beta and weight of the box loss.
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

    def forward(self, features: Sequence[Tensor], sizes: Tensor, padded: tuple[int, int]) -> Regions:
        """Returns test-time proposals.

        Args:
            features: of each level (N, C, H, W).
            sizes: (N, 2), height and width of each image.
            padded: (height, width) of the batch that the features were computed from.
        """
        logits, deltas = self._predict(features)
        return self._proposals(logits, torch.cat(deltas, 1), self._anchors(features, padded), sizes, self.test_filter)

    def losses(
        self, features: Sequence[Tensor], sizes: Tensor, padded: tuple[int, int], targets: Targets, seeds: Tensor
    ) -> tuple[Regions, dict[str, Tensor]]:
        """Returns training proposals, without a gradient, and the losses ``rpn_objectness`` and ``rpn_box``.

        ``seeds`` (N,) seed the sampling of each image's anchors.
        """
        level_logits, level_deltas = self._predict(features)
        anchors, logits, deltas = (
            self._anchors(features, padded),
            torch.cat(level_logits, 1),
            torch.cat(level_deltas, 1),
        )
        proposals = self._proposals(level_logits, deltas, anchors, sizes, self.train_filter)
        drawn, goals = self._sample(anchors, sizes, targets, seeds)
        count = drawn.valid.sum().clamp(min=1)
        objectness = F.binary_cross_entropy_with_logits(
            logits.gather(1, drawn.columns), drawn.positive.to(logits.dtype), weight=drawn.valid, reduction="sum"
        )
        box = smooth_l1(gather_rows(deltas, drawn.columns), goals, self.smooth_l1_beta, weight=drawn.positive)
        return proposals, {"rpn_objectness": objectness / count, "rpn_box": box / count * self.box_loss_weight}

    def _predict(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns logits (N, M_l) and deltas (N, M_l, 4) of every level."""
        outputs = [self.head(feature) for feature in features]
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]

    def _anchors(self, features: Sequence[Tensor], padded: tuple[int, int]) -> Tensor:
        """Returns anchors (M, 4) of all levels."""
        pairs = zip(self.anchors, features, strict=True)
        return torch.cat([anchors(feature.shape[-2], feature.shape[-1], padded) for anchors, feature in pairs])

    @torch.no_grad()
    def _sample(self, anchors: Tensor, sizes: Tensor, targets: Targets, seeds: Tensor) -> tuple[Drawn, Tensor]:
        """Returns the sampled anchors of each image, and the target deltas (N, R, 4) of the positive ones."""
        usable = usable_anchors(anchors, sizes, allow_outside=self.allow_outside)
        matches = self.matcher(anchors[None], targets, usable)
        drawn = self.sampler(matches.positive, matches.negative, hash32(seeds, places(anchors), ANCHORS))
        objects = matches.indices.gather(1, drawn.columns)
        own = anchors[drawn.columns]  # (N, R, 4)
        goals = torch.where(drawn.positive[..., None], gather_rows(targets.boxes, objects), own)
        return drawn, self.coder.encode(goals, own)

    @torch.no_grad()
    def _proposals(
        self, logits: Sequence[Tensor], deltas: Tensor, anchors: Tensor, sizes: Tensor, keep: ProposalFilter
    ) -> Regions:
        best, columns = keep.top(logits)
        chosen = gather_rows(deltas, columns.flatten(1))  # (N, L * T, 4)
        boxes = self.coder.decode(chosen, anchors[columns.flatten(1)])
        return keep(boxes.view(*columns.shape, 4), best, sizes)


def usable_anchors(anchors: Tensor, sizes: Tensor, *, allow_outside: bool) -> Tensor:
    """Tells (N, M) which of ``anchors`` (M, 4) are trained on in images of ``sizes`` (N, 2).

    They begin left of and above the padding; without ``allow_outside`` they lie wholly in the image.
    """
    if not allow_outside:
        return inside(anchors, sizes)
    return (anchors[:, :2] < sizes.flip(1)[:, None]).all(dim=-1)


def places(anchors: Tensor) -> Tensor:
    """Returns a number (M,) int64 in [0, 2**31) for each of ``anchors`` (M, 4), from its place and size alone.

    Sampling by it does not depend on the padding of the batch, unlike the order of the anchors.
    """
    x1, y1, x2, y2 = (anchors * 16).long().unbind(1)
    return (x1 * 73856093 ^ y1 * 19349663 ^ x2 * 83492791 ^ y2 * 39916801) & 0x7FFFFFFF
