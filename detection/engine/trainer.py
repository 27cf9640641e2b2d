"""Training any model, a detector or a classifier, from a config to the files of an output directory.

RUN/config.yaml        the resolved config
RUN/metrics.jsonl      losses, learning rates, times; the metrics of data.val, and at the end of data.test ("test/...")
RUN/tensorboard/       the same for TensorBoard, where solver.log_sinks has it
RUN/checkpoints/       see engine/checkpoint.py
RUN/manifest.json      what made it: see engine/manifest.py
RUN/lock               the process that trains, while it does
RUN/not_finite/        steps whose numbers were not finite: see engine/recovery.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.amp.grad_scaler import GradScaler

from backbones.norm import FrozenBatchNorm
from backbones.weights.packages import find_packaged
from detection.config.load import dump_config
from detection.config.schema import different_meaning
from detection.config.sections import ProgramConfig, SolverConfig
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import (
    Checkpoint,
    Checkpoints,
    changed_keys,
    describe_weights,
    load_detector_weights,
)
from detection.engine.compiled import CompiledStep
from detection.engine.determinism import fixed_order
from detection.engine.device import choose_device
from detection.engine.distributed import (
    gather,
    images_per_rank,
    is_main,
    mean,
    only_main,
    rank,
    replicated,
    share_buffers,
    together,
    world_size,
)
from detection.engine.ema import EMA
from detection.engine.feed import Feed
from detection.engine.layout import Layout, choose_layout, set_layout
from detection.engine.lock import locked
from detection.engine.log import LoggedRun, RunLog, require_packages
from detection.engine.loop import PRECISIONS, TrainState, Window, step
from detection.engine.manifest import manifest_entry
from detection.engine.optim import build_optimizer, learning_rate, set_learning_rate
from detection.engine.recovery import Recovery
from detection.engine.signals import StopRequest, stop_request
from detection.evaluation.metrics import is_better, read_metric, shown_figures
from detection.files import write_text
from detection.progress import SCREEN

__all__ = ["Trainer", "initial_state", "is_finished", "layout_of"]

TOOL = "train"  # the command which detectors are trained by


def is_finished(run: Path, config: ProgramConfig) -> bool:
    """Returns whether the run in the directory ``run`` is finished."""
    newest = Checkpoints(run / "checkpoints", keep=1, config=config, class_names=()).newest(SCREEN.print)
    if newest is None:
        return False
    return newest[0].iteration >= config.solver.iterations or _impatient(config.solver, newest[1].get("stale", 0))


class Trainer:
    """Trains any model that turns (images, targets) into a dict of losses.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        index: the training set; checkpoints carry its class names.
        build: builds the model on the CPU, with its initial weights if the argument is true, else for those of a
            checkpoint.  The model takes stored proposals, if batches have some, as its third argument.
        load: returns endless batches; called with batch_size, seed, start (number of the first batch) and pin.
        validate: evaluates on data.val when that is due.
        draw: returns pictures of an evaluation on data.val by name, (H, W, 3) RGB, for the sinks that show some.
        test: evaluates on data.test at the end, and writes the result with the given facts.
        sets: data.val and data.test, for the manifest.
        resume: go on from the newest checkpoint in ``output``, if there is one.
        tool: the resdet command that resumes such a run.
        compiled: compiles the model's losses, with lines of progress; None: they are not compiled.

    Raises:
        ValueError: the config is invalid.
    """

    def __init__(
        self,
        config: ProgramConfig,
        output: Path,
        index: AnnotationIndex,
        *,
        build: Callable[[bool], nn.Module],
        load: Callable[..., Iterable[Batch]],
        validate: Callable[[nn.Module], dict[str, Any]] | None = None,
        draw: Callable[[nn.Module, Mapping[str, Any]], Mapping[str, NDArray[np.uint8]]] | None = None,
        test: Callable[[nn.Module, dict[str, Any]], dict[str, Any]] | None = None,
        sets: Mapping[str, AnnotationIndex] | None = None,
        resume: bool = False,
        tool: str = TOOL,
        compiled: Callable[[nn.Module, Callable[[str], None]], CompiledStep] | None = None,
    ) -> None:
        solver = config.solver
        images_per_rank(solver.images_per_step, solver.accumulate)  # fails early on a bad number
        require_packages(solver.log_sinks)
        if solver.patience and validate is None:
            raise ValueError(
                f"solver.patience {solver.patience} counts evaluations on data.val, but {list(config.data.val)} has no "
                "objects to evaluate; name images there, or set solver.patience to 0"
            )
        self.config, self.output, self.index, self.sets = config, output, index, sets or {}
        self.load, self.validate, self.draw, self.test, self.tool = load, validate, draw, test, tool
        self.build, self.resume, self.compiled = build, resume, compiled
        self.device = choose_device(config.device)
        self.checkpoints = Checkpoints(
            output / "checkpoints", keep=solver.keep_checkpoints, config=config, class_names=index.class_names
        )

    def run(self) -> dict[str, Any]:
        """Takes the remaining steps and returns the result on data.test; empty if there is none.

        Raises:
            ValueError: ``output`` holds a run and ``resume`` is not set, or another process trains into it.
            NotFiniteError, StoppedError, MemoryError, OSError: as ``run_training``.
        """
        solver = self.config.solver
        with ExitStack() as stack:
            stack.enter_context(locked(self.output))
            state, before = self._begin()
            missing = before is not None and self._misses_evaluation(state)
            if self._is_over(state) and not missing and (result := self._result(state)) is not None:
                return self._finished(state, before, result)
            log, stop = stack.enter_context(self._session(state, before, evaluated=not missing))
            if missing:
                self._evaluate(state, log)
            recovery = Recovery(self.output, self.config, self.checkpoints, log.say, self.tool)
            steps = solver.iterations - state.iteration
            feed = Feed(self._batches(state), parts=solver.accumulate, steps=steps, stop=stop)
            compiled = None if self.compiled is None else self.compiled(state.model, log.say)
            window, replica, losses = Window(), replicated(compiled or state.model), dict[str, float]()
            stack.enter_context(recovery.saving(state, feed))
            feed.begin()
            if feed.stops and steps:
                raise recovery.stopped(state, feed)
            while not self._is_over(state):
                rate = learning_rate(solver, state.iteration)
                set_learning_rate(state.optimizer, rate)
                state.model.train()
                state.torn = True
                with recovery.guard(state):
                    losses = step(state, replica, feed, solver, self.device)
                    window.add(losses)
                    if state.ema is not None:
                        state.ema.update(state.model)
                state.iteration += 1
                state.torn = False
                log.step(state.iteration, losses, rate)
                if state.iteration == solver.iterations or _due(state.iteration, solver.log_every):
                    figures = {"learning_rate": rate} | ({} if compiled is None else compiled.graphs.figures)
                    log.metrics(state.iteration, mean(window.means(feed.seconds)) | figures)
                    window = Window(feed.seconds)
                with window.paused():
                    self._after_step(state, feed, recovery, log)
            log.end_steps()
            if _impatient(solver, state.stale):
                log.say(_why_it_ends(solver, state))
            log.say(f"trained {state.iteration} iterations; checkpoints in {self.checkpoints.folder}")
            return self._test(state, log)

    def _is_over(self, state: TrainState) -> bool:
        solver = self.config.solver
        return state.iteration >= solver.iterations or _impatient(solver, state.stale)

    def _begin(self) -> tuple[TrainState, ProgramConfig | None]:
        """Returns the state before the first step that is left, and the config that led there."""
        newest = self.checkpoints.newest(SCREEN.print)
        if newest is None:
            if self.resume:
                only_main(SCREEN.print)(f"nothing to resume in {self.output}: starting")
            self.checkpoints.forget_best()
            return initial_state(self.config, self.build, self.device, fresh=True, layout=self._layout()), None
        if not self.resume:
            raise ValueError(
                f"{self.output} holds a run ({newest[0].path.name}); add --resume to go on, or choose another directory"
            )
        _check_same_model(newest[0], self.config)
        layout = self._layout(newest[1].get("layout", "channels_last"))  # which older runs had
        state = initial_state(self.config, self.build, self.device, fresh=False, layout=layout)
        self.checkpoints.restore(newest, state)
        other = self.validate is None or _chosen_by(newest[0].config) != _chosen_by(self.config)
        if other and state.iteration < self.config.solver.iterations:
            state.best, state.stale = None, 0
        if state.best is None:
            self.checkpoints.forget_best()
        return state, newest[0].config

    def _layout(self, before: Layout | None = None) -> Layout:
        """Returns the layout of the config, else ``before``, else one chosen here."""
        if self.config.solver.layout == "auto" and before is not None:
            return before
        found: Layout | None = None
        with together("timing layouts"):
            if is_main():
                found = layout_of(self.config, self.device, SCREEN.print)
        return cast(Layout, gather(found)[0])

    def _result(self, state: TrainState) -> dict[str, Any] | None:
        """Returns the result of the run's weights on data.test; None if it is not there yet."""
        if self.test is None:
            return {}
        path, found = self.output / "result.json", None
        with together("looking for a result"):
            if is_main() and path.is_file():
                with suppress(ValueError, RecursionError):  # cut short: it is written again
                    found = json.loads(path.read_text(encoding="utf-8"))
        found = gather(found)[0]
        return found if isinstance(found, dict) and found.get("trained") in (None, state.iteration) else None

    def _finished(self, state: TrainState, before: ProgramConfig | None, result: dict[str, Any]) -> dict[str, Any]:
        """Prints that the run is finished; returns its ``result``, reached under the config ``before``."""
        say = only_main(SCREEN.print)
        for line in [] if before is None else changed_keys(before, self.config):
            say(f"config changed, without effect on the finished run: {line}")
        solver = self.config.solver
        key = "iterations" if state.iteration >= solver.iterations else "patience"
        say(
            f"{self.output} is finished, at iteration {state.iteration}; to go on, raise solver.{key}, "
            f"now {getattr(solver, key)}"
        )
        return result

    def _batches(self, state: TrainState) -> Iterable[Batch]:
        solver = self.config.solver
        return self.load(
            batch_size=solver.images_per_step // solver.accumulate,
            seed=self.config.seed,
            start=state.iteration * solver.accumulate,
            pin=self.device.type == "cuda",
        )

    def _after_step(self, state: TrainState, feed: Feed, recovery: Recovery, log: RunLog) -> None:
        """Saves, ends the run or evaluates on data.val, if that is due."""
        solver = self.config.solver
        last = state.iteration == solver.iterations
        stops = feed.stops and not last
        evaluates = self.validate is not None and _evaluates(solver, state.iteration)
        if last or evaluates or stops or _due(state.iteration, solver.checkpoint_every):
            self.checkpoints.save(state)  # first, so that an error in an evaluation costs no training
        if stops:
            raise recovery.stopped(state, feed)
        feed.check()
        if evaluates:
            self._evaluate(state, log)

    def _evaluate(self, state: TrainState, log: RunLog) -> None:
        """Evaluates the saved model on data.val; its weights may be the best so far."""
        assert self.validate is not None
        key = self.config.solver.best_metric
        share_buffers(state.tested)
        result = self.validate(state.tested)
        log.metrics(state.iteration, _known(shown_figures(result, "log")))
        value = None if key is None else read_metric(result, key)
        best = key is not None and is_better(key, value, state.best)
        state.best, state.evaluated = value if best else state.best, state.iteration
        state.stale = 0 if best else state.stale + (value is not None)
        self.checkpoints.save_evaluated(state, best=best, best_f1_score=result.get("best_f1", {}).get("min_score"))
        if self.draw is not None and log.shows_pictures:
            log.pictures(state.iteration, self.draw(state.tested, result))

    def _test(self, state: TrainState, log: RunLog) -> dict[str, Any]:
        """Evaluates on data.test, once, with the best weights on data.val, else the last."""
        if self.test is None:
            return {}
        best, model = self.checkpoints.best(), state.tested
        if best is None:
            share_buffers(model)
        else:
            load_detector_weights(model, best, self.checkpoints.class_names)
        tested = best or Checkpoint(self.output, {}, self.config, self.checkpoints.class_names, state.iteration)
        result = self.test(
            model, {"weights": describe_weights(tested, self.config.data.test), "trained": state.iteration}
        )
        figures = _known(shown_figures(result, "log"))
        log.metrics(state.iteration, {f"test/{name}": value for name, value in figures.items()})
        return result

    def _misses_evaluation(self, state: TrainState) -> bool:
        """Returns whether the run ended between a checkpoint and the evaluation that was due."""
        due = self.validate is not None and _evaluates(self.config.solver, state.iteration)
        return due and state.evaluated != state.iteration

    @contextmanager
    def _session(
        self, state: TrainState, before: ProgramConfig | None, *, evaluated: bool
    ) -> Iterator[tuple[RunLog, StopRequest]]:
        """Opens the resources of the run, and prints what is trained."""
        config, solver = self.config, self.config.solver
        with together("writing the config"):
            if is_main():
                write_text(self.output / "config.yaml", dump_config(config))
        data = {"train": self.index, **self.sets}
        run = LoggedRun(self.output, config, solver.iterations, start=state.iteration, evaluated=evaluated)
        with (
            fixed_order(config.deterministic),
            stop_request() as stop,
            manifest_entry(self.output, config, state, data, self.device) as warnings,
            RunLog(run if is_main() else None, self.device, solver.log_sinks) as log,
        ):
            for line in [] if before is None else changed_keys(before, config):
                log.say(f"config changed: {line}")
            for line in warnings:
                log.say(line)
            _say_what_trains(config, state, self.index, self.device, log)
            yield log, stop


