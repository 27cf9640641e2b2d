"""COCO box and mask AP and AR, computed by faster-coco-eval or pycocotools, and detections in COCO's results format.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detection.evaluation.record import Record, check_records
from detection.masks import RLE, is_empty

__all__ = ["COCO_CLASS_NUMBERS", "COCO_NUMBERS", "Backend", "CocoResult", "IouType", "coco_results", "evaluate_coco"]

Backend = Literal["auto", "pycocotools", "faster_coco_eval"]
IouType = Literal["bbox", "segm"]  # COCO's names for IoU of boxes and of masks

# Fields of CocoResult in the order of COCOeval.stats.
COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COCO_CLASS_NUMBERS = ("AP", "AP50", "AP75")  # that each class has too


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoResult:
    """COCO's twelve numbers, under COCO's names, and AP of each class.

    All are fractions 0..1, and NaN where COCO gives -1: there was no ground truth to find.
    """

    AP: float  # mean over IoU 0.50, 0.55, ..., 0.95, as everything below without a threshold in its name
    AP50: float
    AP75: float
    APs: float  # objects under 32 x 32 pixels
    APm: float
    APl: float  # objects over 96 x 96 pixels
    AR1: float  # with at most 1 detection of a class in an image
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    class_ap: NDArray[np.float64]  # (K,)
    class_ap50: NDArray[np.float64]  # (K,)
    class_ap75: NDArray[np.float64]  # (K,)


def evaluate_coco(
    records: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox", backend: Backend = "auto"
) -> CocoResult:
    """COCO's metric of boxes or masks over ``records``; ignored ground truth counts as crowd.

    So does, for masks, an object whose mask is unknown.

    Ties in score are ordered by image id, as COCO does. "auto" takes faster-coco-eval where it can be imported, else
    pycocotools; both give the same numbers.

    Raises:
        ValueError: an unknown ``backend``, a label that ``class_names`` lacks, an image that occurs twice, or "segm"
            and a record without masks.
    """
    coco_class, eval_class = _import_backend(backend)
    check_records(records, len(class_names))
    if iou_type == "segm":
        _check_masks(records)
    category_ids = range(1, len(class_names) + 1)
    images = [{"id": int(r.image_id), "height": r.size[0], "width": r.size[1]} for r in records]
    categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
    if not images or not categories:  # both back ends take an empty list of ids for "no restriction"
        return _result(np.full(len(COCO_NUMBERS), -1.0), np.full((10, 1, len(categories)), -1.0))

    def index(annotations: list[dict[str, Any]]) -> Any:
        coco = coco_class()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    with redirect_stdout(io.StringIO()):  # both libraries print their progress and their table
        truth, found = _ground_truth(records, category_ids, iou_type), _detections(records, category_ids, iou_type)
        evaluation = eval_class(index(truth), index(found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, classes, areas, detection limits): all areas, 100 detections
    return _result(evaluation.stats[: len(COCO_NUMBERS)], evaluation.eval["precision"][..., 0, -1])


def coco_results(records: Sequence[Record], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """All detections in COCO's results format, ready for ``json.dump``.

    Boxes become [x, y, width, height] in pixels; scores keep every digit. ``category_ids`` holds the data set's own
    id of label 0, 1, ..., K-1.  Masks, where the records have them, become "segmentation", an RLE with its counts as
    text.  pycocotools' ``loadRes`` takes the areas of detections from "bbox" where it is given; remove that key before
    it computes mask AP of small, medium and large objects.

    Raises:
        ValueError: a label without a category id, an image that occurs twice.
    """
    check_records(records, len(category_ids))
    return [
        {
            "image_id": int(record.image_id),
            "category_id": int(category_ids[label]),
            "bbox": bbox,
            "score": score,
            **segmentation,
        }
        for record in records
        for label, bbox, score, segmentation in zip(
            record.labels.tolist(),
            _boxes_xywh(record.boxes),
            record.scores.tolist(),
            _segmentations(record.masks, len(record.boxes)),
            strict=True,
        )
    ]


def _segmentations(masks: Sequence[RLE] | None, count: int) -> list[dict[str, Any]]:
    """The key "segmentation" of each of ``count`` objects, or none."""
    if masks is None:
        return [{}] * count
    return [{"segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()}} for rle in masks]


def _check_masks(records: Sequence[Record]) -> None:
    for record in records:
        for masks, whose in ((record.gt_masks, "objects"), (record.masks, "detections")):
            if masks is None:
                raise ValueError(f"{record.file_name}: no masks of its {whose}, expected them for mask AP")


def _import_backend(backend: Backend) -> tuple[Any, Any]:
    """The classes COCO and COCOeval; faster-coco-eval's are a drop-in for those of pycocotools."""
    if backend not in ("auto", "pycocotools", "faster_coco_eval"):
        raise ValueError(f"backend is 'auto', 'pycocotools' or 'faster_coco_eval', got {backend!r}")
    if backend != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError:
            if backend == "faster_coco_eval":
                raise
        else:
            return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _ground_truth(records: Sequence[Record], category_ids: Sequence[int], iou_type: IouType) -> list[dict[str, Any]]:
    annotations = [
        {
            "image_id": int(record.image_id),
            "category_id": category_ids[label],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(ignore),  # both back ends overwrite a key "ignore" with this
            **segmentation,
        }
        for record in records
        for label, bbox, area, ignore, segmentation in zip(
            record.gt_labels.tolist(),
            _boxes_xywh(record.gt_boxes),
            record.gt_areas.tolist(),
            (record.gt_ignore | _unknown_masks(record) if iou_type == "segm" else record.gt_ignore).tolist(),
            _segmentations(record.gt_masks if iou_type == "segm" else None, len(record.gt_boxes)),
            strict=True,
        )
    ]
    return _numbered(annotations)


def _unknown_masks(record: Record) -> NDArray[np.bool_]:
    return np.array([is_empty(rle) for rle in record.gt_masks or ()], dtype=np.bool_)


def _detections(records: Sequence[Record], category_ids: Sequence[int], iou_type: IouType) -> list[dict[str, Any]]:
    """What ``COCO.loadRes`` would make of the results; that of pycocotools fails if there are none."""
    results = coco_results(records, category_ids)
    return _numbered([{**result, "area": _area(result, iou_type), "iscrowd": 0} for result in results])


def _area(result: dict[str, Any], iou_type: IouType) -> float:
    if iou_type == "segm":
        return float(coco_mask.area(result["segmentation"]))
    return result["bbox"][2] * result["bbox"][3]


def _numbered(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With ids from 1: COCOeval takes a match with id 0 for no match."""
    return [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]


def _boxes_xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
    exact = boxes.astype(np.float64)  # x + width gives x2 back only if the difference is not rounded to float32
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1).tolist()


def _result(stats: NDArray[np.float64], precision: NDArray[np.float64]) -> CocoResult:
    """COCO's ``stats`` (12,) and ``precision`` (IoU thresholds, recalls, K), with NaN for -1."""
    numbers = np.where(stats < 0, np.nan, stats).tolist()
    # The values of a class are all -1 or all known, so its plain mean is the mean of the known ones.
    ap = np.where(precision < 0, np.nan, precision).mean(axis=1)  # (10, K)
    return CocoResult(
        **dict(zip(COCO_NUMBERS, numbers, strict=True)),
        class_ap=ap.mean(axis=0),
        class_ap50=ap[0],  # IoU thresholds 0.50, 0.55, ..., 0.95
        class_ap75=ap[5],
    )
