"""Every figure of a run as a function of how often each test image counts, for the intervals.

A further figure takes a line here; it then has intervals, claims and planning.

Shapes: B sets of N images, K classes, M figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.candidates import IouType
from detection.evaluation.coco import COCO_CLASS_NUMBERS, COCO_NUMBERS, KEYPOINT_NUMBERS, average_recall
from detection.evaluation.jackknife import Statistic
from detection.evaluation.matching import Area, MatchedRecords, match_areas
from detection.evaluation.record import Record
from detection.evaluation.report import VocMetric
from detection.evaluation.tide import ERROR_TYPES, error_gains, match_errors
from detection.evaluation.voc import match_voc, voc_precision

__all__ = ["ERROR_KEYS", "run_statistic", "statistic_of_boxes"]

ERROR_KEYS = ("tide.AP50", *(f"tide.{name}" for name in ERROR_TYPES))
_AREAS: dict[str, Area] = {"s": "small", "m": "medium", "l": "large"}  # by the end of a number's name

Weights = NDArray[np.integer]
Floats = NDArray[np.float64]


def run_statistic(
    records: Sequence[Record],
    class_names: Sequence[str],
    *,
    voc_metric: VocMetric = "area",
    boundary: bool = False,
) -> Statistic:
    """Returns all figures of a run: COCO's of boxes (of masks and keypoints, where there are any), VOC's, error types.

    With ``boundary`` also those of the boundaries of masks.

    Keys are those of result.json, and "tide.Cls" and so on; ``voc_metric`` is the definition behind "voc.mAP".

    Raises:
        ValueError: a label that ``class_names`` lacks, an image that occurs twice, or no records.
    """
    masks = bool(records) and all(r.masks is not None and r.gt_masks is not None for r in records)
    keypoints = bool(records) and all(r.keypoints is not None and r.gt_keypoints is not None for r in records)
    kinds: list[IouType] = ["bbox", *(("segm",) if masks else ()), *(("boundary",) if masks and boundary else ())]
    parts = [_coco(records, class_names, iou_type) for iou_type in kinds]
    parts += [_keypoints(records, class_names)] if keypoints else []
    return _joined([*parts, _voc(records, class_names, voc_metric), _errors(records, class_names)])


def statistic_of_boxes(matches: MatchedRecords) -> Statistic:
    """Returns AP, AP50 and AP75 of matched boxes of all areas."""
    return Statistic(
        names=tuple(f"bbox.{name}" for name in COCO_CLASS_NUMBERS),
        compute=lambda weights: mean_over_classes(_three(average_precision(matches, weights))),
        images=np.full(len(COCO_CLASS_NUMBERS), _with_objects(matches).any(axis=0).sum()),
    )


def _coco(records: Sequence[Record], class_names: Sequence[str], iou_type: IouType) -> Statistic:
    matches = match_areas(records, class_names, iou_type=iou_type)
    everything = matches["all"]

    def compute(weights: Weights) -> Floats:
        ap = _three(average_precision(everything, weights))  # (B, K, 3)
        of_areas = [average_precision(matches[area], weights) for area in ("small", "medium", "large")]
        recalls = [average_recall(everything, weights, limit=limit) for limit in (1, 10)]
        recalls += [average_recall(found, weights) for found in matches.values()]
        numbers = [
            *mean_over_classes(ap).T,
            *(mean_over_classes(part).mean(axis=1) for part in of_areas),
            *map(mean_over_classes, recalls),
        ]
        return np.concatenate([np.stack(numbers, axis=1), ap.reshape(len(weights), -1)], axis=1)

    return _named(iou_type, COCO_NUMBERS, class_names, matches, compute)


def _keypoints(records: Sequence[Record], class_names: Sequence[str]) -> Statistic:
    matches = match_areas(records, class_names, iou_type="keypoints", areas=("all", "medium", "large"))
    everything = matches["all"]

    def compute(weights: Weights) -> Floats:
        ap = _three(average_precision(everything, weights))  # (B, K, 3)
        of_areas = [average_precision(matches[area], weights) for area in ("medium", "large")]
        recalls = [average_recall(everything, weights, thresholds=of) for of in (slice(None), slice(0, 1), slice(5, 6))]
        recalls += [average_recall(matches[area], weights) for area in ("medium", "large")]
        numbers = [
            *mean_over_classes(ap).T,
            *(mean_over_classes(part).mean(axis=1) for part in of_areas),
            *map(mean_over_classes, recalls),
        ]
        return np.concatenate([np.stack(numbers, axis=1), ap.reshape(len(weights), -1)], axis=1)

    return _named("keypoints", KEYPOINT_NUMBERS, class_names, matches, compute)


def _named(
    iou_type: IouType,
    numbers: Sequence[str],
    class_names: Sequence[str],
    matches: Mapping[Area, MatchedRecords],
    compute: Callable[[Weights], Floats],
) -> Statistic:
    """Returns the statistic of COCO's ``numbers``, which ``compute`` gives first, and of AP, AP50 and AP75 by class."""
    per_class = [f"{iou_type}.per_class.{name}.{number}" for name in class_names for number in COCO_CLASS_NUMBERS]
    with_objects = {area: _with_objects(found) for area, found in matches.items()}
    images = [with_objects[_AREAS.get(name[-1], "all")].any(axis=0).sum() for name in numbers]
    of_classes = np.repeat(with_objects["all"].sum(axis=1), len(COCO_CLASS_NUMBERS))
    return Statistic(
        names=(*(f"{iou_type}.{name}" for name in numbers), *per_class),
        compute=compute,
        images=np.concatenate([images, of_classes]).astype(np.int64),
    )


def _voc(records: Sequence[Record], class_names: Sequence[str], voc_metric: VocMetric) -> Statistic:
    matches = match_voc(records, class_names, imagenet=voc_metric == "imagenet")
    columns = [0 if voc_metric == "11point" else 1, 0, 1]  # of the 11-point AP and the area AP
    images = _with_objects(matches).any(axis=0).sum()
    return Statistic(
        names=("voc.mAP", "voc.mAP_11point", "voc.mAP_area"),
        compute=lambda weights: mean_over_classes(voc_precision(matches, weights))[:, columns],
        images=np.full(len(columns), images),
    )


def _errors(records: Sequence[Record], class_names: Sequence[str]) -> Statistic:
    matches = match_errors(records, class_names)
    images = _with_objects(matches["AP50"]).any(axis=0).sum()
    return Statistic(
        names=ERROR_KEYS,
        compute=lambda weights: error_gains(matches, weights),
        images=np.full(len(ERROR_KEYS), images),
    )


def _three(ap: Floats) -> Floats:
    """Returns AP, AP50 and AP75 (B, K, 3) from those of all thresholds (B, K, T)."""
    return np.stack([ap.mean(axis=2), ap[..., 0], ap[..., 5]], axis=2)  # IoU 0.50, 0.55, ..., 0.95


def _with_objects(matches: MatchedRecords) -> NDArray[np.bool_]:
    """Returns which images hold an object to find of each class (K, N)."""
    counts = [found.num_objects > 0 for found in matches.classes]
    return np.stack(counts) if counts else np.zeros((0, len(matches.image_ids)), np.bool_)


def _joined(parts: Sequence[Statistic]) -> Statistic:
    functions: list[Callable[[Weights], Floats]] = [part.compute for part in parts]
    return Statistic(
        names=tuple(name for part in parts for name in part.names),
        compute=lambda weights: np.concatenate([function(weights) for function in functions], axis=1),
        images=np.concatenate([part.images for part in parts]),
    )
