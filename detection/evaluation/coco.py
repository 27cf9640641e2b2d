"""COCO's AP and AR of boxes, masks and keypoints, and detections in COCO's results format.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.
Tests check that the twelve numbers agree with pycocotools to 1e-9.

Shapes: B resamples of N images, K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.candidates import IouType
from detection.evaluation.matching import MAX_DETECTIONS, Area, MatchedRecords, match_areas
from detection.evaluation.record import Record, check_records
from detection.fields.keypoints import to_coco
from detection.masks import RLE

__all__ = [
    "COCO_CLASS_NUMBERS",
    "COCO_NUMBERS",
    "KEYPOINT_AREAS",
    "KEYPOINT_NUMBERS",
    "CocoResult",
    "IouType",
    "KeypointResult",
    "average_recall",
    "class_numbers",
    "coco_figures",
    "coco_results",
    "count_left_out",
    "evaluate_coco",
    "evaluate_keypoints",
    "evaluate_matches",
]

# Fields of CocoResult in the order of COCOeval.stats.
COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_NUMBERS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")  # of KeypointResult
KEYPOINT_AREAS: tuple[Area, ...] = ("all", "medium", "large")
COCO_CLASS_NUMBERS = ("AP", "AP50", "AP75")  # also computed for each class


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoResult:
    """COCO's twelve numbers, under COCO's names, and AP of each class.

    All are fractions 0..1; NaN replaces COCO's -1, which means no ground truth.
    """

    AP: float  # mean over IoU 0.50, 0.55, ..., 0.95, as all numbers without a threshold in their name
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointResult:
    """COCO's ten keypoint numbers, under COCO's names, and AP of each class.

    All are fractions 0..1, NaN as in ``CocoResult``.  Thresholds are of OKS in place of IoU, and at most 20 detections
    of a class in an image count.
    """

    AP: float
    AP50: float
    AP75: float
    APm: float
    APl: float
    AR: float
    AR50: float
    AR75: float
    ARm: float
    ARl: float
    class_ap: NDArray[np.float64]  # (K,)
    class_ap50: NDArray[np.float64]  # (K,)
    class_ap75: NDArray[np.float64]  # (K,)


ResultT = TypeVar("ResultT", CocoResult, KeypointResult)


def evaluate_coco(records: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox") -> CocoResult:
    """Returns COCO's metric of boxes, masks or boundaries over ``records``.

    Ignored objects count as crowds; for masks, so do objects whose mask is unknown.  Equal scores are ordered by image
    id, as in COCO.

    Raises:
        ValueError: a label is not in ``class_names``, an image occurs twice, or a record has no masks for "segm" or
            "boundary".
    """
    return evaluate_matches(match_areas(records, class_names, iou_type=iou_type))


def evaluate_matches(matches: Mapping[Area, MatchedRecords]) -> CocoResult:
    """Returns COCO's metric of records matched for all four areas."""
    return _on_all_images(CocoResult, matches)


def evaluate_keypoints(records: Sequence[Record], class_names: Sequence[str]) -> KeypointResult:
    """Returns COCO's keypoint metric over ``records``.

    Ignored objects count as crowds; an object without a labelled keypoint is neither hit nor miss.

    Raises:
        ValueError: a label is not in ``class_names``, an image occurs twice, or a record has no keypoints.
    """
    return _on_all_images(KeypointResult, match_areas(records, class_names, iou_type="keypoints", areas=KEYPOINT_AREAS))


