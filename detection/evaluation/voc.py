"""PASCAL VOC average precision, as defined by VOC2007 (11 points) and by VOC2010 and later (area).

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and the
evaluation code of the VOC2007 and VOC2012 development kits.  ImageNet's rule of matching: the ILSVRC2015 development
kit, section 2.3.

Shapes: B sets of N images, G objects and D detections of all images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.assignment import assign, order_rounds
from detection.evaluation.average_precision import mean_over_classes
from detection.evaluation.candidates import Candidates, box_candidates
from detection.evaluation.columns import Columns, join_records
from detection.evaluation.matching import FlatMatches, MatchedRecords, pack
from detection.evaluation.overlaps import HIT_IOU
from detection.evaluation.record import Record

__all__ = ["VocResult", "evaluate_voc", "match_voc", "voc_precision"]

_CHUNK = 2**19  # detections times sets worked on at once: some megabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VocResult:
    """AP of each class as a fraction 0..1; NaN for a class without ground truth."""

    ap_11point: NDArray[np.float64]  # (K,) mean of the best precision at recall 0, 0.1, ..., 1 (VOC2007)
    ap_area: NDArray[np.float64]  # (K,) area under the monotone precision-recall curve (VOC2010 and later)

    @property
    def mean_ap_11point(self) -> float:
        """Mean over the classes that have a value, NaN if none has."""
        return float(mean_over_classes(self.ap_11point[None])[0])

    @property
    def mean_ap_area(self) -> float:
        """Mean over the classes that have a value, NaN if none has."""
        return float(mean_over_classes(self.ap_area[None])[0])


def evaluate_voc(
    records: Sequence[Record], class_names: Sequence[str], *, iou_threshold: float = HIT_IOU, imagenet: bool = False
) -> VocResult:
    """Computes AP of every class over ``records``, as the VOC development kit.

    Detections of a class are ranked over all images by score; ties keep the order of image ids, then of rows.  Each
    detection is compared with the object of its class and image with the largest IoU.  It is a hit if the IoU is at
    least ``iou_threshold`` and no higher-ranked detection has matched that object, otherwise a miss.  A detection whose
    object is ignored ("difficult") is neither, and ignored objects do not count in the recall.

    Boxes have width = x2 - x1.  VOC counts pixels from 1 with both ends inside the box, so its readers turn
    (xmin, ymin, xmax, ymax) into (xmin - 1, ymin - 1, xmax, ymax).  x2 - x1 is then the kit's xmax - xmin + 1, and the
    IoU is exactly the kit's.

    With ``imagenet``, an object of w x h pixels is found at IoU >= min(``iou_threshold``, w h / ((w + 10) (h + 10))),
    and a detection is matched to the free object that it finds with the largest IoU.

    There is one difference: recall is compared with 0, 0.1, ..., 1 as exact fractions.  In the kit's floating point, 3
    of 10 objects are just below recall 0.3.

    Raises:
        ValueError: ``iou_threshold`` is outside (0, 1], a label is not in ``class_names``, or an image occurs twice.
    """
    matches = match_voc(records, class_names, iou_threshold=iou_threshold, imagenet=imagenet)
    once = np.ones((1, len(matches.image_ids)), np.int32)  # every image counts once
    ap = voc_precision(matches, once)[0]
    return VocResult(ap_11point=ap[:, 0], ap_area=ap[:, 1])


def match_voc(
    records: Sequence[Record], class_names: Sequence[str], *, iou_threshold: float = HIT_IOU, imagenet: bool = False
) -> MatchedRecords:
    """Returns ``records`` matched at ``iou_threshold`` by the rule of ``evaluate_voc``.

    Raises:
        ValueError: ``iou_threshold`` is outside (0, 1], a label is not in ``class_names``, or an image occurs twice.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is a fraction above 0 and at most 1, got {iou_threshold}; VOC uses 0.5")
    columns = join_records(records, len(class_names))
    objects = (_match_imagenet if imagenet else _match_voc)(columns, iou_threshold)
    ignored = np.append(columns.gt_ignore, False)[objects]  # row -1, "no object", is not ignored
    flat = FlatMatches(
        images=columns.images,
        labels=columns.labels,
        scores=columns.scores,
        hits=(_first_of_each(objects) & ~ignored)[:, None],
        ignored=ignored[:, None],
        gt_images=columns.gt_images[~columns.gt_ignore],
        gt_labels=columns.gt_labels[~columns.gt_ignore],
    )
    return pack(flat, class_names, columns.image_ids.tolist())


