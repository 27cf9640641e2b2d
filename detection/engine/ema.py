"""Exponential moving average of a model's weights: tested instead of the last step's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

__all__ = ["EMA"]


class EMA:
    """A copy of a model whose weights are averaged over the steps of the original.

    Floating-point buffers, such as batch-norm statistics, are averaged too; counters are copied.  Step t = 1, 2, ..
    takes a decay of min(decay, (1 + t) / (10 + t)), so that the initial weights are soon forgotten.

    Args:
        model: the trained one, which is copied.
        decay: 0..1, the share of the old average that a step keeps.

    Source: the decay at the start is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = deepcopy(model).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average with the weights of ``model``, the trained one."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)
