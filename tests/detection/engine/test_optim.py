import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detection.config.sections import SolverConfig
from detection.engine.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate

SOLVER = SolverConfig(base_lr=0.1, momentum=0.8, weight_decay=0.02, bias_lr_factor=2.0)
ADAMW = replace(SOLVER, optimizer="adamw")
COSINE: dict[str, Any] = {"schedule": "cosine", "iterations": 200}
WARM_UP: dict[str, Any] = {"warmup_iterations": 100, "warmup_factor": 0.0}


def make_model() -> nn.Module:
    convs = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.Flatten()]
    model = nn.Sequential(*convs, nn.LayerNorm(4), nn.Linear(4, 2), nn.Linear(2, 2), nn.PReLU(2))
    model[7].requires_grad_(False)
    return model


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter that the optimizer has, by name."""
    names, groups = {id(parameter): name for name, parameter in model.named_parameters()}, optimizer.param_groups
    pairs = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(pairs) == len(dict(pairs)), "a parameter occurs twice"
    return dict(pairs)


@pytest.mark.parametrize("solver", [SOLVER, ADAMW])
def test_every_trainable_parameter_has_its_rate_and_decay(solver) -> None:
    model = make_model()
    optimizer = build_optimizer(model, solver)
    kinds = {"weight": ("0.weight", "2.weight", "6.weight"), "bias": ("0.bias", "6.bias")}
    kinds["norm"] = ("1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias", "8.weight")
    for rate in (0.1, 0.3):  # a new rate keeps the factor of the biases
        set_learning_rate(optimizer, rate)
        values = {"weight": (rate, 0.02), "bias": (2 * rate, 0.0), "norm": (rate, 0.0)}
        assert settings(model, optimizer) == {name: values[kind] for kind, names in kinds.items() for name in names}
    layer = nn.Linear(2, 2)
    shared = nn.Sequential(layer, nn.ReLU(), layer)
    assert set(settings(shared, build_optimizer(shared, solver))) == {"0.weight", "0.bias"}
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(make_model().requires_grad_(False), solver)
    assert solver is SOLVER or {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}  # no momentum


def steps(solver: SolverConfig, count: int) -> tuple[float, float]:
    """Weight and bias of 5 after steps with gradients 3 and 1."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 5.0)
    nn.init.constant_(model.bias, 5.0)
    optimizer = build_optimizer(model, solver)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.tensor([[3.0]])).backward()
        optimizer.step()
    return model.weight.item(), model.bias.item()


def test_steps_by_hand() -> None:
    weight, bias, momentum_w, momentum_b = 5.0, 5.0, 0.0, 0.0
    for _ in range(2):
        momentum_w, momentum_b = 0.8 * momentum_w + 3.0 + 0.02 * weight, 0.8 * momentum_b + 1.0
        weight, bias = weight - 0.1 * momentum_w, bias - 0.2 * momentum_b
    assert steps(SOLVER, 2) == pytest.approx((weight, bias))
    # AdamW's first step is the rate times the gradient's sign; its decay is rate times decay times weight.
    assert steps(ADAMW, 1) == pytest.approx((5.0 - 0.1 * 0.02 * 5.0 - 0.1, 5.0 - 0.2))


def test_schedules() -> None:
    cases: list[tuple[Any, dict[int, float]]] = [
        ({"steps": (100, 150), "gamma": 0.5}, {0: 0.1, 99: 0.1, 100: 0.05, 149: 0.05, 150: 0.025, 10**6: 0.025}),
        ({"steps": (), **WARM_UP, "warmup_factor": 0.2}, {0: 0.02, 25: 0.04, 50: 0.06, 99: 0.0992, 100: 0.1}),
        ({"steps": (40,), "gamma": 0.1, **WARM_UP}, {50: 0.1 * 0.5 * 0.1}),
        (COSINE, {0: 0.1, 50: 0.1 * (1 + math.sqrt(0.5)) / 2, 100: 0.05, 200: 0, 300: 0}),
        (COSINE | WARM_UP | {"warmup_iterations": 200}, {0: 0, 100: 0.1 * 0.5 * 0.5}),
        ({"schedule": "poly", "iterations": 200}, {0: 0.1, 100: 0.1 * 0.5**0.9, 200: 0}),
    ]
    for options, rates in cases:
        solver = SolverConfig(base_lr=0.1, **options)
        assert {at: learning_rate(solver, at) for at in rates} == pytest.approx(rates, abs=1e-12)


def test_gradients_are_clipped_by_their_joint_norm() -> None:
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, SOLVER)
    for most, expected in ((1.0, (5.0, 0.6, 0.8)), (10.0, (5.0, 3.0, 4.0))):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
        before = clip_gradients(optimizer, most).item()
        assert (before, model.weight.grad.item(), model.bias.grad.item()) == pytest.approx(expected, rel=1e-4)
