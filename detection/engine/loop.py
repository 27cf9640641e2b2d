"""One training step and the state that it changes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.engine.distributed import exchanges, gather, gradients_wait, rank
from detection.engine.ema import EMA
from detection.engine.feed import Feed
from detection.engine.layout import Layout
from detection.engine.optim import clip_gradients, gradient_norm
from detection.structures import ImageBatch

__all__ = ["NotFiniteError", "TrainState", "Window", "device_of", "random_state", "set_random_state", "step"]

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
    """The changing state of a run, as a checkpoint holds it."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    iteration: int = 0  # optimizer steps done
    best: float | None = None  # of the chosen metric
    ema: EMA | None = None
    evaluated: int | None = None  # iteration of the last evaluation
    stale: int = 0  # evaluations since the best one
    not_finite: int = 0  # steps not taken because a number was not finite
    torn: bool = False  # in the middle of a step, where nothing can be saved
    layout: Layout = "channels_last"  # of the model in memory

    @property
    def tested(self) -> nn.Module:
        """The model that is tested, and whose weights are saved: the averaged one, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def state_dict(self) -> dict[str, Any]:
        """Returns everything but the weights of ``tested``, in types that ``weights_only`` loading admits.

        All processes call it, since it has the random states of all.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
            "ema": None if self.ema is None else {"steps": self.ema.steps, "trained": self.model.state_dict()},
            "evaluated": self.evaluated,
            "stale": self.stale,
            "not_finite": self.not_finite,
            "layout": self.layout,
            "random": gather(random_state(device_of(self.model)), doing="saving"),  # by rank
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the result of ``state_dict`` and torch's random state.  ``model`` has the saved weights already.

        Learning rates, momentum and weight decay are those of the resumed config.  A weight average that only the
        config has starts from the saved weights.  A process without a saved random state gets a new seed.

        Raises:
            ValueError: the saved optimizer is of another kind, or has other parameters.
        """
        own, saved = self.optimizer.state_dict(), state["optimizer"]
        counts, saved_counts = ([len(g["params"]) for g in groups["param_groups"]] for groups in (own, saved))
        if counts != saved_counts:
            raise ValueError(
                f"the checkpoint's optimizer has groups of {saved_counts} parameters, this config's has {counts}; "
                "resume with the backbone.freeze_at and norm that the run began with"
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
        self.stale = state.get("stale", 0)  # older checkpoints do not count
        if rank() < len(state["random"]):
            set_random_state(state["random"][rank()], device_of(self.model))
        else:
            torch.manual_seed(torch.initial_seed() + self.iteration + rank())


class Window:
    """Sums of losses and times since the last report.

    Args:
        waited: seconds that the run has spent waiting for batches so far.
    """

    def __init__(self, waited: float = 0.0) -> None:
        self._losses: dict[str, float] = {}
        self._steps, self._waited, self._started = 0, waited, time.perf_counter()

    def add(self, losses: Mapping[str, float]) -> None:
        """Adds the losses of a step."""
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + value
        self._steps += 1

    def means(self, waited: float) -> dict[str, float]:
        """Returns the mean losses and times of a step; ``waited`` is the total until now."""
        steps = max(self._steps, 1)
        seconds = (time.perf_counter() - self._started) / steps
        means = {f"loss/{name}": total / steps for name, total in self._losses.items()}
        means["loss/total"] = sum(means.values())
        return means | {"seconds_per_step": seconds, "data_seconds": (waited - self._waited) / steps}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out time that is not spent training."""
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def random_state(device: torch.device) -> Random:
    """Returns the state of torch's random generators; data do not use them, as they are seeded by iteration."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": on_gpu}


def set_random_state(saved: Random, device: torch.device) -> None:
    if saved["cpu"] is not None:
        torch.set_rng_state(saved["cpu"])
    if saved["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)


def step(
    state: TrainState, replica: nn.Module, feed: Feed, solver: SolverConfig, device: torch.device
) -> dict[str, float]:
    """Takes one optimizer step on the next batches of ``feed``; returns its losses, averaged over its parts.

    Always finishes the backward pass, even on NaN, so that no process waits for gradients.  Meanwhile the batches of
    the next step are read.

    Args:
        state: modified in place, except ``iteration``.
        replica: the model, or what wraps it.
        feed: gives batches, and tells whether the numbers of all processes are finite.
        solver: accumulation, precision, clipping.
        device: where the model is.

    Raises:
        NotFiniteError: a loss or a gradient of any process is not finite; no weight and no moment has changed.
    """
    parts, precision = feed.take(), PRECISIONS[solver.precision]
    found: list[tuple[list[str], Tensor]] = []
    state.optimizer.zero_grad(set_to_none=True)
    with exchanges("training"):
        for number, part in enumerate(parts, start=1):
            batch = part.to(device)
            given = () if batch.proposals is None else (batch.proposals,)
            with gradients_wait(replica, wait=number < len(parts)), _norm_explained(batch.images):
                with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                    losses: dict[str, Tensor] = replica(batch.images, batch.targets, *given)
                values = torch.stack(list(losses.values()))
                state.scaler.scale(values.sum() / solver.accumulate).backward()
            found.append((list(losses), values.detach()))
    norm = _clipped_norm(state, solver)
    feed.read()  # before the first wait for the device
    by_part = [dict(zip(names, values.tolist(), strict=True)) for names, values in found]
    means = _means(by_part)
    problem = feed.agree(_not_finite(state.iteration, by_part, means, float(norm), parts))
    if problem is not None:
        raise _error(problem, parts)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.is_enabled() and state.scaler.get_scale() < MIN_LOSS_SCALE:
        raise _error(
            f"loss scale collapsed at iteration {state.iteration}: {state.scaler.get_scale():.2g}, since gradients "
            f"overflow in half precision whatever the scale; set solver.precision to bf16 or fp32. "
            f"{_listed(means, parts)}",
            parts,
        )
    return means


@contextmanager
def _norm_explained(images: ImageBatch) -> Iterator[None]:
    """Explains torch's error for batch norm with a single value per channel of ``images``; names keys that help."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"norm bn takes more than one value per channel to train, and {len(images)} images of "
            f"{tuple(images.pixels.shape[2:])} pixels give a single one ({error}): raise data.shorter_side and "
            "longer_side, or solver.images_per_step over solver.accumulate, or set backbone.norm (fpn_norm, "
            "box.head_norm) to frozen_bn or gn"
        ) from error


