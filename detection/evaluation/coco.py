"""COCO's box and mask AP and AR, and detections in COCO's results format.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.
The twelve numbers are pycocotools' to 1e-9, which the tests compare.

Shapes: B sets of N images, K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    "KEYPOINT_NUMBERS",
    "CocoResult",
    "IouType",
    "KeypointResult",
    "average_recall",
    "coco_results",
    "count_left_out",
    "evaluate_coco",
    "evaluate_keypoints",
    "evaluate_matches",
]

# Fields of CocoResult in the order of COCOeval.stats.
COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_NUMBERS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")  # of KeypointResult
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointResult:
    """COCO's ten numbers of keypoints, under COCO's names, and AP of each class.

    All are fractions 0..1, NaN as in ``CocoResult``; thresholds are of OKS in place of IoU, and at most 20 detections
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


def evaluate_coco(records: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox") -> CocoResult:
    """Returns COCO's metric of boxes, masks or boundaries over ``records``; ignored ground truth counts as crowd.

    So does, for masks, an object whose mask is unknown.  Ties in score are ordered by image id, as COCO does.

    Raises:
        ValueError: a label that ``class_names`` lacks, an image that occurs twice, or "segm" or
            "boundary" and a record without masks.
    """
    return evaluate_matches(match_areas(records, class_names, iou_type=iou_type))


def evaluate_matches(matches: Mapping[Area, MatchedRecords]) -> CocoResult:
    """Returns COCO's metric of records that were matched for all four areas."""
    once = np.ones((1, len(matches["all"].image_ids)), np.int32)  # every image counts once
    ap = {area: average_precision(found, once)[0] for area, found in matches.items()}  # (K, T)
    recall = {area: average_recall(found, once)[0] for area, found in matches.items()}  # (K,)
    first = {limit: average_recall(matches["all"], once, limit=limit)[0] for limit in (1, 10)}
    return CocoResult(
        AP=_mean(ap["all"]),
        AP50=_mean(ap["all"][:, 0]),  # IoU 0.50, 0.55, ..., 0.95
        AP75=_mean(ap["all"][:, 5]),
        APs=_mean(ap["small"]),
        APm=_mean(ap["medium"]),
        APl=_mean(ap["large"]),
        AR1=_mean(first[1]),
        AR10=_mean(first[10]),
        AR100=_mean(recall["all"]),
        ARs=_mean(recall["small"]),
        ARm=_mean(recall["medium"]),
        ARl=_mean(recall["large"]),
        class_ap=ap["all"].mean(axis=1),
        class_ap50=ap["all"][:, 0],
        class_ap75=ap["all"][:, 5],
    )


def evaluate_keypoints(records: Sequence[Record], class_names: Sequence[str]) -> KeypointResult:
    """Returns COCO's metric of keypoints over ``records``.

    Ignored ground truth counts as crowd, and an object without a labelled keypoint is neither hit nor miss.

    Raises:
        ValueError: a label that ``class_names`` lacks, an image that occurs twice, or a record without keypoints.
    """
    matches = match_areas(records, class_names, iou_type="keypoints", areas=("all", "medium", "large"))
    once = np.ones((1, len(matches["all"].image_ids)), np.int32)
    ap = {area: average_precision(found, once)[0] for area, found in matches.items()}  # (K, T)
    recall = {area: average_recall(found, once)[0] for area, found in matches.items()}  # (K,)
    at_one = {place: average_recall(matches["all"], once, thresholds=slice(place, place + 1))[0] for place in (0, 5)}
    return KeypointResult(
        AP=_mean(ap["all"]),
        AP50=_mean(ap["all"][:, 0]),
        AP75=_mean(ap["all"][:, 5]),
        APm=_mean(ap["medium"]),
        APl=_mean(ap["large"]),
        AR=_mean(recall["all"]),
        AR50=_mean(at_one[0]),
        AR75=_mean(at_one[5]),
        ARm=_mean(recall["medium"]),
        ARl=_mean(recall["large"]),
        class_ap=ap["all"].mean(axis=1),
        class_ap50=ap["all"][:, 0],
        class_ap75=ap["all"][:, 5],
    )


def average_recall(
    matches: MatchedRecords,
    weights: NDArray[np.integer],
    *,
    limit: int = MAX_DETECTIONS,
    thresholds: slice = slice(None),
) -> NDArray[np.float64]:
    """Returns COCO's AR (B, K) of sets in which image i occurs ``weights[:, i]`` times; NaN without objects.

    Args:
        matches: N images, K classes.
        weights: (B, N) counts.
        limit: detections of a class in an image that count, the best ones.
        thresholds: those of IoU over which the mean is taken.
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
    """Returns how many detections AP and AR do not see: those after the hundredth of a class in an image."""
    counts = (np.bincount(record.labels) for record in records)
    return sum(int((count - MAX_DETECTIONS).clip(min=0).sum()) for count in counts)


def coco_results(records: Sequence[Record], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """All detections in COCO's results format, ready for ``json.dump``.

    Boxes become [x, y, width, height] in pixels; scores keep every digit. ``category_ids`` holds the data set's own
    id of label 0, 1, ..., K-1.  Masks, where the records have them, become "segmentation", an RLE with its counts as
    text; keypoints a flat list of x, y and score, in numbers of pixels.  pycocotools' ``loadRes`` takes the areas of
    detections from "bbox" where it is given; remove that key before it computes AP of masks or keypoints of small,
    medium and large objects.

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
    """The key "segmentation" of each of ``count`` objects, or none."""
    if masks is None:
        return [{}] * count
    return [{"segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()}} for rle in masks]


def _keypoints(keypoints: NDArray[np.floating] | None, count: int) -> list[dict[str, Any]]:
    """The key "keypoints" of each of ``count`` detections, or none."""
    if keypoints is None:
        return [{}] * count
    return [{"keypoints": points} for points in to_coco(keypoints)]


def _mean(values: NDArray[np.float64]) -> float:
    """Returns the mean of ``values`` (K, ...) over the classes that have one; NaN where none has."""
    return float(mean_over_classes(values[None])[0].mean())


def _boxes_xywh(boxes: NDArray[np.floating]) -> list[list[float]]:
    exact = boxes.astype(np.float64)  # x + width gives x2 back only if the difference is not rounded to float32
    return np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], axis=1).tolist()