def coco_figures(
    matches: Mapping[Area, MatchedRecords], weights: NDArray[np.integer]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Returns COCO's numbers (B,) by name, and AP, AP50 and AP75 of the classes (B, K, 3).

    Args:
        matches: matched records by area; without small objects the numbers are those of keypoints.
        weights: (B, N) counts of the images.
    """
    everything = matches["all"]
    ap = {area: average_precision(found, weights) for area, found in matches.items()}  # (B, K, T)
    recall = {area: average_recall(found, weights) for area, found in matches.items()}  # (B, K)
    first, sixth = slice(0, 1), slice(5, 6)  # of IoU 0.50, 0.55, ..., 0.95
    found = {"AP": ap["all"], "AP50": ap["all"][..., first], "AP75": ap["all"][..., sixth]}
    if "small" in matches:
        found |= {f"AR{limit}": average_recall(everything, weights, limit=limit) for limit in (1, 10)}
        found["AR100"] = recall["all"]
    else:
        found |= {
            f"AR{name}": average_recall(everything, weights, thresholds=part)
            for name, part in (("", slice(None)), ("50", first), ("75", sixth))
        }
    for area in matches.keys() - {"all"}:
        found |= {f"AP{area[0]}": ap[area], f"AR{area[0]}": recall[area]}
    means = {name: mean_over_classes(values).reshape(len(values), -1).mean(axis=1) for name, values in found.items()}
    return means, class_numbers(ap["all"])


def class_numbers(ap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns AP, AP50 and AP75 (B, K, 3) from AP at all thresholds (B, K, T)."""
    return np.stack([ap.mean(axis=2), ap[..., 0], ap[..., 5]], axis=2)


def _on_all_images(kind: type[ResultT], matches: Mapping[Area, MatchedRecords]) -> ResultT:
    """Returns the result with every image counted once."""
    numbers, classes = coco_figures(matches, np.ones((1, len(matches["all"].image_ids)), np.int32))
    ap, ap50, ap75 = classes[0].T
    values = {name: float(value[0]) for name, value in numbers.items()}
    return kind(**values, class_ap=ap, class_ap50=ap50, class_ap75=ap75)


def average_recall(
    matches: MatchedRecords,
    weights: NDArray[np.integer],
    *,
    limit: int = MAX_DETECTIONS,
    thresholds: slice = slice(None),
) -> NDArray[np.float64]:
    """Returns COCO's AR (B, K) of resamples in which image i occurs ``weights[:, i]`` times; NaN without objects.

    Args:
        matches: matched records of N images and K classes.
        weights: (B, N) counts of the images.
        limit: number of best detections of a class in an image that count.
        thresholds: IoU thresholds over which the mean is taken.
    """
    recall = np.empty((len(weights), len(matches.classes)))
    for label, found in enumerate(matches.classes):
        hits_at = found.hits[:, thresholds]
        hits = (hits_at & (found.ranks < limit)[:, None]).sum(axis=1)
        hits_of_image = np.bincount(found.images, weights=hits, minlength=weights.shape[1])
        num_objects = weights @ found.num_objects
        recall[:, label] = weights @ hits_of_image / np.where(num_objects, hits_at.shape[1] * num_objects, np.nan)
    return recall


def count_left_out(records: Sequence[Record]) -> int:
    """Returns the number of detections that AP and AR ignore: all after the best 100 of a class in an image."""
    counts = (np.bincount(record.labels) for record in records)
    return sum(int((count - MAX_DETECTIONS).clip(min=0).sum()) for count in counts)


def coco_results(records: Sequence[Record], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Returns all detections in COCO's results format, for ``json.dump``.

    Boxes become [x, y, width, height] in pixels; scores keep every digit.  ``category_ids`` are the data set's ids of
    the labels 0..K-1.  Masks become "segmentation", an RLE with its counts as text.  Keypoints become a flat list of
    x, y and score, in COCO's pixel numbers.  pycocotools' ``loadRes`` takes the areas of detections from "bbox" if
    present: remove that key before it computes AP of masks or keypoints by area.

    Raises:
        ValueError: a label has no category id, or an image occurs twice.
    """
    check_records(records, len(category_ids))
    return [
        {
            "image_id": int(record.image_id),
            "category_id": int(category_ids[label]),
            "bbox": bbox,
            "score": score,
            **segmentation,
            **keypoints,
        }
        for record in records
        for label, bbox, score, segmentation, keypoints in zip(
            record.labels.tolist(),
            _boxes_xywh(record.boxes),
            record.scores.tolist(),
            _segmentations(record.masks, len(record.boxes)),
            _keypoints(record.keypoints, len(record.boxes)),
            strict=True,
        )
    ]


def _segmentations(masks: Sequence[RLE] | None, count: int) -> list[dict[str, Any]]:
    """Returns {"segmentation": ...} for each of ``count`` objects; empty dictionaries without masks."""
    if masks is None:
        return [{}] * count
    return [{"segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()}} for rle in masks]


def _keypoints(keypoints: NDArray[np.floating] | None, count: int) -> list[dict[str, Any]]:
    """Returns {"keypoints": ...} for each of ``count`` detections; empty dictionaries without keypoints."""
    if keypoints is None:
        return [{}] * count
    return [{"keypoints": points} for points in to_coco(keypoints)]


def _boxes_xywh(boxes: NDArray[np.floating]) -> list[list[float]]:
    exact = boxes.astype(np.float64)  # x + width gives x2 back only if the difference is not rounded to float32
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1).tolist()
