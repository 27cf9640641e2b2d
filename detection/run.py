"""A whole training run and a whole test, from a config to the files of an output directory.

RUN/config.yaml        the resolved config
RUN/metrics.jsonl      losses, rates, times; the metrics of every evaluation
RUN/tensorboard/       the same for TensorBoard
RUN/checkpoints/       see engine/checkpoint.py
RUN/result.json        of the last evaluation, fractions 0..1
RUN/detections.json    in COCO's results format
RUN/pictures/          detections drawn on test images
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from backbones.norm import FrozenBatchNorm
from detection.build import build_detector, build_tester
from detection.config import Config
from detection.config_io import dump_config
from detection.data.build import build_test_loader, build_train_loader
from detection.data.cards import data_root, load_card, load_dataset
from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.problems import summarize
from detection.engine.checkpoint import (
    Checkpoint,
    Checkpoints,
    load_detector_weights,
    load_initial_weights,
    read_checkpoint,
)
from detection.engine.evaluate import Predictions, evaluate, metric, predict
from detection.engine.log import RunLog, peak_memory_gib
from detection.engine.optim import build_optimizer
from detection.engine.train import TrainState, train
from detection.evaluation.coco import coco_results
from detection.model.detector import Detector
from detection.visualize import draw_record, save_picture

__all__ = ["choose_device", "run_test", "run_training"]

Say = Callable[[str], None]


def choose_device(config: Config) -> torch.device:
    """The device that ``config`` asks for; "auto" is CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and missing.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("device is 'cuda', but torch finds no CUDA device; set device=auto or device=cpu")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


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
    device = choose_device(config)
    index = _load(config.data.train, config, "data.train")
    test_index = _load(config.data.test, config, "data.test") if config.data.test else None
    if test_index and test_index.class_names != index.class_names:
        raise ValueError(
            f"data.train has the classes {index.class_names}, data.test has {test_index.class_names}; "
            "they must be the same, in the same order"
        )
    metric(evaluate([], index.class_names, "area"), config.solver.best_metric)  # a misspelt name ends here, not later
    checkpoints = Checkpoints(
        output / "checkpoints", keep=config.solver.keep_checkpoints, config=config, class_names=index.class_names
    )
    newest = checkpoints.newest()
    if newest and not resume:
        raise ValueError(f"{output} holds a run ({newest[0].name}); add --resume to go on, or choose another directory")
    torch.manual_seed(config.seed)
    fresh = newest is None
    detector = build_detector(config, len(index.class_names), pretrained=fresh and config.init is None)
    if fresh and config.init is not None:
        load_initial_weights(detector, read_checkpoint(config.init), index.class_names, config.init_classes)
    detector.to(device)
    optimizer = build_optimizer(detector, config.solver)
    state = TrainState(detector, optimizer, GradScaler(device.type, enabled=config.solver.precision == "fp16"))
    if newest:
        checkpoints.restore(newest, state)
        if state.iteration >= config.solver.iterations:
            raise ValueError(
                f"{output} is at iteration {state.iteration} of {config.solver.iterations}: nothing is left to train; "
                "raise solver.iterations, or test it with tools/test_net.py"
            )
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(dump_config(config))
    with RunLog(output, iterations=config.solver.iterations, start=state.iteration) as log:
        log.say(_describe(config, detector, index, device, state.iteration))
        if config.backbone.weights is None and any(isinstance(m, FrozenBatchNorm) for m in detector.modules()):
            log.say(
                "warning: backbone.norm frozen_bn without backbone.weights normalises nothing; deep networks diverge. "
                "Set backbone.weights, or backbone.norm to bn or gn"
            )
        return _train(state, config, index, test_index, checkpoints, log, output)


