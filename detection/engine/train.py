"""The training loop and the state that it changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from detection.config import SolverConfig
from detection.data.dataset import Batch
from detection.engine.ema import EMA
from detection.engine.optim import clip_gradients, learning_rate, set_learning_rate

__all__ = ["NotFiniteError", "TrainState", "train"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NotFiniteError(RuntimeError):
    """A loss became infinite or not a number."""


@dataclass(slots=True)
class TrainState:
    """All that changes in a run; what a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    iteration: int = 0  # optimizer steps done
    best: float | None = None  # of the chosen metric
    ema: EMA | None = None

    @property
    def tested(self) -> nn.Module:
        """The model that is tested, and whose weights are saved: the averaged one, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights of ``tested``, in types that ``weights_only`` loading admits."""
        device = next(self.model.parameters()).device
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
            "ema": None if self.ema is None else {"steps": self.ema.steps, "trained": self.model.state_dict()},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; sets torch's random state.  ``model`` has the saved weights already.

        Rates, momentum and decay stay those of the config that the run goes on with.  An average of weights that only
        the config has starts from the saved ones.

        Raises:
            ValueError: the optimizer was another one, or had other parameters.
        """
        own, saved = self.optimizer.state_dict(), state["optimizer"]
        counts, saved_counts = ([len(g["params"]) for g in groups["param_groups"]] for groups in (own, saved))
        if counts != saved_counts:
            raise ValueError(
                f"the checkpoint's optimizer has groups of {saved_counts} parameters, this config's has {counts}; "
                "resume with the backbone.freeze_at, norm and solver.fixed that the run began with"
            )
        if ("betas" in own["param_groups"][0]) != ("betas" in saved["param_groups"][0]):
            raise ValueError("the checkpoint is of another solver.optimizer (sgd or adamw); resume with that one")
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": own["param_groups"]})
        averaged = state.get("ema")
        if self.ema is not None:
            self.ema.model.load_state_dict(self.model.state_dict())
            self.ema.steps = averaged["steps"] if averaged else 0
        if averaged:
            self.model.load_state_dict(averaged["trained"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.iteration, self.best = state["iteration"], state["best"]
        torch.set_rng_state(state["random"])
        device = next(self.model.parameters()).device
        if device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], device)


@dataclass(slots=True)
class _Window:
    """Sums since the last report."""

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    data_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        self.steps += 1

    def means(self) -> dict[str, float]:
        steps = max(self.steps, 1)
        seconds = (time.perf_counter() - self.started) / steps
        means = {f"loss/{name}": total / steps for name, total in self.losses.items()}
        means["loss/total"] = sum(means.values())
        return means | {"seconds_per_step": seconds, "data_seconds": self.data_seconds / steps}


def train(
    state: TrainState,
    batches: Iterable[Batch],
    solver: SolverConfig,
    *,
    device: torch.device,
    report: Callable[[int, Mapping[str, float]], None],
    after_step: Callable[[TrainState], None],
) -> None:
    """Takes optimizer steps from ``state.iteration`` to ``solver.iterations``.

    Args:
        state: changed in place.
        batches: ``solver.accumulate`` of them make a step.
        solver: rates, precision, how often to report.
        device: where the model is.
        report: gets the iteration and the means since the last report (losses, learning rate, seconds).
        after_step: called after every step; saves and evaluates when it is due.

    Raises:
        NotFiniteError: a loss is infinite or not a number; the message has the losses, the iteration and the files.
    """
    parts, window = iter(batches), _Window()
    while state.iteration < solver.iterations:
        state.model.train()
        rate = learning_rate(solver, state.iteration)
        set_learning_rate(state.optimizer, rate)
        window.add(_step(state, parts, solver, device, window))
        if state.ema is not None:
            state.ema.update(state.model)
        state.iteration += 1
        if state.iteration % solver.log_every == 0 or state.iteration == solver.iterations:
            report(state.iteration, window.means() | {"learning_rate": rate})
            window = _Window()
        before = time.perf_counter()
        after_step(state)
        window.started += time.perf_counter() - before  # saving and evaluating are no training


def _step(
    state: TrainState, parts: Iterator[Batch], solver: SolverConfig, device: torch.device, window: _Window
) -> dict[str, float]:
    """One optimizer step; the losses, averaged over its parts."""
    sums: dict[str, float] = {}
    state.optimizer.zero_grad(set_to_none=True)
    precision = PRECISIONS[solver.precision]
    for _ in range(solver.accumulate):
        before = time.perf_counter()
        batch = next(parts).to(device)
        window.data_seconds += time.perf_counter() - before
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            losses: dict[str, Tensor] = state.model(batch.images, batch.targets, batch.proposals)
        stacked = torch.stack(list(losses.values()))
        values = dict(zip(losses, stacked.tolist(), strict=True))  # one wait for the device instead of one per loss
        _check_finite(values, state.iteration, batch.paths)
        state.scaler.scale(stacked.sum() / solver.accumulate).backward()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / solver.accumulate
    if solver.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        clip_gradients(state.optimizer, solver.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return sums


def _check_finite(values: Mapping[str, float], iteration: int, paths: Sequence[str]) -> None:
    if not all(math.isfinite(value) for value in values.values()):
        losses = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise NotFiniteError(
            f"loss is not finite at iteration {iteration}: {losses}; images: {', '.join(paths)}. "
            "Lower solver.base_lr, lengthen solver.warmup_iterations or set solver.clip_norm; "
            "tools/check_data.py looks for broken boxes"
        )
