"""Training any model, a detector or a classifier, from a config to the files of an output directory.

RUN/config.yaml        the resolved config
RUN/metrics.jsonl      losses, rates, times; the metrics of every evaluation
RUN/tensorboard/       the same for TensorBoard
RUN/checkpoints/       see engine/checkpoint.py
RUN/manifest.json      what made it: see engine/manifest.py
RUN/not_finite/        steps whose numbers were not finite: see engine/dump.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from backbones.norm import FrozenBatchNorm
from detection.config.load import dump_config
from detection.config.schema import different_meaning
from detection.config.sections import ProgramConfig, SolverConfig
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import Checkpoint, Checkpoints, changed_keys
from detection.engine.determinism import fixed_order
from detection.engine.device import choose_device
from detection.engine.distributed import (
    gather,
    images_per_rank,
    is_main,
    rank,
    share_buffers,
    together,
    world_size,
)
from detection.engine.ema import EMA
from detection.engine.evaluate import metric
from detection.engine.log import NoLog, RunLog
from detection.engine.loop import NotFiniteError, TrainState, train
from detection.engine.manifest import manifest_entry
from detection.engine.optim import build_optimizer
from detection.engine.recovery import dump_step
from detection.engine.signals import StoppedError, StopRequest, stop_request
from detection.files import write_text

__all__ = ["Evaluation", "is_finished", "train_model"]

TOOL = "train"  # the command which detectors are trained by


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a test of the model on the way gives."""

    result: dict[str, Any]
    figures: dict[str, float | None]  # those of the result that the log gets; None: could not be computed


def is_finished(run: Path, config: ProgramConfig) -> bool:
    """Whether the run in the directory ``run`` has come to its end."""
    newest = Checkpoints(run / "checkpoints", keep=1, config=config, class_names=()).newest(print)
    return newest is not None and newest[0].iteration >= config.solver.iterations


def train_model(
    config: ProgramConfig,
    output: Path,
    index: AnnotationIndex,
    *,
    build: Callable[[bool], nn.Module],
    load: Callable[..., Iterable[Batch]],
    test: Callable[[nn.Module], Evaluation] | None = None,
    test_index: AnnotationIndex | None = None,
    resume: bool = False,
    tool: str = TOOL,
) -> dict[str, Any]:
    """Trains a model into ``output`` and returns the result of its last test.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        index: the training set; checkpoints carry its class names.
        build: the model on the CPU, which turns images, targets and proposals into losses; with its initial weights if
            the argument is true, else the weights of a checkpoint follow.
        load: endless batches; called with batch_size, seed, start (number of the first batch) and pin.
        test: called when an evaluation is due.
        test_index: what it tests on, for the manifest.
        resume: go on from the newest checkpoint in ``output``, if there is one.
        tool: the command of resdet that goes on with such a run.

    Raises:
        ValueError: bad config, or ``output`` holds a run and ``resume`` is not set.
        NotFiniteError, StoppedError, MemoryError, OSError: as ``run_training``.
    """
    images_per_rank(config.solver.images_per_step, config.solver.accumulate)  # a bad number ends here, not later
    checkpoints = Checkpoints(
        output / "checkpoints", keep=config.solver.keep_checkpoints, config=config, class_names=index.class_names
    )
    newest = checkpoints.newest(print)
    if newest and not resume:
        raise ValueError(
            f"{output} holds a run ({newest[0].path.name}); add --resume to go on, or choose another directory"
        )
    device = choose_device(config.device)
    if newest:
        _check_same_model(newest[0], config)
    state = _initial_state(config, build, device, fresh=newest is None)
    if newest:
        checkpoints.restore(newest, state)
    pending = (
        bool(newest and test) and _evaluates(config.solver, state.iteration) and state.evaluated != state.iteration
    )
    if state.iteration >= config.solver.iterations and not pending:
        raise ValueError(
            f"{output} is at iteration {state.iteration} of {config.solver.iterations}: nothing is left to train; "
            f"raise solver.iterations, or test it with resdet {'test' if tool == TOOL else f'{tool} --test'}"
        )
    with together("writing the config"):
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            write_text(output / "config.yaml", dump_config(config))
    data = {"train": index} | ({} if test_index is None else {"test": test_index})
    with (
        fixed_order(config.deterministic),
        stop_request() as stop,
        manifest_entry(output, config, state, data, device),
        _log(config, output, state, device, evaluated=not pending) as log,
    ):
        if resume and not newest:
            log.say(f"nothing to resume in {output}: starting")
        if newest:
            for line in changed_keys(newest[0].config, config):
                log.say(f"config changed: {line}")
        _say_what_trains(config, state, index, device, log)
        run = _Run(config, output, checkpoints, log, load, test, stop, tool)
        return run.train(state, device, run.evaluate(state) if pending else {})


