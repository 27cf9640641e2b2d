"""Finds likely label errors, where the detections of one or several runs contradict the annotations.

Detections explained by an object of their class or by an ignored region are not used.  The others indicate missing
labels, and labels with a doubtful class or box.  Scores are means over runs, so an indication of a single run counts
less.  An object that no run finds, although similar objects are found, may be a false label.

After: Tkachenko, Thyagarajan and Mueller 2023, "ObjectLab: Automated Diagnosis of Mislabeled Images in Object Detection
Data", which scores overlooked, swapped and badly located labels of an image by one model.

Shapes: R runs; D detections and G objects of one image; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.matching import AREAS
from detection.evaluation.overlaps import HIT_IOU, box_iou, covered_share
from detection.evaluation.record import Record

__all__ = ["KINDS", "Kind", "Suspect", "find_label_errors"]

Kind = Literal["missing", "class", "box", "extra"]
KINDS: dict[Kind, str] = {
    "missing": "an object without a label",
    "class": "a label of the wrong class",
    "box": "a box at the wrong place",
    "extra": "a label without an object",
}
NEAR_IOU = 0.2  # IoU from which a detection may mean the same object as a label of its class
SEEN_IOU = 0.3  # IoU from which a detection of any class confirms an object
SIZES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A label that is probably wrong or missing.

    Attributes:
        kind: one of ``KINDS``.
        row: row of the record.
        score: likelihood of the error, 0..1.
        object: row of the object; None for a missing label.
        box: suggested box, pixels; the object's box if only its class or its presence is doubted.
        label: suggested label.
    """

    kind: Kind
    row: int
    score: float
    object: int | None
    box: tuple[float, float, float, float]
    label: int


@dataclass(frozen=True, slots=True)
class _Loose:
    """Detections of all runs on one image that no object explains, best first."""

    boxes: NDArray[np.floating]  # (D, 4)
    scores: NDArray[np.floating]  # (D,)
    labels: NDArray[np.int64]  # (D,)
    runs: NDArray[np.int64]  # (D,)


def find_label_errors(runs: Sequence[Sequence[Record]], *, min_score: float) -> list[Suspect]:
    """Returns the suspects of all images, the most likely first.

    Args:
        runs: records of each run, on the same images.
        min_score: smallest score of detections that count, also for finding an object.
    """
    suspects, seen = list[Suspect](), list[NDArray[np.float64]]()
    for row, records in enumerate(zip(*runs, strict=True)):
        own, loose = _own_scores(records), _loose(records)
        doubts = _doubts(row, records[0], own, loose, len(runs))
        found = [one for one in doubts if one.score >= min_score]
        moved = [one.box for one in found if one.kind == "box"]
        missing = _missing(row, records[0], loose, np.array(moved).reshape(-1, 4), len(runs), min_score)
        suspects += found + missing
        seen.append(_seen_scores(records))
    first = runs[0] if runs else ()
    told = {(one.row, one.object) for one in suspects}
    suspects += [one for one in _extra(first, seen, min_score) if (one.row, one.object) not in told]
    return sorted(suspects, key=lambda one: -one.score)


def _own_scores(records: Sequence[Record]) -> NDArray[np.float64]:
    """Returns the best score (G,) of a detection with each object's class and place, averaged over runs."""
    best = [
        np.where(
            (box_iou(one.boxes, one.gt_boxes) >= HIT_IOU) & (one.labels[:, None] == one.gt_labels),
            one.scores[:, None],
            0,
        ).max(axis=0, initial=0)
        for one in records
    ]
    return np.asarray(np.mean(best, axis=0, dtype=np.float64))


def _seen_scores(records: Sequence[Record]) -> NDArray[np.float64]:
    """Returns the best score (G,), in any run and of any class, of a detection at each object's place."""
    best = [
        np.where(box_iou(one.boxes, one.gt_boxes) >= SEEN_IOU, one.scores[:, None], 0).max(axis=0, initial=0)
        for one in records
    ]
    return np.asarray(np.max(best, axis=0), dtype=np.float64)


def _loose(records: Sequence[Record]) -> _Loose:
    parts = list[_Loose]()
    for run, one in enumerate(records):
        same = (box_iou(one.boxes, one.gt_boxes) >= HIT_IOU) & (one.labels[:, None] == one.gt_labels)
        inside = covered_share(one.boxes, one.gt_boxes[one.gt_ignore]) >= HIT_IOU
        kept = ~(same.any(axis=1) | inside.any(axis=1))
        parts.append(_Loose(one.boxes[kept], one.scores[kept], one.labels[kept], np.full(kept.sum(), run)))
    joined = _Loose(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Loose.__slots__))
    return _taken(joined, np.argsort(-joined.scores, kind="stable"))


