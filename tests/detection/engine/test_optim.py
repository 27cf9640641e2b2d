"""Mirrors detection/engine/optim.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from detection.config.sections import SolverConfig
from detection.engine.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate

SOLVER = SolverConfig(base_lr=0.1, momentum=0.8, weight_decay=0.02, bias_lr_factor=2.0)


def make_model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.LayerNorm(4),
        nn.Linear(4, 2),
        nn.Linear(2, 2),
        nn.PReLU(2),
    )
    model[7].requires_grad_(False)
    return model


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter that the optimizer has, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(pairs) == len(dict(pairs)), "a parameter occurs twice"
    return dict(pairs)


def test_every_trainable_parameter_has_its_rate_and_decay() -> None:
    model = make_model()
    weight, bias, norm = (0.1, 0.02), (0.2, 0.0), (0.1, 0.0)
    assert settings(model, build_optimizer(model, SOLVER)) == {
        "0.weight": weight,
        "0.bias": bias,
        "1.weight": norm,
        "1.bias": norm,
        "2.weight": weight,
        "3.weight": norm,
        "3.bias": norm,
        "5.weight": norm,
        "5.bias": norm,
        "6.weight": weight,
        "6.bias": bias,
        "8.weight": norm,
    }


def test_shared_parameters_occur_once() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert set(settings(model, build_optimizer(model, SOLVER))) == {"0.weight", "0.bias"}


def test_step_by_hand() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 5.0)
    nn.init.constant_(model.bias, 5.0)
    optimizer = build_optimizer(model, SOLVER)
    weight, bias, momentum_w, momentum_b = 5.0, 5.0, 0.0, 0.0
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[3.0]])).backward()
        optimizer.step()
        momentum_w, momentum_b = 0.8 * momentum_w + 3.0 + 0.02 * weight, 0.8 * momentum_b + 1.0
        weight, bias = weight - 0.1 * momentum_w, bias - 0.2 * momentum_b
    assert model.weight.item() == pytest.approx(weight)
    assert model.bias.item() == pytest.approx(bias)


def test_adamw_has_the_same_rates_and_decays() -> None:
    model = make_model()
    found = settings(model, build_optimizer(model, replace(SOLVER, optimizer="adamw")))
    assert found == settings(model, build_optimizer(model, SOLVER))


def test_adamw_step_by_hand() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 5.0)
    nn.init.constant_(model.bias, 5.0)
    optimizer = build_optimizer(model, replace(SOLVER, optimizer="adamw"))
    model(torch.tensor([[3.0]])).backward()
    optimizer.step()
    # The first step is the rate times the gradient's sign, whatever its size; decay is rate times decay times weight.
    assert model.weight.item() == pytest.approx(5.0 - 0.1 * 0.02 * 5.0 - 0.1)
    assert model.bias.item() == pytest.approx(5.0 - 0.2)


def test_adamw_takes_no_notice_of_momentum() -> None:
    for momentum in (0.0, 0.8):
        optimizer = build_optimizer(make_model(), replace(SOLVER, optimizer="adamw", momentum=momentum))
        assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}


def test_nothing_trainable_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(make_model().requires_grad_(False), SOLVER)


@pytest.mark.parametrize(
    ("iteration", "expected"), [(0, 0.1), (99, 0.1), (100, 0.05), (149, 0.05), (150, 0.025), (10**6, 0.025)]
)
def test_multistep(iteration: int, expected: float) -> None:
    solver = SolverConfig(base_lr=0.1, steps=(100, 150), gamma=0.5)
    assert learning_rate(solver, iteration) == pytest.approx(expected)


@pytest.mark.parametrize(("iteration", "expected"), [(0, 0.02), (25, 0.04), (50, 0.06), (99, 0.0992), (100, 0.1)])
def test_warmup_is_linear(iteration: int, expected: float) -> None:
    solver = SolverConfig(base_lr=0.1, steps=(), warmup_iterations=100, warmup_factor=0.2)
    assert learning_rate(solver, iteration) == pytest.approx(expected)


def test_warmup_and_steps_multiply() -> None:
    solver = SolverConfig(base_lr=0.1, steps=(40,), gamma=0.1, warmup_iterations=100, warmup_factor=0.0)
    assert learning_rate(solver, 50) == pytest.approx(0.1 * 0.5 * 0.1)


@pytest.mark.parametrize(
    ("iteration", "expected"), [(0, 0.1), (50, 0.1 * (1 + math.sqrt(0.5)) / 2), (100, 0.05), (200, 0.0), (300, 0.0)]
)
def test_cosine(iteration: int, expected: float) -> None:
    solver = SolverConfig(base_lr=0.1, schedule="cosine", iterations=200)
    assert learning_rate(solver, iteration) == pytest.approx(expected, abs=1e-12)


def test_poly() -> None:
    solver = SolverConfig(base_lr=0.1, schedule="poly", iterations=200)
    rates = [learning_rate(solver, iteration) for iteration in (0, 100, 200)]
    assert rates == pytest.approx([0.1, 0.1 * 0.5**0.9, 0.0])


def test_cosine_with_warmup() -> None:
    solver = SolverConfig(base_lr=0.1, schedule="cosine", iterations=200, warmup_iterations=200, warmup_factor=0.0)
    assert learning_rate(solver, 0) == 0
    assert learning_rate(solver, 100) == pytest.approx(0.1 * 0.5 * 0.5)


def test_new_rate_keeps_the_factor_of_the_biases() -> None:
    model = make_model()
    optimizer = build_optimizer(model, SOLVER)
    set_learning_rate(optimizer, 0.3)
    found = settings(model, optimizer)
    assert found["0.weight"] == (0.3, 0.02)
    assert found["0.bias"] == (0.6, 0.0)
    assert found["1.bias"] == (0.3, 0.0)


def test_gradients_are_clipped_by_their_joint_norm() -> None:
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, SOLVER)

    def norm_after(max_norm: float) -> tuple[float, float, float]:
        model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
        before = clip_gradients(optimizer, max_norm).item()
        return before, model.weight.grad.item(), model.bias.grad.item()

    assert norm_after(1.0) == pytest.approx((5.0, 0.6, 0.8), rel=1e-4)
    assert norm_after(10.0) == pytest.approx((5.0, 3.0, 4.0))
