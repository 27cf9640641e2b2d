"""Runs a detector over a test set and hands the records to the evaluation."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detection.boxes import clip, scale
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.label_counts import with_counts
from detection.engine.label_maps import Keep, Merge, labelled, stored_labels
from detection.engine.loop import PRECISIONS
from detection.evaluation.coco import count_left_out, evaluate_coco, evaluate_keypoints, evaluate_matches
from detection.evaluation.curves import best_f1, matched_curves
from detection.evaluation.label_maps import LabelClasses, label_figures, pixel_totals, segment_counts
from detection.evaluation.matching import match_areas
from detection.evaluation.metrics import add_computed
from detection.evaluation.record import Record, has_objects, judged_maps
from detection.evaluation.report import VocMetric, label_dict, panoptic_dict, result_dict
from detection.evaluation.voc import evaluate_voc
from detection.fields.table import FIELDS, Field, carried
from detection.model.architecture import RegionVerbs
from detection.model.postprocess import rescale
from detection.structures import Detections, Proposals

__all__ = ["Predictions", "evaluate", "make_record", "predict", "propose"]


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
    fields: Mapping[str, Field] = FIELDS,
    merge: Merge | None = None,
    keep: Keep | None = None,
) -> Predictions:
    """Returns a record for every image in ``batches``, with detections in the pixels of the stored image.

    Args:
        detector: an Architecture or a Tester: what turns an ImageBatch into a list of Detections.
        batches: batches of the images of ``index``.
        index: of the test set.
        device: where ``detector`` is.
        precision: of its activations.
        fields: operations that bring predictions besides boxes onto the image.
        merge: merges objects and label map of a panoptic network into segments.
        keep: called with each label map; the records hold only counts.

    Raises:
        ImageError: a label image can't be read or does not fit.
    """
    detector.eval()
    records, seconds, dtype = [], 0.0, PRECISIONS[precision]
    for batch in batches:
        started = time.perf_counter()
        images = batch.images.to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            detections = detector(images)
        maps = [_map_on_image(image, index, row) for row, image in zip(batch.rows, detections, strict=True)]
        detections = [replace(image, label_scores=None).to("cpu") for image in detections]
        seconds += time.perf_counter() - started
        for row, size, resized, labels in zip(batch.rows, batch.images.size_list(), detections, maps, strict=True):
            stored = _size(index.sizes[row])
            image = rescale(resized, size, stored)
            found = {name: of.on_image(values, image.boxes, stored) for name, of, values in carried(image, fields)}
            rows = {name: getattr(image, name).numpy() for name in ("boxes", "scores", "labels")}
            record = make_record(index, row, **rows, fields=found)
            if labels is not None:
                labelled_image = labelled(labels, rows | found, merge)
                record = with_counts(record, index, row, labelled_image)
                if keep is not None:
                    keep(row, labelled_image)
            records.append(record)
    return Predictions(records, seconds / max(len(records), 1))


def _map_on_image(found: Detections, index: AnnotationIndex, row: int) -> NDArray[np.uint8] | None:
    """Returns the label map of the stored image ``row``; None from a network without."""
    if found.label_scores is None:
        return None
    return stored_labels(found.label_scores, _size(index.sizes[row])).cpu().numpy()


@torch.inference_mode()
def propose(
    detector: nn.Module, batches: Iterable[Batch], index: AnnotationIndex, *, device: torch.device
) -> list[Proposals]:
    """Returns the RPN's proposals for every image in ``batches``, in their order and in pixels of the stored images."""
    if not isinstance(detector, RegionVerbs):
        name = getattr(detector, "name", type(detector).__name__)
        raise ValueError(f"{name} makes no proposals; choose an architecture with an RPN")
    detector.eval()
    found = []
    for batch in batches:
        images = batch.images.to(device)
        proposals = detector.propose(detector.features(images), images).to("cpu").ragged()
        for row, size, image in zip(batch.rows, batch.images.size_list(), proposals, strict=True):
            stored = _size(index.sizes[row])
            found.append(replace(image, boxes=clip(scale(image.boxes, size, stored), stored)))
    return found


