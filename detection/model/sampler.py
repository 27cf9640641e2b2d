"""Sampling: the few anchors or regions of an image that enter the loss.

Source: Faster R-CNN, section 3.1.3, and Fast R-CNN, section 2.3.
Shapes: N images, M candidates, R drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BalancedSampler", "Drawn"]

COLUMN_BITS = 24  # of a key below the 32 random ones
AFTER = 1 << 57  # above every key


@dataclass(frozen=True, slots=True)
class Drawn:
    """The sample of every image: positives first, then negatives, then padding."""

    columns: Tensor  # (N, R) int64 0..M-1
    positive: Tensor  # (N, R) bool
    valid: Tensor  # (N, R) bool


@dataclass(frozen=True)
class BalancedSampler:
    """Samples up to ``count`` rows, at most ``positive_fraction`` of them positive; negatives fill the rest."""

    count: int
    positive_fraction: float

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.positive_fraction <= 1:
            raise ValueError(f"a sampler needs count >= 1 and a fraction in 0..1, got {self}")

    @property
    def most_positives(self) -> int:
        """The most rows that can be positive; they are the first columns."""
        return int(self.count * self.positive_fraction)

    def __call__(self, positive: Tensor, negative: Tensor, numbers: Tensor) -> Drawn:
        """Selects the candidates with the smallest random numbers; R is the smaller of ``count`` and M.

        Keys are integers that end in the column, so that no two are equal and every device selects the same.

        Args:
            positive: (N, M) bool; M is at most 2**24.
            negative: (N, M) bool, none of them positive.
            numbers: (N, M) int64 in [0, 2**32).
        """
        available = numbers.shape[1]
        keys = (numbers << COLUMN_BITS) | torch.arange(available, device=numbers.device)
        none, count = torch.full_like(keys, 2 * AFTER), min(self.count, available)
        first = torch.where(positive, keys, none).topk(min(self.most_positives, available), dim=1, largest=False)
        others = torch.where(negative, keys + AFTER, none).topk(count, dim=1, largest=False)
        drawn = torch.cat([first.values, others.values], dim=1).topk(count, dim=1, largest=False)
        columns = torch.cat([first.indices, others.indices], dim=1).gather(1, drawn.indices)
        return Drawn(columns, positive=drawn.values < AFTER, valid=drawn.values < 2 * AFTER)