def voc_precision(matches: MatchedRecords, weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns the 11-point and area AP (B, K, 2) of resamples in which image i occurs ``weights[:, i]`` times.

    A class without objects has NaN.  The copies of a detection are ranked one after the other.
    """
    ap = np.empty((len(weights), len(matches.classes), 2))
    for label, found in enumerate(matches.classes):
        counted = ~found.ignored[:, 0]
        images, hits = found.images[counted], np.flatnonzero(found.hits[counted, 0])
        step = max(1, _CHUNK // max(1, len(images)))
        for start in range(0, len(weights), step):
            part = weights[start : start + step]
            ap[start : start + step, label] = _average_precisions(part[:, images], hits, part @ found.num_objects)
    return ap


def _match_voc(columns: Columns, iou_threshold: float) -> NDArray[np.int64]:
    """Returns the object (D,) of its class with the largest IoU for each detection, -1 below the threshold.

    Equal IoUs go to the first object.
    """
    pairs = box_candidates(columns, least=iou_threshold, crowds=False)
    order = np.lexsort((-pairs.objects, pairs.ious, pairs.rows))
    objects = np.full(len(columns.rows), -1)
    objects[pairs.rows[order]] = pairs.objects[order]  # of several values for a row, the last one stays
    return objects


def _match_imagenet(columns: Columns, iou_threshold: float) -> NDArray[np.int64]:
    """Returns the object (D,) matched to each detection, -1 for none."""
    sides = columns.gt_boxes[:, 2:] - columns.gt_boxes[:, :2]
    limits = np.minimum(iou_threshold, sides.prod(axis=1) / (sides + 10).prod(axis=1))
    pairs = box_candidates(columns, least=np.finfo(np.float64).tiny, crowds=False)
    enough = pairs.ious >= limits[pairs.objects]
    pairs = Candidates(rows=pairs.rows[enough], objects=pairs.objects[enough], ious=pairs.ious[enough])
    rounds = order_rounds(pairs, columns.cells, last_of_equals=False)
    none = np.zeros(len(limits), np.bool_)
    return assign(rounds, len(columns.rows), thresholds=np.zeros(1), ignored=none, shared=none)[:, 0]


def _first_of_each(objects: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns whether each detection (D,) is the first with its object; -1 is no object.

    Detections of an image and class are sorted by score.
    """
    first = np.zeros(len(objects), np.bool_)
    first[np.unique(objects, return_index=True)[1]] = True
    return first & (objects >= 0)


def _average_precisions(
    copies: NDArray[np.integer], hits: NDArray[np.int64], num_objects: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Returns the 11-point AP and the area AP (B, 2) of one class.

    Args:
        copies: (B, D) how often each ranked detection occurs.
        hits: columns of ``copies`` that are hits.
        num_objects: (B,) number of objects.
    """
    num_found = np.cumsum(copies[:, hits], axis=1)
    precision = num_found / np.maximum(np.cumsum(copies, axis=1)[:, hits], 1)
    # The best precision at this recall or a higher one lies at a hit.  Of a hit that occurs several times the last
    # copy says it all, because precision does not fall among them.
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    objects = np.maximum(num_objects, 1)[:, None]
    # Integers, because recall >= 0.1 * i in floating point can miss by one bit.
    points = np.diff(np.where(num_found > 0, 10 * num_found // objects + 1, 0), axis=1, prepend=0)
    ap = np.stack(
        [(points * best_from_here).sum(axis=1) / 11, (copies[:, hits] * best_from_here / objects).sum(axis=1)], axis=1
    )
    ap[num_objects == 0] = np.nan
    return ap
