"""Sampling: the few anchors or regions of an image that enter the loss.

Source: Faster R-CNN, section 3.1.3, and Fast R-CNN, section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detection.model.matcher import NEGATIVE, POSITIVE

__all__ = ["BalancedSampler"]


@dataclass(frozen=True)
class BalancedSampler:
    """Draws up to ``count`` rows at random, of them at most ``positive_fraction`` positive; negatives fill the rest."""

    count: int
    positive_fraction: float

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.positive_fraction <= 1:
            raise ValueError(f"a sampler needs count >= 1 and a fraction in 0..1, got {self}")

    def __call__(self, states: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positive rows (P,) and negative rows (Q,), int64, drawn from ``states`` (R,) of a Matcher.

        ``generator`` is on the device of ``states``; None: torch's own.
        """
        most = int(self.count * self.positive_fraction)
        positives = _draw((states == POSITIVE).nonzero().flatten(), most, generator)
        negatives = _draw((states == NEGATIVE).nonzero().flatten(), self.count - len(positives), generator)
        return positives, negatives


def _draw(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator, device=rows.device)[:count]]
