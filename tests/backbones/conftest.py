"""What tests of several networks share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from backbones.classifier import Classifier


@pytest.fixture
def assert_trains() -> Callable[..., None]:
    """Asserts that steps on four images of four classes halve the loss, and that all parameters have a part in it."""

    def check(network: Classifier, *, rate: float, steps: int, side: int = 16, last: int) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
        images, labels = torch.randn(4, 3, side, side), torch.arange(4)
        losses: list[float] = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
        assert min(losses[-last:]) < losses[0] / 2

    return check
