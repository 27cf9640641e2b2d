"""The training loop and the state that it changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.engine.distributed import exchanges, gather, gradients_wait, mean, rank, replicated, together
from detection.engine.ema import EMA
from detection.engine.optim import clip_gradients, gradient_norm, learning_rate, set_learning_rate

__all__ = ["NotFiniteError", "TrainState", "train"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# A scale of half precision below which nothing is left to divide by; it starts at 65,536.
MIN_LOSS_SCALE = 1e-4

Random = dict[str, Tensor | None]


class NotFiniteError(RuntimeError):
    """A loss or a gradient became infinite or not a number, or the loss scale of half precision collapsed.

    Args:
        message: what, when, and what to do.
        files: the images of the step, part by part.
    """

    def __init__(self, message: str, files: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(message)
        self.files = tuple(map(tuple, files))


@dataclass(slots=True)
class TrainState:
    """All that changes in a run; what a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    iteration: int = 0  # optimizer steps done
    best: float | None = None  # of the chosen metric
    ema: EMA | None = None
    evaluated: int | None = None  # iteration of the last evaluation
    not_finite: int = 0  # steps not taken because a number was not finite
    torn: bool = False  # in the middle of a step, where nothing can be saved

    @property
    def tested(self) -> nn.Module:
        """The model that is tested, and whose weights are saved: the averaged one, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights of ``tested``, in types that ``weights_only`` loading admits.

        All processes call it, since it has the random states of all.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
            "ema": None if self.ema is None else {"steps": self.ema.steps, "trained": self.model.state_dict()},
            "evaluated": self.evaluated,
            "not_finite": self.not_finite,
            "random": gather(_random_state(_device(self.model)), doing="saving"),  # by rank
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; sets torch's random state.  ``model`` has the saved weights already.

        Rates, momentum and decay stay those of the config that the run goes on with.  An average of weights that only
        the config has starts from the saved ones.  A process that the checkpoint does not know draws numbers of its
        own.

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
        self.evaluated, self.not_finite = state["evaluated"], state["not_finite"]
        if rank() < len(state["random"]):
            _set_random_state(state["random"][rank()], _device(self.model))
        else:
            torch.manual_seed(torch.initial_seed() + self.iteration + rank())


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

    def read(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """The next ``count`` of ``batches``, all before the first is computed: one that can't be read tears no step."""
        before = time.perf_counter()
        parts = list(islice(batches, count))
        self.data_seconds += time.perf_counter() - before
        return parts

    def means(self) -> dict[str, float]:
        steps = max(self.steps, 1)
        seconds = (time.perf_counter() - self.started) / steps
        means = {f"loss/{name}": total / steps for name, total in self.losses.items()}
        means["loss/total"] = sum(means.values())
        return means | {"seconds_per_step": seconds, "data_seconds": self.data_seconds / steps}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _random_state(device: torch.device) -> Random:
    """Of torch, the only source of random numbers in the training process: data is seeded by its place in the run."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": on_gpu}


def _set_random_state(saved: Random, device: torch.device) -> None:
    if saved["cpu"] is not None:
        torch.set_rng_state(saved["cpu"])
    if saved["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)


def _stop(_state: TrainState, error: NotFiniteError) -> None:
    raise error


def train(
    state: TrainState,
    batches: Iterable[Batch],
    solver: SolverConfig,
    *,
    device: torch.device,
    report: Callable[[int, Mapping[str, float]], None],
    after_step: Callable[[TrainState], None],
    not_finite: Callable[[TrainState, NotFiniteError], None] = _stop,
) -> None:
    """Takes optimizer steps from ``state.iteration`` to ``solver.iterations``.

    Args:
        state: changed in place.
        batches: ``solver.accumulate`` of them make a step.
        solver: rates, precision, how often to report.
        device: where the model is.
        report: gets the iteration and the means since the last report (losses, learning rate, seconds).
        after_step: called after every step; saves and evaluates when it is due.
        not_finite: called in place of a step whose numbers are not finite, with the state before it; where it returns,
            training goes on with the next batch.

    Raises:
        NotFiniteError: from ``not_finite``; the message has the losses, the iteration and the files.
    """
    source, window, replica = iter(batches), _Window(), replicated(state.model)
    while state.iteration < solver.iterations:
        state.model.train()
        rate = learning_rate(solver, state.iteration)
        set_learning_rate(state.optimizer, rate)
        with together("reading a batch"):
            parts = window.read(source, solver.accumulate)
        state.torn = True
        try:
            window.add(_step(state, replica, parts, solver, device))
        except NotFiniteError as error:
            state.torn = False
            not_finite(state, error)
        else:
            if state.ema is not None:
                state.ema.update(state.model)
        state.iteration += 1
        state.torn = False
        if state.iteration % solver.log_every == 0 or state.iteration == solver.iterations:
            report(state.iteration, mean(window.means()) | {"learning_rate": rate})
            window = _Window()
        before = time.perf_counter()
        after_step(state)
        window.started += time.perf_counter() - before  # saving and evaluating are no training


def _step(
    state: TrainState, replica: nn.Module, parts: Sequence[Batch], solver: SolverConfig, device: torch.device
) -> dict[str, float]:
    """One optimizer step; the losses, averaged over its parts.  ``replica`` is the model, or what wraps it."""
    random, statistics = _random_state(device), [buffer.clone() for buffer in _statistics(state.model)]
    state.optimizer.zero_grad(set_to_none=True)
    with exchanges("training"):
        losses, problem = _backward(state, replica, parts, solver, device)
    norm = _gradient_norm(state, solver)
    if problem is None and not math.isfinite(norm):
        problem = f"gradient is not finite at iteration {state.iteration}: norm {norm}, {_listed(losses, parts)}"
    problems = [found for found in gather(problem, doing="training") if found]
    if problems:
        state.optimizer.zero_grad(set_to_none=True)
        _set_random_state(random, device)
        for buffer, before in zip(_statistics(state.model), statistics, strict=True):
            buffer.copy_(before)
        raise _not_finite(next((found for found in problems if found.startswith("loss")), problems[0]), parts)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.is_enabled() and state.scaler.get_scale() < MIN_LOSS_SCALE:
        raise _not_finite(
            f"loss scale collapsed at iteration {state.iteration}: {state.scaler.get_scale():.2g}, since gradients "
            f"overflow in half precision whatever the scale; set solver.precision to bf16 or fp32. "
            f"{_listed(losses, parts)}",
            parts,
        )
    return losses


def _backward(
    state: TrainState, replica: nn.Module, parts: Sequence[Batch], solver: SolverConfig, device: torch.device
) -> tuple[dict[str, float], str | None]:
    """Adds the gradients of all ``parts``; the losses, averaged over them, and the first that is not finite, in words.

    It goes to the end whatever the losses are, since other processes wait for its gradients.
    """
    sums: dict[str, float] = {}
    problem, precision = None, PRECISIONS[solver.precision]
    for number, part in enumerate(parts, start=1):
        batch = part.to(device)
        with gradients_wait(replica, wait=number < len(parts)):
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                losses: dict[str, Tensor] = replica(batch.images, batch.targets, batch.proposals)
            stacked = torch.stack(list(losses.values()))
            values = dict(zip(losses, stacked.tolist(), strict=True))  # one wait for the device instead of one per loss
            if problem is None and not all(map(math.isfinite, values.values())):
                problem = f"loss is not finite at iteration {state.iteration}: {_listed(values, [part])}"
            state.scaler.scale(stacked.sum() / solver.accumulate).backward()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / solver.accumulate
    return sums, problem


def _gradient_norm(state: TrainState, solver: SolverConfig) -> float:
    """Of the whole gradient, which it clips; 0 in half precision, where overflows are the scaler's everyday work."""
    if solver.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(state.optimizer, solver.clip_norm)
        return 0.0 if state.scaler.is_enabled() else float(norm)
    return 0.0 if state.scaler.is_enabled() else float(gradient_norm(state.optimizer))


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances that a step in training mode changes."""
    layers = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.training)
    return [buffer for layer in layers for buffer in layer.buffers()]


def _listed(losses: Mapping[str, float], parts: Sequence[Batch]) -> str:
    files = ", ".join(path for part in parts for path in part.paths)
    return f"{', '.join(f'{name} {value:.4g}' for name, value in losses.items())}; images: {files}"


def _not_finite(problem: str, parts: Sequence[Batch]) -> NotFiniteError:
    advice = (
        "Lower solver.base_lr, lengthen solver.warmup_iterations or set solver.clip_norm; "
        "resdet check looks for broken boxes"
    )
    return NotFiniteError(f"{problem}. {advice}", [part.paths for part in parts])
