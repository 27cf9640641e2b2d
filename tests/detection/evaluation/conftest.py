"""The reference of COCO's metric: pycocotools, on the records that our matching gets."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.coco import COCO_NUMBERS, CocoResult, IouType, coco_results
from detection.evaluation.record import Record
from detection.masks import is_empty

coco_mask: Any = pycocotools_mask  # its type stubs take the bytes of an RLE for text


@pytest.fixture(scope="session")
def reference() -> Callable[..., CocoResult]:
    """pycocotools' numbers of records; called as ``evaluate_coco``."""
    return evaluate_reference


def evaluate_reference(
    records: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox"
) -> CocoResult:
    """Returns what pycocotools says of ``records``, NaN for its -1."""
    if not records or not class_names:  # pycocotools takes an empty list of ids for "no restriction"
        return _result(np.full(len(COCO_NUMBERS), -1.0), np.full((10, 1, len(class_names)), -1.0))
    with redirect_stdout(io.StringIO()):
        truth, found = (_index(records, class_names, rows(records, iou_type)) for rows in (_objects, _detections))
        assert iou_type != "boundary"  # which it lacks
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, classes, areas, detection limits): all areas, 100 detections
    return _result(evaluation.stats[: len(COCO_NUMBERS)], evaluation.eval["precision"][..., 0, -1])


def _index(records: Sequence[Record], class_names: Sequence[str], annotations: list[dict[str, Any]]) -> COCO:
    coco: Any = COCO()
    coco.dataset = {
        "images": [{"id": r.image_id, "height": r.size[0], "width": r.size[1]} for r in records],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        # COCOeval takes a match with id 0 for no match.
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _objects(records: Sequence[Record], iou_type: IouType) -> list[dict[str, Any]]:
    annotations = []
    for record in records:
        masks = record.gt_masks if iou_type == "segm" else None
        x1, y1, x2, y2 = record.gt_boxes.astype(np.float64).T.reshape(4, -1)
        for row, bbox in enumerate(np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()):
            unknown = masks is not None and is_empty(masks[row])
            annotations.append(
                {
                    "image_id": record.image_id,
                    "category_id": int(record.gt_labels[row]) + 1,
                    "bbox": bbox,
                    "area": float(record.gt_areas[row]),
                    "iscrowd": int(record.gt_ignore[row] or unknown),
                    **({} if masks is None else {"segmentation": masks[row]}),
                }
            )
    return annotations


def _detections(records: Sequence[Record], iou_type: IouType) -> list[dict[str, Any]]:
    """What ``COCO.loadRes`` makes of results; it fails if there are none, and takes areas from boxes."""
    results = coco_results(records, range(1, 1001))
    if iou_type == "bbox":
        return [{**result, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0} for result in results]
    return [{**result, "area": float(coco_mask.area(result["segmentation"])), "iscrowd": 0} for result in results]


def _result(stats: np.ndarray[Any, Any], precision: np.ndarray[Any, Any]) -> CocoResult:
    """COCO's ``stats`` (12,) and ``precision`` (IoU thresholds, recalls, K)."""
    numbers = np.where(stats < 0, np.nan, stats).tolist()
    # The values of a class are all -1 or all known, so its plain mean is the mean of the known ones.
    ap = np.where(precision < 0, np.nan, precision).mean(axis=1)  # (10, K)
    named = dict(zip(COCO_NUMBERS, numbers, strict=True))
    return CocoResult(**named, class_ap=ap.mean(axis=0), class_ap50=ap[0], class_ap75=ap[5])
