"""Training any model, a detector or a classifier, from a config to the files of an output directory.

RUN/config.yaml        the resolved config
RUN/metrics.jsonl      losses, rates, times; the metrics of every evaluation
RUN/tensorboard/       the same for TensorBoard, where solver.log_sinks has it
RUN/checkpoints/       see engine/checkpoint.py
RUN/manifest.json      what made it: see engine/manifest.py
RUN/not_finite/        steps whose numbers were not finite: see engine/recovery.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    images_per_rank,
    is_main,
    mean,
    rank,
    replicated,
    share_buffers,
    together,
    world_size,
)
from detection.engine.ema import EMA
from detection.engine.feed import Feed
from detection.engine.log import LoggedRun, RunLog, require_packages
from detection.engine.loop import TrainState, Window, step
from detection.engine.manifest import manifest_entry
from detection.engine.optim import build_optimizer, learning_rate, set_learning_rate
from detection.engine.recovery import Recovery
from detection.engine.signals import StopRequest, stop_request
from detection.evaluation.metrics import is_better, read_metric
from detection.files import write_text

__all__ = ["Evaluation", "Trainer", "is_finished"]

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


class Trainer:
    """Trains any model that turns (images, targets) into a dict of losses.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        index: the training set; checkpoints carry its class names.
        build: the model on the CPU; with its initial weights if the argument is true, else the weights of a checkpoint
            follow.  Stored proposals are its third argument, where batches have some.
        load: endless batches; called with batch_size, seed, start (number of the first batch) and pin.
        test: called when an evaluation is due.
        test_index: what it tests on, for the manifest.
        resume: go on from the newest checkpoint in ``output``, if there is one.
        tool: the command of resdet that goes on with such a run.

    Raises:
        ValueError: bad config, or ``output`` holds a run and ``resume`` is not set.
    """

    def __init__(
        self,
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
    ) -> None:
        solver = config.solver
        images_per_rank(solver.images_per_step, solver.accumulate)  # a bad number ends here, not later
        require_packages(solver.log_sinks)
        self.config, self.output, self.index, self.test_index = config, output, index, test_index
        self.load, self.test, self.tool = load, test, tool
        self.checkpoints = Checkpoints(
            output / "checkpoints", keep=solver.keep_checkpoints, config=config, class_names=index.class_names
        )
        newest = self.checkpoints.newest(print)
        if newest and not resume:
            raise ValueError(
                f"{output} holds a run ({newest[0].path.name}); add --resume to go on, or choose another directory"
            )
        self.device = choose_device(config.device)
        if newest:
            _check_same_model(newest[0], config)
        self.state = _initial_state(config, build, self.device, fresh=newest is None)
        if newest:
            self.checkpoints.restore(newest, self.state)
        self._before = newest[0].config if newest else None  # the config so far
        self._begins = [f"nothing to resume in {output}: starting"] if resume and not newest else []

    def run(self) -> dict[str, Any]:
        """Takes all steps that are left and returns the result of the last test.

        Raises:
            NotFiniteError, StoppedError, MemoryError, OSError: as ``run_training``.
        """
        solver, state = self.config.solver, self.state
        with self._session() as (log, stop):
            recovery = Recovery(self.output, self.config, self.checkpoints, log.say, self.tool)
            result = self._evaluate(log) if self._misses_evaluation() else {}
            steps = solver.iterations - state.iteration
            feed = Feed(self._batches(), parts=solver.accumulate, steps=steps, stop=stop)
            window, replica = Window(), replicated(state.model)
            with recovery.saving(state, feed):
                feed.begin()
                while state.iteration < solver.iterations:
                    rate = learning_rate(solver, state.iteration)
                    set_learning_rate(state.optimizer, rate)
                    state.model.train()
                    state.torn = True
                    with recovery.guard(state):
                        window.add(step(state, replica, feed, solver, self.device))
                        if state.ema is not None:
                            state.ema.update(state.model)
                    state.iteration += 1
                    state.torn = False
                    if state.iteration == solver.iterations or _due(state.iteration, solver.log_every):
                        log.metrics(state.iteration, mean(window.means(feed.seconds)) | {"learning_rate": rate})
                        window = Window(feed.seconds)
                    with window.paused():
                        result = self._after_step(feed, recovery, log) or result
            log.say(f"trained {solver.iterations} iterations; checkpoints in {self.checkpoints.folder}")
        return result

    def _batches(self) -> Iterable[Batch]:
        solver = self.config.solver
        return self.load(
            batch_size=solver.images_per_step // solver.accumulate,
            seed=self.config.seed,
            start=self.state.iteration * solver.accumulate,
            pin=self.device.type == "cuda",
        )

    def _after_step(self, feed: Feed, recovery: Recovery, log: RunLog) -> dict[str, Any]:
        """Saves, ends the run or evaluates, where that is due; returns the result of an evaluation."""
        solver, state = self.config.solver, self.state
        last = state.iteration == solver.iterations
        stops = feed.stops and not last
        evaluates = self.test is not None and _evaluates(solver, state.iteration)
        if last or evaluates or stops or _due(state.iteration, solver.checkpoint_every):
            self.checkpoints.save(state)  # first, so that whatever an evaluation meets costs no training
        if stops:
            raise recovery.stopped(state, feed)
        feed.check()
        return self._evaluate(log) if evaluates else {}

    def _evaluate(self, log: RunLog) -> dict[str, Any]:
        """Tests the model that is saved already; the result."""
        assert self.test is not None
        solver, state = self.config.solver, self.state
        share_buffers(state.tested)
        tested = self.test(state.tested)
        known = {name: value for name, value in tested.figures.items() if value is not None}
        log.metrics(state.iteration, known)
        value = read_metric(tested.result, solver.best_metric)
        best = is_better(solver.best_metric, value, state.best)
        state.best, state.evaluated = value if best else state.best, state.iteration
        self.checkpoints.save_evaluated(state, best=best)
        return tested.result

    def _misses_evaluation(self) -> bool:
        """Whether the run ended between a checkpoint and the evaluation that was due."""
        state = self.state
        return (
            self._before is not None
            and self.test is not None
            and _evaluates(self.config.solver, state.iteration)
            and state.evaluated != state.iteration
        )

    @contextmanager
    def _session(self) -> Iterator[tuple[RunLog, StopRequest]]:
        """Opens what lasts as long as the run does, and says what trains."""
        config, state = self.config, self.state
        missing = self._misses_evaluation()
        if state.iteration >= config.solver.iterations and not missing:
            test = "test" if self.tool == TOOL else f"{self.tool} --test"
            raise ValueError(
                f"{self.output} is at iteration {state.iteration} of {config.solver.iterations}: nothing is left to "
                f"train; raise solver.iterations, or test it with resdet {test}"
            )
        with together("writing the config"):
            if is_main():
                self.output.mkdir(parents=True, exist_ok=True)
                write_text(self.output / "config.yaml", dump_config(config))
        data = {"train": self.index} | ({} if self.test_index is None else {"test": self.test_index})
        with (
            fixed_order(config.deterministic),
            stop_request() as stop,
            manifest_entry(self.output, config, state, data, self.device),
            self._log(evaluated=not missing) as log,
        ):
            changed = [] if self._before is None else changed_keys(self._before, config)
            for line in [*self._begins, *(f"config changed: {key}" for key in changed)]:
                log.say(line)
            _say_what_trains(config, state, self.index, self.device, log)
            yield log, stop

    def _log(self, *, evaluated: bool) -> RunLog:
        solver, start = self.config.solver, self.state.iteration
        run = LoggedRun(self.output, self.config, solver.iterations, start=start, evaluated=evaluated)
        return RunLog(run if is_main() else None, self.device, solver.log_sinks)


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
    config: ProgramConfig, state: TrainState, index: AnnotationIndex, device: torch.device, log: RunLog
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
