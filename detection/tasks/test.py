"""Tests a detector: from a config and checkpoints to the files of an output directory.

result.json        fractions 0..1: COCO's twelve metrics, VOC mAP, metrics of label maps, overall and per class
proposals.json     average recall of the RPN, on request
detections.json    in COCO's results format; image ids are those of the data set, for VOC 1..N in list order
pictures/          detections drawn on test images
submission/        the files that the data set's evaluation server reads, on request

Semantic and panoptic networks also write the files of tasks/label_files.py; semantic networks write no
detections.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from detection.build import (
    build_detector,
    data_parts,
    field_operations,
    judged_fields,
    needed_fields,
)
from detection.build_panoptic import build_merge, with_stuff
from detection.build_tester import build_image_tester, slice_images
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, load_config
from detection.config.schema import different_meaning
from detection.data.cards import load_card
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader, load_index
from detection.data.transforms import Change
from detection.engine.checkpoint import Checkpoint, describe_weights, load_detector_weights
from detection.engine.device import choose_device, peak_memory_gib
from detection.engine.distributed import (
    EVALUATION_TIMEOUT,
    collect,
    gather,
    is_main,
    only_main,
    rank,
    start,
    together,
    world_size,
)
from detection.engine.evaluate import evaluate, predict, propose
from detection.engine.label_counts import label_classes
from detection.engine.threshold import shown_from
from detection.evaluation.coco import coco_results
from detection.evaluation.recall import ProposalRecord, average_recall
from detection.evaluation.record import Record
from detection.evaluation.report import VocMetric
from detection.export.runtime import Exported
from detection.files import write_text
from detection.model.architecture import Architecture
from detection.progress import SCREEN, tracked
from detection.tasks.evaluate import read_detections, without_objects
from detection.tasks.label_files import SEGMENTATION, LabelFiles, read_counts, write_counts
from detection.tasks.submission import find_submission
from detection.visualize import draw_record, save_picture

__all__ = [
    "Measured",
    "check_stuff",
    "load_test_set",
    "measure",
    "proposal_recall",
    "read_records",
    "restore_detector",
    "run_test",
    "warn_of_many_proposals",
    "write_measured",
]

DETECTIONS = "detections.json"
MANY_PROPOSALS = 5_000  # per image; the detectors of the papers have 300 to 2,000
RECALL_LIMITS = (100, 300, 1000)  # proposals per image


def load_test_set(config: DetectionConfig, say: Callable[[str], None]) -> AnnotationIndex:
    """Returns the images of ``config.data.test``, with the fields that its detector predicts.

    Raises:
        ValueError: no data set, errors in it, or no label maps for a network that predicts them.
    """
    data, fields, parts = config.data, needed_fields(config), data_parts(config)
    index = load_index(data, data.test, key="data.test", say=say, fields=fields, limit=data.limit, **parts)
    check_stuff(config, index, f"data.test {', '.join(data.test)}")
    return index


def check_stuff(config: DetectionConfig, index: AnnotationIndex, where: str) -> None:
    """Raises ValueError, which begins with ``where``, if ``index`` can't judge the panoptic network of ``config``."""
    if not index.has_ground_truth:
        return
    try:
        with_stuff(config, index.label_maps)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def run_test(
    config: DetectionConfig,
    checkpoint: Checkpoint[DetectionConfig] | Exported,
    output: Path,
    *,
    ensemble: Sequence[Checkpoint[DetectionConfig]] = (),
    limit: int | None = None,
    pictures: int = 0,
    submit: bool = False,
    say: Callable[[str], None] = SCREEN.print,
) -> dict[str, Any]:
    """Tests ``checkpoint`` on ``config.data.test``, writes the files of ``output`` and returns the result.

    Args:
        config: config of the run.
        checkpoint: weights of a detector that ``config`` describes, or an export of it.
        output: directory for result.json, detections.json, config.yaml and pictures/.
        ensemble: further detectors, each built from its own config; all must have the same classes.
        limit: number of images, the first ones; None: all.
        pictures: number of images to draw.
        submit: also write submission/.
        say: called with each line of progress.

    Raises:
        ValueError: bad data or config, weights that do not fit, or ``submit`` for a data set without a server.
    """
    start(choose_device(config.device))
    say = only_main(say)
    warn_of_many_proposals(config.rpn.post_nms_test, "rpn.post_nms_test", say)
    index = load_test_set(config, say)
    write_submission = find_submission(config.data, objects=config.finds_objects) if submit else None
    if isinstance(checkpoint, Exported):
        if ensemble:
            raise ValueError(f"{checkpoint.path} is an export, which has no ensemble; leave out --ensemble")
        checkpoint.check_config(config, index.class_names)
        source, detectors = checkpoint.source, [checkpoint]
    else:
        source, detectors = checkpoint, [restore_detector(config, checkpoint, index.class_names)]
    detectors += [restore_detector(member.config, member, index.class_names) for member in ensemble]
    measured = measure(config, detectors, index, limit=limit, output=output, pictures=pictures)
    facts = {} if ensemble else {"weights": describe_weights(source, config.data.test)}
    result = write_measured(measured, index, output, facts | {"tested_on": list(config.data.test)})
    if is_main() and not (output / "checkpoints").exists():  # a run directory keeps the config of its training
        write_text(output / "config.yaml", dump_config(config))
    if write_submission is not None and is_main():
        write_submission(measured.records, index, output / "submission")
    # Pictures of label maps are drawn where the maps are written.
    for number, record in enumerate(islice(measured.records, 0 if config.finds_label_maps else pictures)):
        drawn = draw_record(index.image(number), record, index.class_names, min_score=shown_from(result))
        save_picture(output / "pictures" / f"{number:05d}_{Path(record.file_name).stem}.jpg", drawn)
    say(f"{result['images']} images, {result['seconds_per_image']:.3f} s per image, {choose_device(config.device)}")
    return result