def _doubts(row: int, record: Record, own: NDArray[np.float64], loose: _Loose, runs: int) -> list[Suspect]:
    """Returns the objects whose class or box unexplained detections contradict."""
    overlaps, found = box_iou(loose.boxes, record.gt_boxes), list[Suspect]()
    for number in np.flatnonzero(~record.gt_ignore).tolist():
        label, iou = int(record.gt_labels[number]), overlaps[:, number]
        other = _agreed(_taken(loose, (iou >= HIT_IOU) & (loose.labels != label)), runs)
        near = _agreed(_taken(loose, (iou >= NEAR_IOU) & (iou < HIT_IOU) & (loose.labels == label)), runs)
        box = tuple(record.gt_boxes[number].tolist())
        if other is not None and other[2] > own[number]:
            score = float(other[2] * (1 - own[number]))
            found.append(Suspect(kind="class", row=row, score=score, object=number, box=box, label=other[1]))
        elif near is not None and near[2] > own[number]:
            score = float(near[2] * (1 - own[number]))
            found.append(Suspect(kind="box", row=row, score=score, object=number, box=near[0], label=label))
    return found


def _missing(
    row: int, record: Record, loose: _Loose, moved: NDArray[np.floating], runs: int, min_score: float
) -> list[Suspect]:
    """Returns boxes of missing labels; ``moved`` (M, 4) are boxes already reported for misplaced labels."""
    known = np.concatenate([record.gt_boxes, moved])
    loose = _taken(loose, np.asarray(~(box_iou(loose.boxes, known) >= HIT_IOU).any(axis=1)))
    found = list[Suspect]()
    while len(loose.scores) and loose.scores[0] >= min_score:  # the best first: no mean over runs is higher
        together = np.asarray(box_iou(loose.boxes, loose.boxes[:1])[:, 0] >= HIT_IOU)
        together[0] = True  # a box without area has IoU 0 even with itself
        agreed = _agreed(_taken(loose, together), runs)
        assert agreed is not None
        box, label, score = agreed
        if score >= min_score:
            found.append(Suspect(kind="missing", row=row, score=score, object=None, box=box, label=label))
        loose = _taken(loose, ~together)
    return found


def _extra(records: Sequence[Record], seen: Sequence[NDArray[np.float64]], min_score: float) -> list[Suspect]:
    """Returns objects that are seen less than others of their class and size, by at least ``min_score``."""
    if not records:
        return []
    labels = np.concatenate([record.gt_labels for record in records])
    sizes = np.digitize(np.concatenate([record.gt_areas for record in records]), [AREAS[size][0] for size in SIZES[1:]])
    rows = np.repeat(np.arange(len(records)), [len(record.gt_labels) for record in records])
    objects = np.concatenate([np.arange(len(record.gt_labels)) for record in records])
    ignored, scores = np.concatenate([record.gt_ignore for record in records]), np.concatenate(seen)
    found = list[Suspect]()
    for label, size in {*zip(labels.tolist(), sizes.tolist(), strict=True)}:
        like = np.flatnonzero((labels == label) & (sizes == size) & ~ignored)
        expected = float(scores[like].mean()) if len(like) else 0.0
        for place in like[(scores[like] < min_score) & (expected * (1 - scores[like]) >= min_score)].tolist():
            row, number = int(rows[place]), int(objects[place])
            box = tuple(records[row].gt_boxes[number].tolist())
            score = expected * (1 - float(scores[place]))
            found.append(Suspect(kind="extra", row=row, score=score, object=number, box=box, label=label))
    return found


def _agreed(loose: _Loose, runs: int) -> tuple[tuple[float, float, float, float], int, float] | None:
    """Returns the box and label on which ``loose`` agree, and their mean score over all ``runs``; None if empty."""
    best = None
    for label in dict.fromkeys(loose.labels.tolist()):
        own = _taken(loose, loose.labels == label)
        score = sum(float(own.scores[own.runs == run].max(initial=0)) for run in range(runs)) / runs
        if best is None or score > best[2]:
            best = (tuple(own.boxes[0].tolist()), label, score)
    return best


def _taken(loose: _Loose, rows: NDArray[np.bool_] | NDArray[np.int64]) -> _Loose:
    return replace(
        loose, boxes=loose.boxes[rows], scores=loose.scores[rows], labels=loose.labels[rows], runs=loose.runs[rows]
    )
