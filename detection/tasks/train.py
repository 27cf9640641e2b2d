"""A whole training run of a detector, from a config to the files of an output directory.

Those of engine/trainer.py, and RUN/result.json of the last evaluation with detections.json: see tasks/test.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detection.build import build_detector, needed_fields
from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex
from detection.data.loader import detection_loader, load_data
from detection.engine.checkpoint import load_initial_weights, read_checkpoint
from detection.engine.device import choose_device
from detection.engine.distributed import only_main, rank, start, world_size
from detection.engine.evaluate import evaluate
from detection.engine.trainer import Trainer
from detection.evaluation.metrics import read_metric
from detection.model.architecture import Architecture
from detection.tasks.test import measure, write_measured

__all__ = ["run_training"]


def run_training(
    config: DetectionConfig,
    output: Path,
    *,
    resume: bool = False,
    fixed: Sequence[str] = (),
    proposals: Path | None = None,
) -> dict[str, Any]:
    """Trains the detector that ``config`` describes into ``output`` and returns its last result.

    Under torchrun every process calls it, and all return the same.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        resume: go on from the newest checkpoint in it, if there is one.
        fixed: parts that are not trained and have no loss, such as "backbone" and "rpn".
        proposals: file with those of the training set, for a Fast R-CNN alone; None: the model's own.

    Raises:
        ValueError: bad data or config, or ``output`` holds a run and ``resume`` is not set.
        NotFiniteError: a loss or gradient is infinite or not a number, and solver.on_not_finite does not skip it.
        StoppedError: a signal asked the run to end; it is saved.
        MemoryError: the GPU has no memory left.
        OSError: a file can't be written.
    """
    device = choose_device(config.device)
    _check_order(config, device)
    start(device)
    sets = load_data(
        config.data,
        say=only_main(print),
        fields=needed_fields(config, training=True),
        test_fields=needed_fields(config),
        limit=config.data.limit,
    )
    index, val, test = sets.pop("train"), sets.get("val"), sets.get("test")
    if config.solver.best_metric is not None:  # a misspelt name ends here, not later
        figures = evaluate([], index.class_names, "area", masks="masks" in needed_fields(config))
        read_metric(figures, config.solver.best_metric)
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: _build(config, index, fixed, fresh=fresh),
        load=partial(detection_loader, index, config.data, share=(rank(), world_size()), proposals=proposals),
        validate=(
            None
            if val is None or not val.has_ground_truth
            else lambda model: measure(config, [_detector(model)], val).result
        ),
        test=None if test is None else lambda model, facts: _test(config, model, test, output, facts),
        sets=sets,
        resume=resume,
    ).run()


def _check_order(config: DetectionConfig, device: torch.device) -> None:
    if config.deterministic and device.type == "cuda" and config.box.pool == "roi_pool":
        raise ValueError(
            "deterministic: torchvision's RoIPool adds gradients in any order on a GPU; "
            "set box.pool to roi_align, or deterministic to false"
        )


def _build(config: DetectionConfig, index: AnnotationIndex, fixed: Sequence[str], *, fresh: bool) -> Architecture:
    """The detector of ``config``, with its initial weights if the run is a fresh one."""
    detector = build_detector(config, len(index.class_names), pretrained=fresh and config.init is None, fixed=fixed)
    if fresh and config.init is not None:
        load_initial_weights(detector, read_checkpoint(config.init), index.class_names, config.init_classes)
    return detector


def _test(
    config: DetectionConfig, model: nn.Module, index: AnnotationIndex, output: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Returns the result of ``model`` on data.test, whose files it writes."""
    measured = measure(config, [_detector(model)], index)
    return write_measured(measured, index, output, facts)


def _detector(model: nn.Module) -> Architecture:
    assert isinstance(model, Architecture)
    return model