def layout_of(config: ProgramConfig, device: torch.device, say: Callable[[str], None]) -> Layout:
    """Returns the layout of a new run: the configured one, or the faster one here; ``say`` gets the reason."""
    solver, size = config.solver, (config.data.shorter_side, config.data.longer_side)
    if solver.layout != "auto":
        return solver.layout
    if config.deterministic:
        return "contiguous"
    found, timing = choose_layout(device, PRECISIONS[solver.precision], size)
    if timing is not None:
        say(f"solver.layout: {found}, since on {device} in {solver.precision} {timing}")
    return found


def initial_state(
    config: ProgramConfig,
    build: Callable[[bool], nn.Module],
    device: torch.device,
    *,
    fresh: bool,
    layout: Layout = "channels_last",
) -> TrainState:
    """Returns the state before the first step; a resumed run reads no weights, since its checkpoint's follow."""
    torch.manual_seed(config.seed)
    model = build(fresh).to(device)
    set_layout(model, layout)
    if not is_main():
        torch.manual_seed(config.seed + rank())  # dropout differs from process to process
    scaler = GradScaler(device.type, enabled=config.solver.precision == "fp16")
    ema = EMA(model, config.solver.ema_decay) if config.solver.ema_decay else None
    return TrainState(model, build_optimizer(model, config.solver), scaler, ema=ema, layout=layout)


