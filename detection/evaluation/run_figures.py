"""Every figure of a run as a function of the weights of test images, for intervals.

A new figure needs one line here, and then has intervals, claims and planning.

Shapes: B resamples of N images, K classes, M figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.candidates import IouType
from detection.evaluation.coco import (
    COCO_CLASS_NUMBERS,
    COCO_NUMBERS,
    KEYPOINT_AREAS,
    KEYPOINT_NUMBERS,
    class_numbers,
    coco_figures,
)
from detection.evaluation.jackknife import Statistic
from detection.evaluation.label_maps import LABEL_NUMBERS, LabelClasses, label_figures, pixel_totals, segment_counts
from detection.evaluation.matching import AREAS, Area, MatchedRecords, match_areas
from detection.evaluation.panoptic import PANOPTIC_NUMBERS, class_qualities, panoptic_figures
from detection.evaluation.record import Record, has_objects, judged_maps
from detection.evaluation.report import VocMetric
from detection.evaluation.tide import ERROR_TYPES, error_gains, match_errors
from detection.evaluation.voc import match_voc, voc_precision

__all__ = ["ERROR_KEYS", "judged", "label_statistics", "run_statistic", "statistic_of_boxes"]

ERROR_KEYS = ("tide.AP50", *(f"tide.{name}" for name in ERROR_TYPES))
BY_LETTER: dict[str, Area] = {"s": "small", "m": "medium", "l": "large"}  # last letter of a number's name -> area

Weights = NDArray[np.integer]
Floats = NDArray[np.float64]


def run_statistic(
    records: Sequence[Record],
    class_names: Sequence[str],
    *,
    voc_metric: VocMetric = "area",
    labels: LabelClasses | None = None,
    boundary: bool = False,
) -> Statistic:
    """Returns all figures of a run: COCO's for boxes, masks and keypoints, VOC's, and TIDE's types of errors.

    Records with label counts give the figures of label maps; such a run has objects only if it is panoptic.  Keys are
    those of result.json, and "tide.Cls" and so on.

    Args:
        records: records of all test images.
        class_names: classes of objects.
        voc_metric: definition of "voc.mAP".
        labels: classes of label maps; None: ``class_names``.
        boundary: include the figures of mask boundaries.

    Raises:
        ValueError: a label is not in ``class_names``, an image occurs twice, or there are no records.
    """
    maps, classes = judged_maps(records), labels or LabelClasses(tuple(class_names))
    parts = [_objects(records, class_names, voc_metric, boundary=boundary)] if has_objects(maps) else []
    return _joined([*parts, *label_statistics(records, classes)])


def label_statistics(records: Sequence[Record], classes: LabelClasses) -> list[Statistic]:
    """Returns the figures of label maps: panoptic figures, if any, and pixel figures.

    Raises:
        ValueError: a record has no counts, or counts of other classes.
    """
    maps = judged_maps(records)
    parts = [_panoptic(records, classes)] if "panoptic" in maps else []
    return [*parts, _label_maps(records, classes)] if "label_maps" in maps else parts


def judged(records: Sequence[Record], *, boundary: bool = False) -> tuple[IouType, ...]:
    """Returns the kinds of COCO figures: boxes, and the masks or keypoints that all ``records`` have."""
    masks = bool(records) and all(r.masks is not None and r.gt_masks is not None for r in records)
    keypoints = bool(records) and all(r.keypoints is not None and r.gt_keypoints is not None for r in records)
    kinds: list[IouType] = ["bbox", *(("segm",) if masks else ()), *(("boundary",) if masks and boundary else ())]
    return (*kinds, *(["keypoints"] if keypoints else []))


def _objects(
    records: Sequence[Record], class_names: Sequence[str], voc_metric: VocMetric, *, boundary: bool
) -> Statistic:
    parts = [_coco(records, class_names, iou_type) for iou_type in judged(records, boundary=boundary)]
    return _joined([*parts, _voc(records, class_names, voc_metric), _errors(records, class_names)])


def statistic_of_boxes(matches: MatchedRecords) -> Statistic:
    """Returns the statistic of AP, AP50 and AP75 of matched boxes of all areas."""
    return Statistic(
        names=tuple(f"bbox.{name}" for name in COCO_CLASS_NUMBERS),
        compute=lambda weights: mean_over_classes(class_numbers(average_precision(matches, weights))),
        images=np.full(len(COCO_CLASS_NUMBERS), _with_objects(matches).any(axis=0).sum()),
    )


def _coco(records: Sequence[Record], class_names: Sequence[str], iou_type: IouType) -> Statistic:
    """Returns the statistic of COCO's numbers and of AP, AP50 and AP75 by class."""
    numbers, areas = (KEYPOINT_NUMBERS, KEYPOINT_AREAS) if iou_type == "keypoints" else (COCO_NUMBERS, tuple(AREAS))
    matches = match_areas(records, class_names, iou_type=iou_type, areas=areas)
    per_class = [f"{iou_type}.per_class.{name}.{number}" for name in class_names for number in COCO_CLASS_NUMBERS]
    with_objects = {area: _with_objects(found) for area, found in matches.items()}
    images = [with_objects[BY_LETTER.get(name[-1], "all")].any(axis=0).sum() for name in numbers]
    of_classes = np.repeat(with_objects["all"].sum(axis=1), len(COCO_CLASS_NUMBERS))

    def compute(weights: Weights) -> Floats:
        means, classes = coco_figures(matches, weights)
        return np.column_stack([*(means[name] for name in numbers), classes.reshape(len(weights), -1)])

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


