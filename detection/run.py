"""A whole training run, from a config to the files of an output directory.

RUN/config.yaml        the resolved config
RUN/metrics.jsonl      losses, rates, times; the metrics of every evaluation
RUN/tensorboard/       the same for TensorBoard
RUN/checkpoints/       see engine/checkpoint.py
RUN/result.json        of the last evaluation, with detections.json: see testing.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from backbones.norm import FrozenBatchNorm
from detection.build import build_detector
from detection.config import Config
from detection.config_io import dump_config
from detection.data.build import build_train_loader
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import Checkpoints, load_initial_weights, read_checkpoint
from detection.engine.ema import EMA
from detection.engine.evaluate import evaluate, metric
from detection.engine.log import RunLog
from detection.engine.optim import build_optimizer
from detection.engine.train import NotFiniteError, TrainState, train
from detection.model.detector import Detector
from detection.testing import choose_device, evaluate_detectors, load_index

__all__ = ["Evaluation", "is_finished", "load_data", "run_training", "train_model"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a test of the model on the way gives."""

    result: dict[str, Any]
    figures: dict[str, float | None]  # those of the result that the log gets; None: could not be computed


def run_training(config: Config, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains the detector that ``config`` describes into ``output`` and returns its last result.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        resume: go on from the newest checkpoint in it, if there is one.

    Raises:
        ValueError: bad data or config, or ``output`` holds a run and ``resume`` is not set.
        NotFiniteError: a loss is infinite or not a number.
    """
    index, test_index = load_data(config)
    figures = evaluate([], index.class_names, "area", masks=config.mask.enabled)
    metric(figures, config.solver.best_metric)  # a misspelt name ends here, not later
    return train_model(
        config,
        output,
        index,
        build=lambda fresh: _build(config, index, fresh=fresh),
        load=partial(build_train_loader, index, config.data),
        test=None if test_index is None else lambda model: _test(config, model, test_index, output),
        resume=resume,
    )


def load_data(config: Config) -> tuple[AnnotationIndex, AnnotationIndex | None]:
    """The training set and the test set of ``config``, None where it names no test set.

    Raises:
        ValueError: no training set, a data set with errors, or two sets of different classes.
    """
    masks = config.mask.enabled or config.data.copy_paste > 0
    reading = replace(config, mask=replace(config.mask, enabled=masks))
    index = load_index(reading, config.data.train, key="data.train", say=print)
    if not config.data.test:
        return index, None
    test_index = load_index(config, config.data.test, key="data.test", say=print)
    if test_index.class_names != index.class_names:
        raise ValueError(
            f"data.train has the classes {index.class_names}, data.test has {test_index.class_names}; "
            "they must be the same, in the same order"
        )
    return index, test_index


def is_finished(run: Path, config: Config) -> bool:
    """Whether the run in the directory ``run`` has come to its end."""
    if not any((run / "checkpoints").glob("*.state.pt")):
        return False
    return read_checkpoint(run).iteration >= config.solver.iterations


def train_model(
    config: Config,
    output: Path,
    index: AnnotationIndex,
    *,
    build: Callable[[bool], nn.Module],
    load: Callable[..., Iterable[Batch]],
    test: Callable[[nn.Module], Evaluation] | None = None,
    resume: bool = False,
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
        resume: go on from the newest checkpoint in ``output``, if there is one.

    Raises:
        ValueError: bad config, or ``output`` holds a run and ``resume`` is not set.
        NotFiniteError: a loss is infinite or not a number.
    """
    checkpoints = Checkpoints(
        output / "checkpoints", keep=config.solver.keep_checkpoints, config=config, class_names=index.class_names
    )
    newest = checkpoints.newest()
    if newest and not resume:
        raise ValueError(f"{output} holds a run ({newest[0].name}); add --resume to go on, or choose another directory")
    device = choose_device(config)
    state = _initial_state(config, build, device, fresh=newest is None)
    if newest:
        checkpoints.restore(newest, state)
    if state.iteration >= config.solver.iterations:
        raise ValueError(
            f"{output} is at iteration {state.iteration} of {config.solver.iterations}: nothing is left to train; "
            "raise solver.iterations, or test it with tools/test_net.py"
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(dump_config(config))
    with RunLog(output, iterations=config.solver.iterations, device=device, start=state.iteration) as log:
        if resume and not newest:
            log.say(f"nothing to resume in {output}: starting")
        _say_what_trains(config, state, index, device, log)
        return _Run(config, checkpoints, log, load, test).train(state, device)


@dataclass(frozen=True, slots=True)
class _Run:
    """What the steps of one run share."""

    config: Config
    checkpoints: Checkpoints
    log: RunLog
    load: Callable[..., Iterable[Batch]]
    test: Callable[[nn.Module], Evaluation] | None

    def train(self, state: TrainState, device: torch.device) -> dict[str, Any]:
        """Takes all steps that are left; the last result."""
        solver = self.config.solver
        loader = self.load(
            batch_size=solver.images_per_step // solver.accumulate,
            seed=self.config.seed,
            start=state.iteration * solver.accumulate,
            pin=device.type == "cuda",
        )
        result: dict[str, Any] = {}
        try:
            train(
                state,
                loader,
                solver,
                device=device,
                report=self.log.metrics,
                after_step=lambda state: result.update(self._save_and_evaluate(state)),
            )
        except NotFiniteError:  # the weights are suspect; those of the last checkpoint are not
            raise
        except (Exception, KeyboardInterrupt):  # an unreadable image, no memory, Ctrl-C: the steps so far are not lost
            if state.iteration:
                self.log.say(f"stopped; saved {self.checkpoints.save(state)}, and --resume goes on from it")
            raise
        self.log.say(f"trained {solver.iterations} iterations; checkpoints in {self.checkpoints.folder}")
        return result

    def _save_and_evaluate(self, state: TrainState) -> dict[str, Any]:
        """Does what is due after a step; the result, if it evaluated."""
        solver = self.config.solver
        last = state.iteration == solver.iterations
        evaluates = self.test is not None and (last or _due(state.iteration, solver.evaluate_every))
        if not (last or evaluates or _due(state.iteration, solver.checkpoint_every)):
            return {}
        path = self.checkpoints.save(state)  # first, so that whatever an evaluation meets costs no training
        if self.test is None or not evaluates:
            return {}
        tested = self.test(state.tested)
        known = {name: value for name, value in tested.figures.items() if value is not None}
        self.log.metrics(state.iteration, known)
        value = metric(tested.result, solver.best_metric)
        if value is not None and (state.best is None or value > state.best):
            state.best = value
            self.checkpoints.keep_best(path, state)
        return tested.result


def _build(config: Config, index: AnnotationIndex, *, fresh: bool) -> Detector:
    """The detector of ``config``, with its initial weights if the run is a fresh one."""
    detector = build_detector(config, len(index.class_names), pretrained=fresh and config.init is None)
    if fresh and config.init is not None:
        load_initial_weights(detector, read_checkpoint(config.init), index.class_names, config.init_classes)
    return detector


def _test(config: Config, model: nn.Module, index: AnnotationIndex, output: Path) -> Evaluation:
    """The detector ``model``, tested on ``index``; writes the files of ``evaluate_detectors``."""
    assert isinstance(model, Detector)
    result, _ = evaluate_detectors(config, [model], index, output)
    kinds = [kind for kind in ("bbox", "segm") if kind in result]
    figures = {f"{kind}.{name}": result[kind][name] for kind in kinds for name in ("AP", "AP50", "AP75")}
    return Evaluation(result, figures | {"voc.mAP": result["voc"]["mAP"]})


def _initial_state(
    config: Config, build: Callable[[bool], nn.Module], device: torch.device, *, fresh: bool
) -> TrainState:
    """The state before the first step; weights of a run that goes on are not read, since the checkpoint's follow."""
    torch.manual_seed(config.seed)
    model = build(fresh).to(device)
    scaler = GradScaler(device.type, enabled=config.solver.precision == "fp16")
    ema = EMA(model, config.solver.ema_decay) if config.solver.ema_decay else None
    return TrainState(model, build_optimizer(model, config.solver), scaler, ema=ema)


def _say_what_trains(
    config: Config, state: TrainState, index: AnnotationIndex, device: torch.device, log: RunLog
) -> None:
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    trainable = sum(p.numel() for p in state.model.parameters() if p.requires_grad) / 1e6
    log.say(
        f"{config.backbone.name}, {parameters:.1f}M parameters ({trainable:.1f}M trainable), {device}; "
        f"{len(index)} images, {len(index.boxes)} objects, {len(index.class_names)} classes; "
        f"iteration {state.iteration} of {config.solver.iterations}"
    )
    if not (config.backbone.weights or config.init) and any(map(_is_frozen, state.model.modules())):
        log.say(
            "warning: backbone.norm frozen_bn without backbone.weights normalises nothing, and deep networks diverge; "
            "set backbone.weights, or backbone.norm to bn or gn"
        )


def _is_frozen(module: torch.nn.Module) -> bool:
    return isinstance(module, FrozenBatchNorm)


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
