"""A whole training run of a detector, from a config to the files of an output directory.

Those of engine/trainer.py, and RUN/result.json of the last evaluation with detections.json: see tasks/test.py
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detection.build import build_detector
from detection.config.detection import Config
from detection.data.index import AnnotationIndex
from detection.data.loader import build_train_loader, load_index
from detection.engine.checkpoint import load_initial_weights, read_checkpoint
from detection.engine.device import choose_device
from detection.engine.distributed import only_main, rank, start, world_size
from detection.engine.evaluate import evaluate, metric
from detection.engine.trainer import Evaluation, Trainer
from detection.model.faster_rcnn import Detector
from detection.tasks.test import evaluate_detectors

__all__ = ["load_data", "run_training"]


def run_training(config: Config, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains the detector that ``config`` describes into ``output`` and returns its last result.

    Under torchrun every process calls it, and all return the same.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        resume: go on from the newest checkpoint in it, if there is one.

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
    index, test_index = load_data(config)
    figures = evaluate([], index.class_names, "area", masks=config.mask.enabled)
    metric(figures, config.solver.best_metric)  # a misspelt name ends here, not later
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: _build(config, index, fresh=fresh),
        load=partial(build_train_loader, index, config.data, share=(rank(), world_size())),
        test=None if test_index is None else lambda model: _test(config, model, test_index, output),
        test_index=test_index,
        resume=resume,
    ).run()


def load_data(config: Config) -> tuple[AnnotationIndex, AnnotationIndex | None]:
    """The training set and the test set of ``config``, None where it names no test set.

    Raises:
        ValueError: no training set, a data set with errors, or two sets of different classes.
    """
    masks, say = config.mask.enabled, only_main(print)
    pasted = masks or config.data.copy_paste > 0
    index = load_index(config.data, config.data.train, key="data.train", say=say, masks=pasted)
    if not config.data.test:
        return index, None
    test_index = load_index(config.data, config.data.test, key="data.test", say=say, masks=masks)
    if test_index.class_names != index.class_names:
        raise ValueError(
            f"data.train has the classes {index.class_names}, data.test has {test_index.class_names}; "
            "they must be the same, in the same order"
        )
    return index, test_index


def _check_order(config: Config, device: torch.device) -> None:
    if config.deterministic and device.type == "cuda" and config.box.pool == "roi_pool":
        raise ValueError(
            "deterministic: torchvision's RoIPool adds gradients in any order on a GPU; "
            "set box.pool to roi_align, or deterministic to false"
        )


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
