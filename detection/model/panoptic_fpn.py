"""Panoptic FPN's semantic branch: labels of every pixel, from the same pyramid as boxes and masks.

All things are its first class; the masks tell them apart.  model/panoptic_merge.py merges both.

Source: "Panoptic Feature Pyramid Networks" (Kirillov et al. 2019), section 3; one class for all things as in
Detectron2.
Shapes: N images, C channels, S classes of stuff, h w height and width of a feature map, H W those of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detection.model.semantic import LabelHead, pixel_logits, pixel_loss
from detection.padded import Found, Targets
from detection.structures import VOID

__all__ = ["LabelStage", "stuff_labels"]


class LabelStage(nn.Module):
    """Losses and scores of things as one class and of each class of stuff, at every pixel.

    Args:
        head: logits (N, 1 + S, h, w) of the pyramid's levels.
        num_things: number of things, which are the first labels of the label maps.
        loss_weight: weight of its loss; those of boxes and masks have 1.
    """

    def __init__(self, head: LabelHead, *, num_things: int, loss_weight: float) -> None:
        super().__init__()
        self.head, self.num_things, self.loss_weight = head, num_things, loss_weight

    def losses(self, features: Sequence[Tensor], targets: Targets, padded: tuple[int, int]) -> dict[str, Tensor]:
        """Returns the loss "semantic", a scalar.

        Args:
            features: (N, C, h, w) of the levels, finest first.
            targets: with label maps of things and stuff.
            padded: (height, width) of the batch with the network's padding.

        Raises:
            ValueError: targets without label maps.
        """
        if targets.label_maps is not None:
            targets = replace(targets, label_maps=stuff_labels(targets.label_maps, self.num_things))
        return {"semantic": pixel_loss(self.head(features), targets, padded) * self.loss_weight}

    def forward(
        self, features: Sequence[Tensor], found: Found, *, size: tuple[int, int], padded: tuple[int, int]
    ) -> Found:
        """Returns ``found`` with scores (N, 1 + S, H, W) of the batch of ``size``, which was padded to ``padded``."""
        logits = pixel_logits(self.head(features), padded)
        return replace(found, label_scores=logits[:, :, : size[0], : size[1]])

    def describe(self) -> str:
        """Returns its layers."""
        return self.head.describe()


def stuff_labels(labels: Tensor, num_things: int) -> Tensor:
    """Returns ``labels`` uint8 with 0 for every thing and 1..S for stuff; VOID stays.

    Args:
        labels: 0..num_things-1 of things, then of stuff; any shape.
        num_things: how many.
    """
    stuff = (labels.short() - (num_things - 1)).clamp(min=0)
    return torch.where(labels == VOID, VOID, stuff).to(torch.uint8)
