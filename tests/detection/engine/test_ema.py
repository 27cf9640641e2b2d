from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from detection.engine.ema import EMA

same = partial(torch.testing.assert_close, rtol=0, atol=0)


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


def test_statistics_are_averaged_counters_copied_and_the_model_and_its_average_are_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    ema, before = EMA(model, 0.9), deepcopy(model.state_dict())
    for _ in range(5):
        ema.update(model)
    same(ema.model.state_dict(), before)  # what never moves stays exactly
    ema = EMA(model, 0.9)
    for value in model.state_dict().values():
        value.add_(1 if value.dtype == torch.int64 else torch.rand_like(value))
    same(ema.model.state_dict(), before)
    now = deepcopy(model.state_dict())
    ema.update(model)
    after = ema.model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(after[name], before[name] * 2 / 11 + now[name] * 9 / 11)
    assert after["1.num_batches_tracked"] == now["1.num_batches_tracked"] == 1
    same(model.state_dict(), now)
    ema.model.eval()
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