def warn_of_many_proposals(number: int, key: str, say: Callable[[str], None]) -> None:
    """Warns if ``key`` keeps so many proposals that the test is slow."""
    if number > MANY_PROPOSALS:
        say(
            f"warning: {key} {number}: so many regions per image are pooled and classified at once, which costs time "
            "and memory"
        )


def proposal_recall(
    config: DetectionConfig, checkpoint: Checkpoint[DetectionConfig], output: Path, *, limit: int | None = None
) -> dict[str, float | None]:
    """Measures average recall of the RPN's best 100, 300 and 1000 proposals on ``config.data.test``.

    Writes proposals.json.

    Args:
        config: config of the run.
        checkpoint: weights of a detector that ``config`` describes; its box stage need not be trained.
        output: directory for proposals.json.
        limit: number of images, the first ones; None: all.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    start(choose_device(config.device))
    index = load_test_set(config, only_main(SCREEN.print))
    most = max(RECALL_LIMITS)
    rpn = replace(config.rpn, post_nms_test=most, pre_nms_test=max(most, config.rpn.pre_nms_test))
    device = choose_device(config.device)
    detector = restore_detector(replace(config, rpn=rpn), checkpoint, index.class_names).to(device)
    rows = _share(index, limit)
    loader = build_test_loader(index, config.data, rows=rows, pin=device.type == "cuda")
    records = []
    with together("testing its share of the images", timeout=EVALUATION_TIMEOUT):
        for row, proposals in zip(rows, propose(detector, loader, index, device=device), strict=True):
            target = index.target(row)
            wanted = target.boxes[~target.ignore].numpy()
            records.append(ProposalRecord(gt_boxes=wanted, boxes=proposals.boxes.numpy()))
    found = collect(records)
    recall: dict[str, float | None] = {}
    with together("computing recall", timeout=EVALUATION_TIMEOUT):
        if found is not None:
            recall = _write_recall(found, output)
    return gather(recall)[0]


def _write_recall(records: Sequence[ProposalRecord], output: Path) -> dict[str, float | None]:
    recall = {name: None if math.isnan(v) else v for name, v in average_recall(records, RECALL_LIMITS).items()}
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "proposals.json", json.dumps(recall, indent=2) + "\n")
    return recall


@dataclass(frozen=True, slots=True)
class Measured:
    """Detections on a data set, and their metrics.

    Attributes:
        result: the content of result.json, the same on every process.
        records: records in the order of the data set on the main process; empty on the others.
        objects: whether the detectors find objects.
    """

    result: dict[str, Any]
    records: list[Record]
    objects: bool = True


def measure(
    config: DetectionConfig,
    detectors: Sequence[Architecture | Exported],
    index: AnnotationIndex,
    *,
    limit: int | None = None,
    corrupt: Change | None = None,
    output: Path | None = None,
    pictures: int = 0,
) -> Measured:
    """Tests ``detectors`` on the images of ``index``; without ground truth, metrics are None.

    Args:
        config: config of the run.
        detectors: one detector, or an ensemble.
        index: index of the test set.
        limit: number of images, the first ones; None: all.
        corrupt: applied to each image before the test.
        output: directory for label maps, if the detectors predict any.
        pictures: number of label maps to draw.
    """
    device = choose_device(config.device)
    tester, sliced = _tester(config, detectors).to(device), config.test.slice is not None
    rows = _share(index, limit)
    loader = build_test_loader(
        index, config.data, rows=rows, corrupt=corrupt, unresized=sliced, pin=device.type == "cuda"
    )
    with (
        together("testing its share of the images", timeout=EVALUATION_TIMEOUT),
        tracked(loader, "testing", total=len(rows), count=_images, shown=is_main()) as batches,
    ):
        precision, operations = config.solver.precision, field_operations(config)
        files = _label_files(config, index, output, pictures)
        predictions = predict(
            tester,
            batches,
            index,
            device=device,
            precision=precision,
            fields=operations,
            merge=build_merge(config, len(index.class_names)),
            keep=files,
        )
    if files is not None:
        files.finish()
    records = collect(predictions.records)
    result: dict[str, Any] = {}
    with together("computing AP", timeout=EVALUATION_TIMEOUT):
        if records is not None:
            result = _figures(config, records, index) | {
                "images": len(records),
                "seconds_per_image": predictions.seconds_per_image,
                "peak_memory_gib": peak_memory_gib(device),
            }
    return Measured(gather(result)[0], records or [], config.finds_objects)


def _label_files(
    config: DetectionConfig, index: AnnotationIndex, output: Path | None, pictures: int
) -> LabelFiles | None:
    """Returns the writer of label maps into ``output``; None if there are none to write."""
    if output is None or not config.finds_label_maps or index.label_maps is None:
        return None
    return LabelFiles(index, output, pictures=pictures)


def _images(batch: Batch) -> int:
    return len(batch.rows)


def _tester(config: DetectionConfig, detectors: Sequence[Architecture | Exported]) -> nn.Module:
    """Returns a module that tests ``detectors`` (several, or one exported file) on images from the loader."""
    parts = [detector for detector in detectors if not isinstance(detector, Exported)]
    if parts:
        return build_image_tester(config, parts, say=only_main(SCREEN.print))
    (exported,) = detectors
    return exported if config.test.slice is None else slice_images(config, exported)


def _figures(config: DetectionConfig, records: list[Record], index: AnnotationIndex) -> dict[str, Any]:
    """Returns the metrics of ``records``; None for detections if the objects of an image are unknown."""
    judged, fields = records if index.has_ground_truth else [], judged_fields(config)
    labels, boundary = label_classes(index), config.test.boundary
    return evaluate(judged, index.class_names, _voc_metric(config), fields=fields, labels=labels, boundary=boundary)


def write_measured(
    measured: Measured, index: AnnotationIndex, output: Path, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes result.json, with ``facts`` about the run, and the detections or counts; returns the result."""
    result = {**measured.result, **facts}
    with together("writing the result"):
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            if measured.objects:
                write_text(output / DETECTIONS, json.dumps(coco_results(measured.records, index.category_ids)))
            if index.label_maps is not None:
                write_counts(output / SEGMENTATION, measured.records, index.label_maps)
            write_text(output / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _voc_metric(config: DetectionConfig) -> VocMetric:
    """Returns the definition of VOC AP that the first card under data.test or data.val asks for."""
    first = next(iter((*config.data.test, *config.data.val)))
    return load_card(first.rpartition(":")[0]).voc_metric


def _share(index: AnnotationIndex, limit: int | None) -> range:
    """Returns the rows among the first ``limit`` of ``index`` that this process tests."""
    return range(len(index) if limit is None else min(limit, len(index)))[rank() :: world_size()]


def read_records(run: Path, *, say: Callable[[str], None] = SCREEN.print) -> tuple[AnnotationIndex, list[Record]]:
    """Reads the test images of a run, and its detections.json and segmentation.json as records in the same order.

    The images are those that result.json names as tested, whatever the config says.

    Args:
        run: directory with config.yaml, result.json (number of tested images) and the files of detections or counts.
        say: called with each line of progress.

    Raises:
        ValueError: a missing or broken file, bad data, or a detection of an unknown image or category.
    """
    config, result = load_config(DetectionConfig, run / "config.yaml"), _read_json(run / "result.json")
    tested = tuple(result.get("tested_on", config.data.test))  # results of earlier versions lack it
    config = replace(config, data=replace(config.data, test=tested))
    index = load_test_set(config, say).first(result["images"])
    repair = "; has the data set changed since? Test again: resdet test writes it"
    if config.finds_objects:
        source, masks = ", ".join(config.data.test), "masks" in needed_fields(config)
        records = read_detections(index, run / DETECTIONS, source=source, repair=repair, masks=masks)
    else:
        records = without_objects(index)
    if index.label_maps is not None:
        records = read_counts(run / SEGMENTATION, records, index.label_maps)
    return index, records


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}; resdet test writes it") from error


def restore_detector(
    config: DetectionConfig, checkpoint: Checkpoint[DetectionConfig], class_names: Sequence[str]
) -> Architecture:
    """Returns the detector that ``config`` describes with the weights of ``checkpoint``, on the CPU.

    Raises:
        ValueError: other classes, weights of another architecture, or a config that changes their meaning.
    """
    own, trained = config.keypoint, checkpoint.config.keypoint
    if not own.names:
        config = replace(config, keypoint=replace(own, names=trained.names, edges=trained.edges))
    if not config.panoptic.stuff:
        config = replace(config, panoptic=replace(config.panoptic, stuff=checkpoint.config.panoptic.stuff))
    detector = build_detector(config, len(class_names), pretrained=False)
    load_detector_weights(detector, checkpoint, class_names)
    changed = different_meaning(checkpoint.config, config)
    if changed:
        raise ValueError(f"{checkpoint.path} was trained under another config: {'; '.join(changed)}")
    return detector