def _label_maps(records: Sequence[Record], classes: LabelClasses) -> Statistic:
    totals = pixel_totals(records, len(classes.names))  # (N, 3, K)

    def compute(weights: Weights) -> Floats:
        found = label_figures(np.tensordot(weights, totals, axes=1))
        return np.concatenate([found.numbers, found.iou], axis=1)

    with_pixels = totals[:, 1] > 0  # (N, K)
    return Statistic(
        names=(
            *(f"semseg.{name}" for name in LABEL_NUMBERS),
            *(f"semseg.per_class.{name}.IoU" for name in classes.names),
        ),
        compute=compute,
        images=np.append(np.full(len(LABEL_NUMBERS), with_pixels.any(axis=1).sum()), with_pixels.sum(axis=0)),
    )


def _panoptic(records: Sequence[Record], classes: LabelClasses) -> Statistic:
    counts = segment_counts(records, len(classes.names))  # (N, K, 4)

    def compute(weights: Weights) -> Floats:
        sums = np.tensordot(weights, counts, axes=1)
        return np.concatenate([panoptic_figures(sums, classes.num_things), class_qualities(sums)[..., 0]], axis=1)

    with_segments = counts[..., [1, 3]].sum(axis=2) > 0  # (N, K): hits and misses
    groups = with_segments, with_segments[:, : classes.num_things], with_segments[:, classes.num_things :]
    return Statistic(
        names=(
            *(f"panoptic.{name}" for name in PANOPTIC_NUMBERS),
            *(f"panoptic.per_class.{name}.PQ" for name in classes.names),
        ),
        compute=compute,
        images=np.append(np.repeat([group.any(axis=1).sum() for group in groups], 3), with_segments.sum(axis=0)),
    )


def _with_objects(matches: MatchedRecords) -> NDArray[np.bool_]:
    """Returns whether each image has an object of each class (K, N), ignored ones left out."""
    counts = [found.num_objects > 0 for found in matches.classes]
    return np.stack(counts) if counts else np.zeros((0, len(matches.image_ids)), np.bool_)


def _joined(parts: Sequence[Statistic]) -> Statistic:
    functions: list[Callable[[Weights], Floats]] = [part.compute for part in parts]
    return Statistic(
        names=tuple(name for part in parts for name in part.names),
        compute=lambda weights: np.concatenate([function(weights) for function in functions], axis=1),
        images=np.concatenate([part.images for part in parts]),
    )
