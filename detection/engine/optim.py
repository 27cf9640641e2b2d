"""Optimizer and learning rate."""

from __future__ import annotations

import bisect
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from detection.config.sections import SolverConfig

__all__ = ["build_optimizer", "clip_gradients", "gradient_norm", "learning_rate", "set_learning_rate"]

POLY_POWER = 0.9  # Chen et al. 2017, "Rethinking Atrous Convolution", section 4.1


def build_optimizer(model: nn.Module, solver: SolverConfig) -> Optimizer:
    """Builds SGD with momentum, or AdamW with torch's betas, over the trainable parameters of ``model``.

    Biases have ``bias_lr_factor`` times the learning rate; they, norm layers and PReLU's slopes have no weight decay
    (He et al. 2015, "Delving Deep into Rectifiers", section 2.1).  AdamW ignores ``momentum``.

    Raises:
        ValueError: nothing is trainable.
    """
    # Grouped by kind, not by value, so that a run can resume with other values.
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "bias": [], "norm": []}
    for module in model.modules():
        norm = isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.PReLU))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups["norm" if norm else "bias" if name == "bias" else "weight"].append(parameter)
    if not any(groups.values()):
        raise ValueError("the model has no trainable parameter: backbone.freeze_at fixes all of it")
    factors = {"weight": 1.0, "bias": solver.bias_lr_factor, "norm": 1.0}
    decays = {"weight": solver.weight_decay, "bias": 0.0, "norm": 0.0}
    described = [
        {
            "params": parameters,
            "lr": solver.base_lr * factors[kind],
            "lr_factor": factors[kind],
            "weight_decay": decays[kind],
        }
        for kind, parameters in groups.items()
        if parameters
    ]
    if solver.optimizer == "adamw":
        return AdamW(described, lr=solver.base_lr)
    return SGD(described, lr=solver.base_lr, momentum=solver.momentum)


def learning_rate(solver: SolverConfig, iteration: int) -> float:
    """Returns the learning rate of the step that starts at ``iteration`` (the first is 0)."""
    if iteration < solver.warmup_iterations:
        progress = iteration / solver.warmup_iterations
        warmup = solver.warmup_factor + (1 - solver.warmup_factor) * progress
    else:
        warmup = 1.0
    done = min(iteration / solver.iterations, 1.0)
    if solver.schedule == "cosine":
        factor = (1 + math.cos(math.pi * done)) / 2
    elif solver.schedule == "poly":
        factor = (1 - done) ** POLY_POWER
    else:
        factor = solver.gamma ** bisect.bisect_right(solver.steps, iteration)
    return solver.base_lr * warmup * factor


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of every group to its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def clip_gradients(optimizer: Optimizer, max_norm: float) -> torch.Tensor:
    """Scales all gradients so that their joint norm is at most ``max_norm``; returns the norm before."""
    return nn.utils.clip_grad_norm_(_parameters(optimizer), max_norm)


def gradient_norm(optimizer: Optimizer) -> torch.Tensor:
    """Returns the joint norm of all gradients."""
    return nn.utils.get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