def _say_what_trains(
    config: ProgramConfig, state: TrainState, index: AnnotationIndex, device: torch.device, log: RunLog
) -> None:
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    trainable = sum(p.numel() for p in state.model.parameters() if p.requires_grad) / 1e6
    objects = f"{len(index.boxes)} objects, " if len(index.boxes) or index.label_maps is None else ""
    log.say(
        f"{config.backbone.name}, {parameters:.1f}M parameters ({trainable:.1f}M trainable), {device}; "
        f"{len(index)} images, {objects}{len(index.class_names)} classes; "
        f"iteration {state.iteration} of {config.solver.iterations}"
    )
    weights, started = config.backbone.weights, getattr(config, "init", None)
    if state.iteration == 0 and not started and (packaged := find_packaged(weights, config.backbone.name)):
        log.say(f"backbone.weights {weights}: {packaged}")
    if world_size() > 1:
        images, accumulate = config.solver.images_per_step, config.solver.accumulate
        log.say(
            f"{images} images a step on {world_size()} processes: {images_per_rank(images, accumulate) * accumulate} "
            f"each; learning rate as configured for {images}"
        )
    if not (weights or started) and any(map(_is_frozen, state.model.modules())):
        log.say(
            "warning: backbone.norm frozen_bn without backbone.weights normalises nothing, and deep networks diverge; "
            "set backbone.weights, or backbone.norm to bn or gn"
        )


