"""TIDE: the gain in AP50 if a detector made no errors of one type.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, sections 2.2 (the
types) and 2.3 (fixing errors).  Details that the paper leaves open follow the authors' program tidecv: a false positive
of two types counts as the first of Loc, Cls, Dupe, Bkg, Both; fixing the Cls and Loc errors on one object makes the one
with the best score a hit and removes the others.  There are two differences: AP is COCO's (100 detections per class and
image, without classes that have no objects), and negative gains, possible with AP's 101 points, are kept.

Shapes: D detections and G objects, of one image or of a whole set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.matching import (
    FlatMatches,
    ImageMatches,
    MatchedRecords,
    join,
    match_images,
    pack,
)
from detection.evaluation.overlaps import record_iou
from detection.evaluation.record import Record, check_records

__all__ = ["ERROR_TYPES", "error_gains", "match_errors"]

ERROR_TYPES = (
    "Cls",  # right place, wrong class
    "Loc",  # right class, IoU 0.1 to 0.5
    "Both",  # wrong class, IoU 0.1 to 0.5
    "Dupe",  # the object was found by a better detection
    "Bkg",  # IoU under 0.1 with every object
    "Miss",  # objects that no detection would find after the fixes of Cls and Loc
    "FP",  # all false positives at once
    "FN",  # all false negatives at once
)
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU from which a box is on an object; IoU up to which it is on none


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Detections with their errors, and the objects that are not ignored."""

    images: NDArray[np.int64]  # (D,) index of the image
    labels: NDArray[np.int64]  # (D,)
    scores: NDArray[np.floating]  # (D,)
    hits: NDArray[np.bool_]  # (D,) at IoU 0.5
    ignored: NDArray[np.bool_]  # (D,)
    errors: NDArray[np.str_]  # (D,) one of the first five of ERROR_TYPES, "" for none
    fixed_labels: NDArray[np.int64]  # (D,) class of the object that fixing the error would find, -1 to remove it
    gt_images: NDArray[np.int64]  # (G,) index of the image
    gt_labels: NDArray[np.int64]  # (G,)
    gt_found: NDArray[np.bool_]  # (G,) by a hit
    gt_missed: NDArray[np.bool_]  # (G,) neither found nor reached by fixing a Cls or Loc error


def match_errors(records: Sequence[Record], class_names: Sequence[str]) -> dict[str, MatchedRecords]:
    """Returns the matched run as "AP50", and the run with each type of error fixed under the type's name.

    A detection of an ignored object is neither a hit nor an error, as in COCO's metric.

    Raises:
        ValueError: there are no records, a label is not in ``class_names``, or an image occurs twice.
    """
    check_records(records, len(class_names))
    ordered = sorted(records, key=lambda record: record.image_id)
    if not ordered:
        raise ValueError("no records, expected those of at least 2 images")
    table = join([_image_table(*image) for image in zip(count(), ordered, match_images(ordered))])
    image_ids = [record.image_id for record in ordered]
    return {name: pack(_fix(table, {name}), class_names, image_ids) for name in ("AP50", *ERROR_TYPES)}


def error_gains(matches: Mapping[str, MatchedRecords], weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns AP50 and its gain from fixing each of ``ERROR_TYPES`` alone (B, 1 + 8), fractions 0..1.

    A class that loses all its objects by a fix has AP 0, as in tidecv.

    Args:
        matches: result of ``match_errors``.
        weights: (B, N) counts of the images.
    """
    ap = {name: average_precision(found, weights)[:, :, 0] for name, found in matches.items()}
    known = ~np.isnan(ap["AP50"])
    means = {name: mean_over_classes(np.where(known, np.nan_to_num(values), np.nan)) for name, values in ap.items()}
    return np.stack([means["AP50"], *(means[name] - means["AP50"] for name in ERROR_TYPES)], axis=1)


def _image_table(image: int, record: Record, found: ImageMatches) -> _Table:
    rows, hits, ignored = found.rows, found.objects[:, 0] >= 0, found.ignored[:, 0]
    counted = np.flatnonzero(~record.gt_ignore)
    iou = record_iou(record)[np.ix_(rows, counted)]
    same_class = record.labels[rows, None] == record.gt_labels[counted]
    gt_found = np.isin(counted, found.objects[:, 0])
    errors = np.where(hits | ignored, "", _kinds(np.where(same_class, iou, 0), np.where(same_class, 0, iou)))
    # the object that the detection should have found: the best of its own class (Loc) or of the others (Cls)
    candidates = np.where(same_class == (errors == "Loc")[:, None], iou, 0)
    targets = np.append(candidates, np.zeros((len(rows), 1)), axis=1).argmax(axis=1)  # any column without objects
    winners = _first_of_each(targets, np.isin(errors, ("Loc", "Cls")) & ~np.append(gt_found, True)[targets])
    return _Table(
        images=np.full(len(rows), image),
        labels=record.labels[rows],
        scores=record.scores[rows],
        hits=hits,
        ignored=ignored,
        errors=errors,
        fixed_labels=np.where(winners, np.append(record.gt_labels[counted], -1)[targets], -1),
        gt_images=np.full(len(counted), image),
        gt_labels=record.gt_labels[counted],
        gt_found=gt_found,
        gt_missed=~gt_found & ~np.isin(np.arange(len(counted)), targets[winners]),
    )


def _kinds(own_iou: NDArray[np.float64], other_iou: NDArray[np.float64]) -> NDArray[np.str_]:
    """Returns the type (D,) of false positives from their IoU (D, G) with objects of their class, and of others."""
    own, other = own_iou.max(axis=1, initial=0), other_iou.max(axis=1, initial=0)
    return np.select(
        [
            (own >= BACKGROUND) & (own <= FOREGROUND),
            other >= FOREGROUND,
            own > FOREGROUND,
            np.maximum(own, other) <= BACKGROUND,
        ],
        ["Loc", "Cls", "Dupe", "Bkg"],
        "Both",
    )


def _first_of_each(targets: NDArray[np.int64], eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns whether each row (D,), by falling score, is the first ``eligible`` one of its target."""
    rows = np.flatnonzero(eligible)
    first = np.zeros(len(targets), np.bool_)
    first[rows[np.unique(targets[rows], return_index=True)[1]]] = True
    return first


def _fix(table: _Table, types: set[str]) -> FlatMatches:
    """Returns the detections and objects after fixing errors of these ``types``."""
    wrong = np.isin(table.errors, list(types))
    gained = wrong & (table.fixed_labels >= 0)
    hits = table.hits | gained
    kept = hits if "FP" in types else ~wrong | gained
    counted = ~table.gt_missed if "Miss" in types else table.gt_found if "FN" in types else np.ones_like(table.gt_found)
    return FlatMatches(
        images=table.images[kept],
        labels=np.where(gained, table.fixed_labels, table.labels)[kept],
        scores=table.scores[kept],
        hits=hits[kept, None],
        ignored=table.ignored[kept, None],
        gt_images=table.gt_images[counted],
        gt_labels=table.gt_labels[counted],
    )