def evaluate(
    records: list[Record],
    class_names: tuple[str, ...],
    voc_metric: VocMetric,
    *,
    fields: Collection[str] = (),
    labels: LabelClasses | None = None,
    boundary: bool = False,
) -> dict[str, Any]:
    """Returns the content of result.json.

    It has a section "segm" if the records have masks of objects and of detections, and with ``boundary`` also
    "boundary"; "keypoints" likewise; "semseg" and "panoptic" if they have such counts.  Without records, it has the
    names of the figures of ``fields``.  "best_f1" is the best F1 of boxes at IoU 0.5 and its score threshold.
    "left_out" is the number of detections that COCO's AP and AR do not see, if any.  If only label maps are judged,
    there are no figures of boxes.

    Args:
        records: of all test images.
        class_names: of objects.
        voc_metric: the definition behind VOC mAP.
        fields: judged ones of ``predicted_fields``, used if there are no records.
        labels: classes of label maps; None: ``class_names``.
        boundary: also judge the boundaries of masks.
    """
    maps, classes = judged_maps(records, fields), labels or LabelClasses(class_names)
    result = _judged_objects(records, class_names, voc_metric, fields, boundary=boundary) if has_objects(maps) else {}
    if "label_maps" in maps:
        totals = pixel_totals(records, len(classes.names)).sum(axis=0, keepdims=True)
        result["semseg"] = label_dict(label_figures(totals), classes.names)
    if "panoptic" in maps:
        result["panoptic"] = panoptic_dict(segment_counts(records, len(classes.names)).sum(axis=0), classes)
    add_computed(result, records, class_names)
    return result


def _judged_objects(
    records: list[Record],
    class_names: tuple[str, ...],
    voc_metric: VocMetric,
    fields: Collection[str],
    *,
    boundary: bool,
) -> dict[str, Any]:
    masks = "masks" in fields or any(record.masks is not None and record.gt_masks is not None for record in records)
    keypoints = "keypoints" in fields or any(
        record.keypoints is not None and record.gt_keypoints is not None for record in records
    )
    matches = match_areas(records, class_names)
    coco = evaluate_matches(matches)
    segm = evaluate_coco(records, class_names, iou_type="segm") if masks else None
    edges = evaluate_coco(records, class_names, iou_type="boundary") if masks and boundary else None
    voc = evaluate_voc(records, class_names, imagenet=voc_metric == "imagenet")
    points = evaluate_keypoints(records, class_names) if keypoints else None
    result = result_dict(coco, voc, class_names, voc_metric=voc_metric, segm=segm, boundary=edges, keypoints=points)
    result["best_f1"] = dict(zip(("min_score", "F1"), best_f1(matched_curves(matches["all"])), strict=True))
    left_out = count_left_out(records)
    return result | ({"left_out": left_out} if left_out else {})


def make_record(
    index: AnnotationIndex,
    row: int,
    *,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    fields: Mapping[str, Any] | None = None,
) -> Record:
    """Returns the record of image ``row`` with D detections in pixels of the stored image.

    It has fields of the ground truth, if they were read, only beside those of the detections.  Detections of classes
    that are not judged on that image are left out.

    Args:
        index: of the test set.
        row: of the image.
        boxes: (D, 4).
        scores: (D,) 0..1.
        labels: (D,) 0..K-1.
        fields: of the detections, by name, as ``Record`` holds them.
    """
    objects, found = index.objects(row), fields or {}
    judged = ~np.isin(labels, index.unjudged_labels(row).numpy())
    if not judged.all():
        boxes, scores, labels = boxes[judged], scores[judged], labels[judged]
        found = {
            name: values[judged] if isinstance(values, np.ndarray) else tuple(compress(values, judged))
            for name, values in found.items()
        }
    return Record(
        image_id=int(index.image_ids[row]),
        file_name=index.paths[row],
        size=_size(index.sizes[row]),
        gt_boxes=index.boxes[objects].numpy(),
        gt_labels=index.labels[objects].numpy(),
        gt_ignore=index.ignore[objects].numpy(),
        gt_areas=index.areas[objects].numpy(),
        boxes=boxes,
        scores=scores,
        labels=labels,
        **found,
        **{f"gt_{name}": index.stored(name, row) for name in found},
        keypoint_spec=index.keypoints if "keypoints" in found else None,
    )


def _size(size: Tensor) -> tuple[int, int]:
    height, width = size.tolist()
    return height, width
