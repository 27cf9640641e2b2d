"""Runs a detector over a test set and hands the records to the evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detection.boxes import clip, scale
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.loop import PRECISIONS
from detection.evaluation.coco import evaluate_coco
from detection.evaluation.record import Record
from detection.evaluation.report import VocMetric, result_dict
from detection.evaluation.voc import evaluate_voc
from detection.masks import paste
from detection.model.architecture import RegionVerbs
from detection.model.postprocess import rescale
from detection.structures import Detections, Proposals

__all__ = ["Predictions", "evaluate", "metric", "predict", "propose"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The records of a test set, and the time that the detector took, without reading the images."""

    records: list[Record]
    seconds_per_image: float


@torch.inference_mode()
def predict(
    detector: nn.Module,
    batches: Iterable[Batch],
    index: AnnotationIndex,
    *,
    device: torch.device,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Predictions:
    """A record for every image in ``batches``, with detections in the pixels of the stored image.

    ``detector`` is an Architecture or a Tester: what turns an ImageBatch into a list of Detections.
    """
    detector.eval()
    records, seconds, dtype = [], 0.0, PRECISIONS[precision]
    for batch in batches:
        started = time.perf_counter()
        images = batch.images.to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            detections = [image.to("cpu") for image in detector(images)]
        seconds += time.perf_counter() - started
        for row, size, found in zip(batch.rows, images.sizes, detections, strict=True):
            records.append(_record(index, row, rescale(found, size, _size(index.sizes[row]))))
    return Predictions(records, seconds / max(len(records), 1))


@torch.inference_mode()
def propose(
    detector: nn.Module, batches: Iterable[Batch], index: AnnotationIndex, *, device: torch.device
) -> list[Proposals]:
    """The RPN's proposals for every image in ``batches``, in their order and in pixels of the stored images."""
    if not isinstance(detector, RegionVerbs):
        raise ValueError(f"{type(detector).__name__} makes no proposals; choose an architecture with an RPN")
    detector.eval()
    found = []
    for batch in batches:
        images = batch.images.to(device)
        proposals = detector.propose(detector.features(images), images)
        for row, size, image in zip(batch.rows, images.sizes, proposals, strict=True):
            stored = _size(index.sizes[row])
            boxes = clip(scale(image.boxes.cpu(), size, stored), stored)
            found.append(Proposals(boxes=boxes, scores=image.scores.cpu()))
    return found


def evaluate(
    records: list[Record], class_names: tuple[str, ...], voc_metric: VocMetric, *, masks: bool = False
) -> dict[str, Any]:
    """The content of result.json.

    It has a section "segm" if the records have masks of objects and of detections, or ``masks`` is set: without
    records, the names of all figures.
    """
    masks = masks or any(record.masks is not None and record.gt_masks is not None for record in records)
    coco = evaluate_coco(records, class_names)
    segm = evaluate_coco(records, class_names, iou_type="segm") if masks else None
    voc = evaluate_voc(records, class_names, imagenet=voc_metric == "imagenet")
    return result_dict(coco, voc, class_names, voc_metric=voc_metric, segm=segm)


def metric(result: dict[str, Any], key: str) -> float | None:
    """The figure that the dotted ``key``, such as "bbox.AP", names; None if it could not be computed.

    Raises:
        ValueError: ``result`` has no such figure.
    """
    value: Any = result
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            known = list(value) if isinstance(value, dict) else []
            raise ValueError(f"solver.best_metric {key!r} names no figure of result.json; at {part!r} it has {known}")
        value = value[part]
    if value is not None and not isinstance(value, (int, float)):
        raise ValueError(f"solver.best_metric {key!r} names no single figure of result.json")
    return value


def _record(index: AnnotationIndex, row: int, detections: Detections) -> Record:
    rows, size, masks = index.objects(row), _size(index.sizes[row]), detections.masks
    return Record(
        image_id=int(index.image_ids[row]),
        file_name=index.paths[row],
        size=size,
        gt_boxes=index.boxes[rows].numpy(),
        gt_labels=index.labels[rows].numpy(),
        gt_ignore=index.ignore[rows].numpy(),
        gt_areas=index.areas[rows].numpy(),
        boxes=detections.boxes.numpy(),
        scores=detections.scores.numpy(),
        labels=detections.labels.numpy(),
        gt_masks=None if masks is None or index.masks is None else index.rles(row),
        masks=None if masks is None else tuple(paste(masks, detections.boxes, size)),
    )


def _size(size: Tensor) -> tuple[int, int]:
    height, width = size.tolist()
    return height, width
