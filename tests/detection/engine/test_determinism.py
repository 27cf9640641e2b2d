"""Mirrors detection/engine/determinism.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detection.engine.determinism import fixed_order


def gradients(times: int) -> list[Tensor]:
    """Of rows that are taken many times each: on the CPU its threads add them up as they come."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2000, 64, generator=generator)
    rows, weights = torch.randint(0, 50, (40000,), generator=generator), torch.randn(40000, 64, generator=generator)
    found = []
    for _ in range(times):
        leaf = table.clone().requires_grad_()
        leaf[rows].backward(weights)
        assert leaf.grad is not None
        found.append(leaf.grad)
    return found


def test_several_threads_add_in_the_same_order() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with fixed_order(True):
            first, *others = gradients(6)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("enabled", [True, False])
def test_holds_inside_only(enabled: bool) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with fixed_order(enabled):
        assert torch.are_deterministic_algorithms_enabled() == enabled
    assert not torch.are_deterministic_algorithms_enabled()


def test_ends_with_an_error_too() -> None:
    with pytest.raises(ValueError, match="x"), fixed_order(True):
        raise ValueError("x")
    assert not torch.are_deterministic_algorithms_enabled()
