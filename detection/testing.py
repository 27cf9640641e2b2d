"""A whole test, from a config and checkpoints to the files of an output directory.

result.json        fractions 0..1: COCO's twelve numbers, VOC mAP, both per class
proposals.json     average recall of the RPN, on request
detections.json    in COCO's results format; image ids are the data set's, for VOC 1..N in the order of the list
pictures/          detections drawn on test images
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from detection.build import build_detector, build_tester
from detection.config import Config
from detection.data.build import build_test_loader
from detection.data.cards import data_root, load_card, load_dataset
from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.problems import summarize
from detection.engine.checkpoint import Checkpoint, load_detector_weights
from detection.engine.evaluate import evaluate, predict, propose
from detection.engine.log import peak_memory_gib
from detection.evaluation.coco import coco_results
from detection.evaluation.proposals import ProposalRecord, average_recall
from detection.evaluation.records import Record
from detection.model.detector import Detector
from detection.visualize import draw_record, save_picture

__all__ = ["choose_device", "evaluate_detectors", "load_index", "proposal_recall", "run_test"]

RECALL_LIMITS = (100, 300, 1000)  # proposals per image

# Keys that change what weights mean without changing a name or a shape among them.
SILENT_KEYS = (
    "backbone.weights_source",
    "backbone.norm_eps",
    "backbone.stride_in",
    "backbone.tail_stride",
    "backbone.dilate_c5",
    "backbone.roi_size",
    "anchors.sizes",
    "anchors.ratios",
    "anchors.offset",
    "anchors.rounded",
    "box.pool",
    "box.sampling_ratio",
    "box.coder_weights",
    "mask.pool_size",
)


def choose_device(config: Config) -> torch.device:
    """The device that ``config`` asks for; "auto" is CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and missing.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("device is 'cuda', but torch finds no CUDA device; set device=auto or device=cpu")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def load_index(config: Config, specs: tuple[str, ...], *, key: str, say: Callable[[str], None]) -> AnnotationIndex:
    """The data sets ``specs``, which the config's ``key`` names, and a line to ``say`` if objects were dropped.

    Raises:
        ValueError: no data set, or one with errors.
    """
    if not specs:
        raise ValueError(f"{key} is empty; give a list of card:split, such as [voc2007:trainval]")
    index, problems = load_dataset(specs, data_root(config.data.root), masks=config.mask.enabled)
    if problems:
        say(f"{', '.join(specs)}: {summarize(problems)}; tools/check_data.py lists them")
    return index if config.data.limit is None else index.first(config.data.limit)


def run_test(
    config: Config,
    checkpoint: Checkpoint,
    output: Path,
    *,
    ensemble: Sequence[Checkpoint] = (),
    limit: int | None = None,
    pictures: int = 0,
    say: Callable[[str], None] = print,
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
    index = load_index(config, config.data.test, key="data.test", say=say)
    detectors = [_restored(config, checkpoint, index.class_names)]
    detectors += [_restored(member.config, member, index.class_names) for member in ensemble]
    result, records = evaluate_detectors(config, detectors, index, output, limit=limit)
    for number, record in enumerate(islice(records, pictures)):
        image = read_image(record.file_name, apply_exif=bool(index.apply_exif[number]))
        drawn = draw_record(image, record, index.class_names)
        save_picture(output / "pictures" / f"{number:05d}_{Path(record.file_name).stem}.jpg", drawn)
    say(f"{len(records)} images, {result['seconds_per_image']:.3f} s per image, {choose_device(config)}")
    return result


def proposal_recall(
    config: Config, checkpoint: Checkpoint, output: Path, *, limit: int | None = None
) -> dict[str, float | None]:
    """Average recall of the RPN's 100, 300 and 1000 best proposals on ``config.data.test``; writes proposals.json.

    Args:
        config: of the run.
        checkpoint: weights of a detector that ``config`` describes; its box stage need not be trained.
        output: directory for proposals.json.
        limit: only the first images.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    index = load_index(config, config.data.test, key="data.test", say=print)
    most = max(RECALL_LIMITS)
    rpn = replace(config.rpn, post_nms_test=most, pre_nms_test=max(most, config.rpn.pre_nms_test))
    device = choose_device(config)
    detector = _restored(replace(config, rpn=rpn), checkpoint, index.class_names).to(device)
    rows = range(len(index) if limit is None else min(limit, len(index)))
    loader = build_test_loader(index, config.data, rows=rows, pin=device.type == "cuda")
    records = []
    for row, proposals in zip(rows, propose(detector, loader, index, device=device), strict=True):
        target = index.target(row)
        wanted = target.boxes[~target.ignore].numpy()
        records.append(ProposalRecord(gt_boxes=wanted, boxes=proposals.boxes.numpy()))
    recall = {name: None if math.isnan(v) else v for name, v in average_recall(records, RECALL_LIMITS).items()}
    output.mkdir(parents=True, exist_ok=True)
    (output / "proposals.json").write_text(json.dumps(recall, indent=2) + "\n")
    return recall


def evaluate_detectors(
    config: Config, detectors: Sequence[Detector], index: AnnotationIndex, output: Path, *, limit: int | None = None
) -> tuple[dict[str, Any], list[Record]]:
    """Tests ``detectors`` together on the first ``limit`` images of ``index``; writes result.json and detections.json.

    Returns:
        The content of result.json, and the records in the order of ``index``.
    """
    device = choose_device(config)
    tester = build_tester(config.test, detectors).to(device)
    rows = range(len(index) if limit is None else min(limit, len(index)))
    loader = build_test_loader(index, config.data, rows=rows, pin=device.type == "cuda")
    predictions = predict(tester, loader, index, device=device, precision=config.solver.precision)
    voc_metric = load_card(config.data.test[0].rpartition(":")[0]).voc_metric
    result = evaluate(predictions.records, index.class_names, voc_metric)
    result |= {
        "images": len(predictions.records),
        "seconds_per_image": predictions.seconds_per_image,
        "peak_memory_gib": peak_memory_gib(device),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    with (output / "detections.json").open("w") as stream:
        json.dump(coco_results(predictions.records, index.category_ids), stream)
    return result, predictions.records


def _restored(config: Config, checkpoint: Checkpoint, class_names: Sequence[str]) -> Detector:
    detector = build_detector(config, len(class_names), pretrained=False)
    load_detector_weights(detector, checkpoint, class_names)
    for key in SILENT_KEYS:
        section, name = key.split(".")
        given, trained = (getattr(getattr(c, section), name) for c in (config, checkpoint.config))
        if given != trained:
            raise ValueError(f"{key} is {given!r} here, and {checkpoint.path} was trained with {trained!r}")
    return detector
