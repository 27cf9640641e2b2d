"""Trains a detector: from a config to the files of a run directory.

The files are those of engine/trainer.py, RUN/train_batch.jpg (the first batch as the network sees it), and
RUN/result.json and RUN/detections.json from the test on data.test at the end (tasks/test.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detection.build import build_detector, compile_losses, data_parts, judged_fields, needed_fields, with_keypoints
from detection.build_panoptic import label_rows, with_stuff
from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex
from detection.data.loader import detection_loader, load_data
from detection.engine.device import choose_device
from detection.engine.distributed import is_main, only_main, rank, start, together, world_size
from detection.engine.evaluate import evaluate
from detection.engine.label_counts import label_classes
from detection.engine.trainer import Trainer
from detection.engine.transfer import differing_meaning, load_initial_weights
from detection.evaluation.metrics import read_metric
from detection.model.architecture import Architecture
from detection.progress import SCREEN, bar
from detection.tasks.fit import fit_memory
from detection.tasks.pictures import draw_watched
from detection.tasks.test import check_stuff, measure, warn_of_many_proposals, write_measured
from detection.tasks.train_batch import drawing_first
from detection.weights.origin import read_origin

__all__ = ["run_training"]


def run_training(
    config: DetectionConfig,
    output: Path,
    *,
    resume: bool = False,
    fit: bool = False,
    fixed: Sequence[str] = (),
    proposals: Path | None = None,
) -> dict[str, Any]:
    """Trains the detector that ``config`` describes into ``output`` and returns its last result.

    Under torchrun every process calls it, and all return the same result.

    Args:
        config: config of the run.
        output: the run directory, created if needed.
        resume: continue from the newest checkpoint in ``output``, if there is one.
        fit: first find the smallest solver.accumulate with which an iteration fits in GPU memory.
        fixed: parts that are not trained and have no loss, such as "backbone" and "rpn".
        proposals: file of proposals on the training set, to train a Fast R-CNN alone; None: those of the RPN.

    Raises:
        ValueError: bad data or config, or ``output`` holds a run and ``resume`` is not set.
        NotFiniteError: a loss or gradient is infinite or not a number, and solver.on_not_finite does not skip it.
        StoppedError: a signal ended the run; a checkpoint was saved.
        MemoryError: the GPU is out of memory.
        OSError: a file can't be written.
    """
    device = choose_device(config.device)
    _check_order(config, device)
    start(device)
    warn_of_many_proposals(config.rpn.post_nms_train, "rpn.post_nms_train", only_main(SCREEN.print))
    if config.data.slice is not None and config.test.slice is None:
        only_main(SCREEN.print)(
            f"warning: training is on windows (data.slice {config.data.slice}), and tests are on whole images resized; "
            f"set test.slice={config.data.slice} to test as in training"
        )
    sets = load_data(
        config.data,
        say=only_main(SCREEN.print),
        fields=needed_fields(config, training=True),
        test_fields=needed_fields(config),
        limit=config.data.limit,
        **data_parts(config),
    )
    index, val, test = sets.pop("train"), sets.get("val"), sets.get("test")
    config = with_stuff(with_keypoints(config, index.keypoints), index.label_maps)
    for key, judged in (("data.val", val), ("data.test", test)):
        if judged is not None:
            check_stuff(config, judged, key)
    if config.solver.best_metric is not None:  # fails early on a misspelt name
        fields, labels = judged_fields(config), label_classes(index)
        figures = evaluate([], index.class_names, "area", fields=fields, labels=labels, boundary=config.test.boundary)
        read_metric(figures, config.solver.best_metric)
        if val is not None and (lacking := _without_truth(config.solver.best_metric, val)):
            only_main(SCREEN.print)(
                f"warning: solver.best_metric {config.solver.best_metric!r} has no value, since data.val has no object "
                f"{lacking}: no weights are chosen by it, and the last ones stand"
            )
    if fit:
        config = fit_memory(config, lambda: _build(config, index, fixed, fresh=not resume), index, device)
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: _build(config, index, fixed, fresh=fresh),
        load=drawing_first(
            partial(detection_loader, index, config.data, share=(rank(), world_size()), proposals=proposals),
            output / "train_batch.jpg",
            index.class_names,
            say=only_main(SCREEN.print),
            keypoints=index.keypoints,
            label_names=() if index.label_maps is None else index.label_maps.class_names,
        ),
        validate=(
            None
            if val is None or not val.has_ground_truth
            else lambda model: measure(config, [_detector(model)], val).result
        ),
        draw=None if val is None or not val.has_ground_truth else partial(draw_watched, config, index=val),
        test=None if test is None else lambda model, facts: _test(config, model, test, output, facts),
        sets=sets,
        resume=resume,
        compiled=partial(compile_losses, config) if config.solver.compile else None,
    ).run()


def _check_order(config: DetectionConfig, device: torch.device) -> None:
    if config.deterministic and device.type == "cuda" and config.box.pool == "roi_pool":
        raise ValueError(
            "deterministic: torchvision's RoIPool adds gradients in any order on a GPU; "
            "set box.pool to roi_align, or deterministic to false"
        )
    if config.deterministic and device.type == "cuda" and config.backbone.deform:
        raise ValueError(
            "deterministic: torchvision's deformable convolution adds gradients in any order on a GPU; "
            "set backbone.deform to null, or deterministic to false"
        )


def _without_truth(metric: str, val: AnnotationIndex) -> str | None:
    """Returns what ``val`` lacks to compute ``metric``; None if nothing that is known beforehand is missing."""
    if metric.partition(".")[0] in ("semseg", "panoptic"):  # known only after the label images have been read
        return None
    wanted = set(val.labels[~val.ignore].tolist())
    of_class = metric.partition(".per_class.")[2]
    for label, name in enumerate(val.class_names):
        if f"{of_class}.".startswith(f"{name}.") and label not in wanted:
            return f"of class {name!r}"
    return None if wanted else "that is not ignored"


def _build(config: DetectionConfig, index: AnnotationIndex, fixed: Sequence[str], *, fresh: bool) -> Architecture:
    """Returns the detector of ``config``, with its initial weights if the run is new."""
    detector = build_detector(config, len(index.class_names), pretrained=fresh and config.init is None, fixed=fixed)
    if fresh and config.init is not None:
        say = only_main(SCREEN.print)
        with together("getting the weights to start from"):  # may download weights
            if is_main():
                with bar(config.init, unit="bytes") as move:
                    read_origin(config.init, progress=move)
        origin = read_origin(config.init)
        carried = load_initial_weights(
            detector, origin, index.class_names, config.init_classes, row_names=label_rows(origin.config)
        )
        for line in carried.lines:
            say(line)
        for line in differing_meaning(config, origin):
            say(f"  warning: {line}, so its weights mean something else here")
    return detector


def _test(
    config: DetectionConfig, model: nn.Module, index: AnnotationIndex, output: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Tests ``model`` on data.test, writes the files and returns the result."""
    measured = measure(config, [_detector(model)], index, output=output)
    return write_measured(measured, index, output, facts | {"tested_on": list(config.data.test)})


def _detector(model: nn.Module) -> Architecture:
    assert isinstance(model, Architecture)
    return model