@dataclass(frozen=True, slots=True)
class _Run:
    """What the steps of one run share."""

    config: ProgramConfig
    output: Path
    checkpoints: Checkpoints
    log: RunLog | NoLog
    load: Callable[..., Iterable[Batch]]
    test: Callable[[nn.Module], Evaluation] | None
    stop: StopRequest
    tool: str

    def train(self, state: TrainState, device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
        """Takes all steps that are left; the last result, ``result`` if there is no later one."""
        solver = self.config.solver
        loader = self.load(
            batch_size=solver.images_per_step // solver.accumulate,
            seed=self.config.seed,
            start=state.iteration * solver.accumulate,
            pin=device.type == "cuda",
        )
        try:
            train(
                state,
                loader,
                solver,
                device=device,
                report=self.log.metrics,
                after_step=lambda state: result.update(self._after_step(state)),
                not_finite=self._not_finite,
            )
        except (NotFiniteError, StoppedError, OSError):  # suspect weights; saved already; nothing can be written
            raise
        except torch.OutOfMemoryError as error:
            raise MemoryError(self._no_memory(state, error)) from error
        except (Exception, KeyboardInterrupt) as error:  # an unreadable image: the steps so far are not lost
            if state.iteration and not state.torn and world_size() == 1:
                self.log.say(f"stopped; saved {self.checkpoints.save(state)}, and --resume goes on from it")
            if self.stop.name:  # it came to the loader's processes as well
                raise self._stopped(state) from error
            raise
        self.log.say(f"trained {solver.iterations} iterations; checkpoints in {self.checkpoints.folder}")
        return result

    def _after_step(self, state: TrainState) -> dict[str, Any]:
        """Does what is due after a step; the result, if it evaluated."""
        solver = self.config.solver
        last = state.iteration == solver.iterations
        evaluates = self.test is not None and _evaluates(solver, state.iteration)
        stops = any(gather(self.stop.name, doing="training"))  # all processes or none
        if last or evaluates or stops or _due(state.iteration, solver.checkpoint_every):
            self.checkpoints.save(state)  # first, so that whatever an evaluation meets costs no training
        if stops and not last:
            raise self._stopped(state)
        return self.evaluate(state) if evaluates else {}

    def evaluate(self, state: TrainState) -> dict[str, Any]:
        """Tests the model that is saved already; the result."""
        assert self.test is not None
        solver = self.config.solver
        share_buffers(state.tested)
        tested = self.test(state.tested)
        known = {name: value for name, value in tested.figures.items() if value is not None}
        self.log.metrics(state.iteration, known)
        value = metric(tested.result, solver.best_metric)
        best = value is not None and (state.best is None or value > state.best)
        state.best, state.evaluated = value if best else state.best, state.iteration
        self.checkpoints.save_evaluated(state, best=best)
        return tested.result

    def _not_finite(self, state: TrainState, error: NotFiniteError) -> None:
        """Does with a step that can't be taken what solver.on_not_finite says; ``state`` is that before it."""
        solver, names = self.config.solver, self.checkpoints.class_names
        path = dump_step(self.output, state, error, self.config, names, whole=state.not_finite == 0, tool=self.tool)
        state.not_finite += 1
        message = f"{error}; {path} has all it takes to repeat the step"
        if solver.on_not_finite == "stop":
            raise NotFiniteError(message, error.files) from error
        if state.not_finite > solver.max_not_finite:
            raise NotFiniteError(
                f"{message}; it is number {state.not_finite}, solver.max_not_finite is {solver.max_not_finite}",
                error.files,
            ) from error
        back = self._roll_back(state) if solver.on_not_finite == "roll_back" else ""
        self.log.say(f"warning: skipped a step{back}, {state.not_finite} of {solver.max_not_finite}: {message}")

    def _roll_back(self, state: TrainState) -> str:
        """Gives ``state`` the newest checkpoint's weights and moments, not its place in the run; what to say of it."""
        newest = self.checkpoints.newest(self.log.say)
        if newest is None:
            return " from the same weights, since no checkpoint is saved yet"
        kept = state.iteration, state.best, state.evaluated, state.not_finite
        self.checkpoints.restore(newest, state)
        state.iteration, state.best, state.evaluated, state.not_finite = kept
        return f" and went back to the weights of iteration {newest[0].iteration}"

    def _stopped(self, state: TrainState) -> StoppedError:
        path = self.checkpoints.folder
        return StoppedError(
            f"{self.stop.name or 'a signal to another process'} ended the run after iteration {state.iteration} of "
            f"{self.config.solver.iterations}; the same command with --resume goes on from the newest in {path}"
        )

    def _no_memory(self, state: TrainState, error: torch.OutOfMemoryError) -> str:
        config = self.config
        return (
            f"the GPU has no memory left at iteration {state.iteration}: raise solver.accumulate "
            f"(now {config.solver.accumulate}, of {config.solver.images_per_step} images a step) so that fewer images "
            f"are computed at once, or lower data.shorter_side and longer_side ({config.data.shorter_side}, "
            f"{config.data.longer_side}), or set solver.precision=bf16 (now {config.solver.precision}); "
            f"--resume goes on from the newest checkpoint. {error}"
        )


def _log(
    config: ProgramConfig, output: Path, state: TrainState, device: torch.device, *, evaluated: bool
) -> RunLog | NoLog:
    if not is_main():
        return NoLog()
    iterations = config.solver.iterations
    return RunLog(output, iterations=iterations, device=device, start=state.iteration, evaluated=evaluated)


def _initial_state(
    config: ProgramConfig, build: Callable[[bool], nn.Module], device: torch.device, *, fresh: bool
) -> TrainState:
    """The state before the first step; weights of a run that goes on are not read, since the checkpoint's follow."""
    torch.manual_seed(config.seed)
    model = build(fresh).to(device)
    if not is_main():
        torch.manual_seed(config.seed + rank())  # dropout differs from process to process
    scaler = GradScaler(device.type, enabled=config.solver.precision == "fp16")
    ema = EMA(model, config.solver.ema_decay) if config.solver.ema_decay else None
    return TrainState(model, build_optimizer(model, config.solver), scaler, ema=ema)


def _say_what_trains(
    config: ProgramConfig, state: TrainState, index: AnnotationIndex, device: torch.device, log: RunLog | NoLog
) -> None:
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    trainable = sum(p.numel() for p in state.model.parameters() if p.requires_grad) / 1e6
    log.say(
        f"{config.backbone.name}, {parameters:.1f}M parameters ({trainable:.1f}M trainable), {device}; "
        f"{len(index)} images, {len(index.boxes)} objects, {len(index.class_names)} classes; "
        f"iteration {state.iteration} of {config.solver.iterations}"
    )
    if world_size() > 1:
        images, accumulate = config.solver.images_per_step, config.solver.accumulate
        log.say(
            f"{images} images a step on {world_size()} processes: {images_per_rank(images, accumulate) * accumulate} "
            f"each; learning rate as configured for {images}"
        )
    if not (config.backbone.weights or getattr(config, "init", None)) and any(map(_is_frozen, state.model.modules())):
        log.say(
            "warning: backbone.norm frozen_bn without backbone.weights normalises nothing, and deep networks diverge; "
            "set backbone.weights, or backbone.norm to bn or gn"
        )


def _is_frozen(module: torch.nn.Module) -> bool:
    return isinstance(module, FrozenBatchNorm)


def _check_same_model(checkpoint: Checkpoint[ProgramConfig], config: ProgramConfig) -> None:
    """Refuses to go on with keys that change what the weights mean, where loading them would not fail."""
    changed = different_meaning(checkpoint.config, config)
    if changed:
        raise ValueError(f"{checkpoint.path} can't go on with another model: {'; '.join(changed)}")


def _evaluates(solver: SolverConfig, iteration: int) -> bool:
    """Whether an evaluation is due after ``iteration``."""
    return iteration >= solver.iterations or _due(iteration, solver.evaluate_every)


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