def run_test(
    config: Config,
    checkpoint: Checkpoint,
    output: Path,
    *,
    ensemble: Sequence[Checkpoint] = (),
    limit: int | None = None,
    pictures: int = 0,
    say: Say = print,
) -> dict[str, Any]:
    """Tests ``checkpoint`` on ``config.data.test``, writes the files of ``output`` and returns the result.

    Args:
        config: of the run.
        checkpoint: weights of a detector that ``config`` describes.
        output: directory for result.json, detections.json and pictures/.
        ensemble: further detectors, each built as its own config says; they must know the same classes.
        limit: only the first images.
        pictures: how many images to draw.
        say: takes lines to show.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    device = choose_device(config)
    index = _load(config.data.test, config, "data.test")
    detectors = [_restored(config, checkpoint, index.class_names)]
    detectors += [_restored(member.config, member, index.class_names) for member in ensemble]
    tester = build_tester(config.test, detectors).to(device)
    rows = range(len(index) if limit is None else min(limit, len(index)))
    loader = build_test_loader(index, config.data, rows=rows)
    predictions = predict(tester, loader, index, device=device, precision=config.solver.precision)
    result = _write_result(predictions, index, config, output)
    for record in predictions.records[:pictures]:
        row = index.image_ids.tolist().index(record.image_id)
        image = read_image(record.file_name, apply_exif=bool(index.apply_exif[row]))
        drawn = draw_record(image, record, index.class_names)
        save_picture(output / "pictures" / f"{Path(record.file_name).stem}.jpg", drawn)
    say(f"{len(predictions.records)} images, {predictions.seconds_per_image:.3f} s per image, {device}")
    return result


def _restored(config: Config, checkpoint: Checkpoint, class_names: Sequence[str]) -> Detector:
    detector = build_detector(config, len(class_names), pretrained=False)
    load_detector_weights(detector, checkpoint, class_names)
    return detector


def _load(specs: tuple[str, ...], config: Config, key: str, say: Say = print) -> AnnotationIndex:
    if not specs:
        raise ValueError(f"{key} is empty; give card:split, such as voc2007:trainval")
    index, problems = load_dataset(specs, data_root(config.data.root))
    if problems:
        say(f"{', '.join(specs)}: {summarize(problems)}; tools/check_data.py lists them")
    return index


def _describe(config: Config, detector: Detector, index: AnnotationIndex, device: torch.device, start: int) -> str:
    parameters = sum(p.numel() for p in detector.parameters()) / 1e6
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6
    return (
        f"{config.backbone.name}, {parameters:.1f}M parameters ({trainable:.1f}M trainable), {device}; "
        f"{len(index)} images, {len(index.boxes)} objects, {len(index.class_names)} classes; "
        f"iteration {start} of {config.solver.iterations}"
    )


def _train(
    state: TrainState,
    config: Config,
    index: AnnotationIndex,
    test_index: AnnotationIndex | None,
    checkpoints: Checkpoints,
    log: RunLog,
    output: Path,
) -> dict[str, Any]:
    solver, device = config.solver, choose_device(config)
    batch_size = solver.images_per_step // solver.accumulate
    loader = build_train_loader(
        index, config.data, batch_size=batch_size, seed=config.seed, start=state.iteration * solver.accumulate
    )
    result: dict[str, Any] = {}

    def after_step(state: TrainState) -> None:
        last = state.iteration == solver.iterations
        evaluates = test_index is not None and (last or _due(state.iteration, solver.evaluate_every))
        if last or evaluates or _due(state.iteration, solver.checkpoint_every):
            checkpoints.save(state)  # first, so that whatever an evaluation meets costs no training
        if test_index is None or not evaluates:
            return
        result.update(_evaluate(state, config, test_index, log, output))
        value = metric(result, solver.best_metric)
        if value is not None and (state.best is None or value > state.best):
            state.best = value
            checkpoints.keep_best(checkpoints.save(state))

    train(state, loader, solver, device=device, report=log.metrics, after_step=after_step)
    log.say(f"trained {solver.iterations} iterations; checkpoints in {checkpoints.folder}")
    return result


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0


def _evaluate(state: TrainState, config: Config, index: AnnotationIndex, log: RunLog, output: Path) -> dict[str, Any]:
    assert isinstance(state.model, Detector)
    loader = build_test_loader(index, config.data)
    predictions = predict(state.model, loader, index, device=choose_device(config), precision=config.solver.precision)
    result = _write_result(predictions, index, config, output)
    figures = {f"bbox.{name}": result["bbox"][name] for name in ("AP", "AP50", "AP75")}
    figures["voc.mAP"] = result["voc"]["mAP"]
    log.metrics(state.iteration, {name: value for name, value in figures.items() if value is not None})
    return result


def _write_result(predictions: Predictions, index: AnnotationIndex, config: Config, output: Path) -> dict[str, Any]:
    voc_metric = load_card(config.data.test[0].rpartition(":")[0]).voc_metric
    result = evaluate(predictions.records, index.class_names, voc_metric)
    result |= {
        "images": len(predictions.records),
        "seconds_per_image": predictions.seconds_per_image,
        "peak_memory_gib": peak_memory_gib(),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "detections.json").write_text(json.dumps(coco_results(predictions.records, index.category_ids)))
    return result