def _is_frozen(module: torch.nn.Module) -> bool:
    return isinstance(module, FrozenBatchNorm)


def _check_same_model(checkpoint: Checkpoint[ProgramConfig], config: ProgramConfig) -> None:
    """Raises if changed keys give the weights another meaning, where loading them would not fail."""
    changed = different_meaning(checkpoint.config, config)
    if changed:
        raise ValueError(f"{checkpoint.path} can't be resumed with another model: {'; '.join(changed)}")


def _chosen_by(config: ProgramConfig) -> tuple[str | None, tuple[str, ...]]:
    return config.solver.best_metric, tuple(config.data.val)


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def _impatient(solver: SolverConfig, stale: int) -> bool:
    """Tells whether training ends because the last ``stale`` evaluations were no better than one before."""
    return 0 < solver.patience <= stale


def _why_it_ends(solver: SolverConfig, state: TrainState) -> str:
    best = "no value" if state.best is None else f"{state.best:.4g}"
    looks = f"{state.stale} evaluation{'s' * (state.stale > 1)}"
    return (
        f"ends after iteration {state.iteration} of {solver.iterations}: {looks} without a better "
        f"{solver.best_metric} than {best}, solver.patience is {solver.patience}; the best weights are kept"
    )


def _evaluates(solver: SolverConfig, iteration: int) -> bool:
    """Returns whether an evaluation is due after ``iteration``."""
    return iteration >= solver.iterations or _due(iteration, solver.evaluate_every)


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
