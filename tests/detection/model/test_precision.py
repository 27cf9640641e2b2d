"""Mirrors detection/model/precision.py."""

from __future__ import annotations

import pytest
import torch

from detection.model.box_coder import BoxCoder
from detection.model.losses import smooth_l1
from detection.model.precision import at_least_single


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_rises_and_nothing_falls(given: torch.dtype, kept: torch.dtype) -> None:
    assert at_least_single(torch.ones(2, dtype=given)).dtype == kept
    deltas, anchors = torch.zeros(1, 4, dtype=given), torch.tensor([[0.0, 0, 1 / 3, 1]], dtype=torch.float64)
    assert BoxCoder().decode(deltas, anchors).dtype == kept
    assert smooth_l1(deltas, anchors, 1.0, torch.ones(1)).dtype == kept


def test_a_box_keeps_what_float32_would_lose() -> None:
    anchors = torch.tensor([[0.0, 0.0, 1000 + 1e-9, 10.0]], dtype=torch.float64)
    assert BoxCoder().decode(torch.zeros(1, 4, dtype=torch.float64), anchors)[0, 2] != 1000
