"""Mirrors detection/model/losses.py."""

from __future__ import annotations

import pytest
import torch

from detection.model.losses import smooth_l1


@pytest.mark.parametrize(
    ("x", "beta", "expected"),
    [
        (0.0, 1.0, 0.0),
        (0.5, 1.0, 0.125),
        (1.0, 1.0, 0.5),
        (3.0, 1.0, 2.5),
        (-3.0, 1.0, 2.5),
        (0.1, 0.5, 0.01),
        (0.5, 0.5, 0.25),
        (2.0, 0.5, 1.75),
        (1 / 9, 1 / 9, 1 / 18),
        (1.0, 1 / 9, 17 / 18),
    ],
)
def test_known_values(x: float, beta: float, expected: float) -> None:
    loss = smooth_l1(torch.tensor([[x]]), torch.tensor([[0.0]]), beta)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_sums_over_all_elements() -> None:
    deltas, targets = (
        torch.tensor([[0.5, 3.0, 1.0, 4.0], [2.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 0, 1, 4], [0] * 4]),
    )
    torch.testing.assert_close(smooth_l1(deltas, targets, 1.0), torch.tensor(0.125 + 2.5 + 1.5))


def test_half_precision_is_summed_in_float32() -> None:
    loss = smooth_l1(torch.full((1000, 4), 3.0, dtype=torch.bfloat16), torch.zeros(1000, 4), 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == 10_000


def test_no_rows_give_zero_with_a_gradient() -> None:
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = smooth_l1(deltas, torch.zeros(0, 4), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert deltas.grad is not None
