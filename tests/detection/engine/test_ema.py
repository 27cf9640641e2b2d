"""Mirrors detection/engine/ema.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detection.engine.ema import EMA


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def move(model: nn.Module) -> None:
    """Changes every weight and statistic."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.ones_like(tensor) if tensor.dtype == torch.int64 else torch.rand_like(tensor))


def test_the_average_by_hand_with_the_warm_up_of_the_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 4.0)
    ema, expected = EMA(model, 0.3), 4.0
    for step, decay in enumerate([2 / 11, 3 / 12, 0.3, 0.3], start=1):  # 4 / 13 is above 0.3
        nn.init.constant_(model.weight, float(step))
        ema.update(model)
        expected = decay * expected + (1 - decay) * step
        assert next(ema.model.parameters()).item() == pytest.approx(expected)
        assert ema.steps == step


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = make_model()
    ema = EMA(model, 0.9)
    before = {name: value.clone() for name, value in ema.model.state_dict().items()}
    move(model)
    ema.update(model)
    after, now = ema.model.state_dict(), model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(after[name], before[name] * 2 / 11 + now[name] * 9 / 11)
    assert after["1.num_batches_tracked"] == now["1.num_batches_tracked"] == 1


def test_the_model_and_its_average_are_apart() -> None:
    model = make_model()
    ema = EMA(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    move(ema.model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ema.model.eval()
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_never_moves_stays_exactly() -> None:
    model = make_model()
    ema = EMA(model, 0.9)
    for _ in range(5):
        ema.update(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ema.model.state_dict().items())
