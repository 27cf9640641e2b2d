"""RetinaNet: anchors on every level, of which most are background, trained by the focal loss.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.
Shapes: N images, C channels, H W height and width of a level, A anchors of a cell, M_l = H * W * A anchors of an image
at one level, M at all, K classes, T best scores of a level, D candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.losses import giou, smooth_l1
from detection.model.matcher import Matcher, Matches
from detection.model.one_stage import Dense, DenseHead, pick
from detection.model.precision import at_least_single
from detection.model.rpn import usable_anchors
from detection.model.select import gather_rows
from detection.padded import Found, Targets

__all__ = ["RetinaNetHead"]


class RetinaNetHead(DenseHead):
    """Scores and deltas of the anchors of every level.

    Args:
        in_channels: C of every level.
        anchors: anchors of each level, equally many per cell.
        num_classes: K.
        settings: settings of all one-stage detectors.
        matcher: assigns an object to each anchor.
        use_giou: 1 - GIoU as loss of the boxes, else smooth L1 of the deltas.
        smooth_l1_beta: beta of smooth L1.
    """

    def __init__(
        self,
        in_channels: int,
        anchors: Sequence[AnchorGenerator],
        *,
        num_classes: int,
        settings: Dense,
        matcher: Matcher,
        use_giou: bool = False,
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes=num_classes, boxes=anchors[0].num_anchors, settings=settings)
        self.anchors, self.matcher, self.coder = nn.ModuleList(anchors), matcher, BoxCoder()
        self.use_giou, self.smooth_l1_beta = use_giou, smooth_l1_beta

    def describe(self) -> str:
        """Returns its layers and its anchors."""
        convs, per_cell = self.settings.convs, self.class_rows["classes"].per_class
        return f"RetinaNet, {convs} + {convs} convolutions, {per_cell} anchors a cell"

    def forward(self, features: Sequence[Tensor], padded: tuple[int, int]) -> Found:
        """Returns the best boxes (N, D, 4) of each level with their class; not clipped, all valid."""
        boxes: list[Tensor] = []
        best = [pick(self.logits(feature), self.settings.best) for feature in features]
        for picked, feature, anchors in zip(best, features, self._anchors(features, padded), strict=True):
            deltas = gather_rows(self._deltas(feature), picked.rows)  # (N, T, 4)
            boxes.append(self.coder.decode(deltas, anchors[picked.rows]))
        scores = torch.cat([picked.scores for picked in best], dim=1).sigmoid()
        labels = torch.cat([picked.labels for picked in best], dim=1)
        return Found(torch.cat(boxes, dim=1), torch.ones_like(labels, dtype=torch.bool), scores, labels)

    def losses(
        self, features: Sequence[Tensor], sizes: Tensor, padded: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """Returns the losses ``class``, of all anchors that are not ignored, and ``box``, of the positive ones."""
        logits = torch.cat([self.logits(feature) for feature in features], dim=1)  # (N, M, K)
        deltas = torch.cat([self._deltas(feature) for feature in features], dim=1)  # (N, M, 4)
        anchors = torch.cat(self._anchors(features, padded))
        matches, labels, goals = self._match(anchors, sizes, targets)
        scale = self.scale(matches.positive)
        weight = matches.positive * scale
        if self.use_giou:
            box = giou(self.coder.decode(deltas, anchors), goals, weight)
        else:
            box = smooth_l1(deltas, self.coder.encode(goals, anchors), self.smooth_l1_beta, weight=weight)
        return {
            "class": self.settings.class_loss(logits, labels, matches, scale),
            "box": box * self.settings.box_loss_weight,
        }

    def _deltas(self, feature: Tensor) -> Tensor:
        """Returns deltas (N, M_l, 4) of a level (N, C, H, W), in the order of the anchors."""
        deltas = self.deltas(self.box_tower(feature)).permute(0, 2, 3, 1)  # (N, H, W, A * 4)
        return at_least_single(deltas.reshape(len(feature), -1, 4))

    def _anchors(self, features: Sequence[Tensor], padded: tuple[int, int]) -> list[Tensor]:
        """Returns anchors (M_l, 4) of every level."""
        pairs = zip(self.anchors, features, strict=True)
        return [anchors(feature.shape[-2], feature.shape[-1], padded) for anchors, feature in pairs]

    @torch.no_grad()
    def _match(self, anchors: Tensor, sizes: Tensor, targets: Targets) -> tuple[Matches, Tensor, Tensor]:
        """Returns the matches of ``anchors`` (M, 4), and the label (N, M) and box (N, M, 4) of the object of each.

        The box of an anchor that is not positive is the anchor itself.
        """
        matches = self.matcher(anchors[None], targets, usable_anchors(anchors, sizes, allow_outside=True))
        objects = gather_rows(targets.boxes, matches.indices)
        goals = torch.where(matches.positive[..., None], objects, anchors)
        return matches, targets.labels.gather(1, matches.indices), goals