def _clipped_norm(state: TrainState, solver: SolverConfig) -> Tensor | float:
    """Returns the norm of the whole gradient, which it clips; 0 in half precision, whose scaler expects overflows."""
    if solver.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        norm = clip_gradients(state.optimizer, solver.clip_norm)
        return 0.0 if state.scaler.is_enabled() else norm
    return 0.0 if state.scaler.is_enabled() else gradient_norm(state.optimizer)


def _means(by_part: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means: dict[str, float] = {}
    for losses in by_part:
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + value / len(by_part)
    return means


def _not_finite(
    iteration: int,
    by_part: Sequence[Mapping[str, float]],
    means: Mapping[str, float],
    norm: float,
    parts: Sequence[Batch],
) -> str | None:
    """Returns the problem of this process: non-finite losses of a part, the first one, or gradient; None if finite."""
    for losses, part in zip(by_part, parts, strict=True):
        if not all(map(math.isfinite, losses.values())):
            return f"loss is not finite at iteration {iteration}: {_listed(losses, [part])}"
    if not math.isfinite(norm):
        return f"gradient is not finite at iteration {iteration}: norm {norm}, {_listed(means, parts)}"
    return None


def _listed(losses: Mapping[str, float], parts: Sequence[Batch]) -> str:
    files = ", ".join(path for part in parts for path in part.paths)
    return f"{', '.join(f'{name} {value:.4g}' for name, value in losses.items())}; images: {files}"


def _error(problem: str, parts: Sequence[Batch]) -> NotFiniteError:
    advice = (
        "Lower solver.base_lr, lengthen solver.warmup_iterations or set solver.clip_norm; "
        "resdet check looks for broken boxes"
    )
    return NotFiniteError(f"{problem}. {advice}", [part.paths for part in parts])
