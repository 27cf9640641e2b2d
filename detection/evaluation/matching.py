"""COCO's matching of detections with objects, done once so that AP of any resample of images needs only sums.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.

Shapes: N images, K classes, T IoU thresholds; D detections and G objects, of one image or of a whole set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.assignment import Rounds, assign, order_rounds
from detection.evaluation.boundaries import boundary_candidates
from detection.evaluation.candidates import IouType, box_candidates, mask_areas, mask_candidates
from detection.evaluation.columns import Columns, join_records, positions
from detection.evaluation.oks import keypoint_areas, keypoint_candidates, shared_sigmas, without_keypoints
from detection.evaluation.overlaps import COCO_IOUS, box_areas
from detection.evaluation.record import Record

__all__ = [
    "AREAS",
    "MAX_DETECTIONS",
    "MAX_WITH_KEYPOINTS",
    "Area",
    "ClassMatches",
    "FlatMatches",
    "ImageMatches",
    "MatchedRecords",
    "check_comparable",
    "join",
    "match",
    "match_areas",
    "match_image",
    "match_images",
    "pack",
]

Table = TypeVar("Table", bound=Any)  # a dataclass of arrays
Area = Literal["all", "small", "medium", "large"]

MAX_DETECTIONS = 100  # per class and image
MAX_WITH_KEYPOINTS = 20  # per class and image, for keypoints
# Range of object areas, in square pixels and inclusive, of each part of COCO's metric.
AREAS: dict[Area, tuple[float, float]] = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMatches:
    """Detections of one class in all images by falling score; ties keep the order of image ids, then of rows."""

    images: NDArray[np.int64]  # (D,) index 0..N-1 into MatchedRecords.image_ids
    scores: NDArray[np.floating]  # (D,)
    ranks: NDArray[np.int64]  # (D,) rank by score in the class and image, from 0
    hits: NDArray[np.bool_]  # (D, T) matched to an object that is not ignored
    ignored: NDArray[np.bool_]  # (D, T) neither hit nor miss: matched only to ignored objects, or of another area
    num_objects: NDArray[np.int64]  # (N,) number of objects that are not ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedRecords:
    """The input of AP: detections and numbers of objects, by class."""

    class_names: tuple[str, ...]  # K
    image_ids: NDArray[np.int64]  # (N,) ascending
    classes: tuple[ClassMatches, ...]  # K


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMatches:
    """The detections of one image that count in COCO's metric, by falling score."""

    rows: NDArray[np.int64]  # (D,) row in the record
    objects: NDArray[np.int64]  # (D, T) row of the matched object, -1 for none
    ignored: NDArray[np.bool_]  # (D, T)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatMatches:
    """Detections of all images and classes, sorted by image id, and the objects that are not ignored."""

    images: NDArray[np.int64]  # (D,) index of the image
    labels: NDArray[np.int64]  # (D,)
    scores: NDArray[np.floating]  # (D,)
    hits: NDArray[np.bool_]  # (D, T)
    ignored: NDArray[np.bool_]  # (D, T)
    gt_images: NDArray[np.int64]  # (G,) index of the image
    gt_labels: NDArray[np.int64]  # (G,)


def match(records: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox") -> MatchedRecords:
    """Returns ``records`` matched at IoU 0.50, 0.55, ..., 0.95, for objects of any area.

    Raises:
        ValueError: as ``match_areas``.
    """
    return match_areas(records, class_names, iou_type=iou_type, areas=("all",))["all"]


def match_areas(
    records: Sequence[Record],
    class_names: Sequence[str],
    *,
    iou_type: IouType = "bbox",
    areas: Sequence[Area] = tuple(AREAS),
) -> dict[Area, MatchedRecords]:
    """Returns ``records`` matched at IoU 0.50, 0.55, ..., 0.95 for each of ``areas``.

    Objects of other areas are ignored, and so are unmatched detections of other areas.  With "segm", IoU and the areas
    of detections are those of masks, and an object without a known mask is ignored.  With "boundary", the IoU of a pair
    is the smaller of mask and boundary IoU.  With "keypoints", OKS replaces IoU, the area of a detection is that of the
    box around its keypoints, and an object without a labelled keypoint is ignored.

    Raises:
        ValueError: a label is not in ``class_names``, an image occurs twice, or a record lacks the masks or keypoints
            of ``iou_type``.
    """
    found = _find(records, len(class_names), iou_type)
    columns = found.columns
    order, ids = np.lexsort((-columns.scores, columns.labels)), columns.image_ids.tolist()  # stable: then by image
    return {area: _pack(found.flat(area), class_names, ids, order, columns.ranks) for area in areas}


def match_images(records: Sequence[Record]) -> list[ImageMatches]:
    """Returns COCO's greedy matching of the boxes of each of ``records`` at all of ``COCO_IOUS``.

    In order of score, each detection is matched to the free object of its class with the largest IoU at or above the
    threshold.  If there is none, but an ignored object reaches the threshold, the detection is ignored.

    Raises:
        ValueError: a label is negative, or an image occurs twice.
    """
    highest = max((int(labels.max()) for r in records for labels in (r.labels, r.gt_labels) if len(labels)), default=0)
    found = _find(records, highest + 1, "bbox")
    columns, (objects, of_ignored) = found.columns, found.objects("all")
    ignored = np.append(of_ignored, False)[objects]  # row -1, "no object", is not ignored
    rows = np.where(ignored, -1, np.append(columns.gt_rows, -1)[objects])
    order = np.lexsort((columns.rows, -columns.scores, columns.images))
    ends = np.searchsorted(columns.images[order], np.arange(len(records)), side="right")
    by_id = [
        ImageMatches(rows=columns.rows[part], objects=rows[part], ignored=ignored[part])
        for part in np.split(order, ends[:-1])
    ]
    places = np.searchsorted(columns.image_ids, [record.image_id for record in records])
    return [by_id[place] for place in places.tolist()]


def match_image(record: Record) -> ImageMatches:
    """Returns ``match_images`` of one record."""
    return match_images([record])[0]


def join(tables: Sequence[Table]) -> Table:
    """Concatenates ``tables``, which are dataclasses of arrays."""
    columns = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(tables[0])
    }
    return type(tables[0])(**columns)


def pack(flat: FlatMatches, class_names: Sequence[str], image_ids: Sequence[int]) -> MatchedRecords:
    """Returns the rows of ``flat`` by class and falling score; ``image_ids`` ascend."""
    ranks = np.empty(len(flat.scores), np.int64)
    by_image = np.lexsort((-flat.scores, flat.images, flat.labels))  # stable
    ranks[by_image] = positions(flat.labels[by_image] * len(image_ids) + flat.images[by_image])
    order = by_image[np.lexsort((-flat.scores[by_image], flat.labels[by_image]))]
    return _pack(flat, class_names, image_ids, order, ranks)


def _pack(
    flat: FlatMatches,
    class_names: Sequence[str],
    image_ids: Sequence[int],
    order: NDArray[np.int64],
    ranks: NDArray[np.int64],
) -> MatchedRecords:
    """Returns ``flat`` in ``order`` (D,), by class, score and image; ``ranks`` (D,) are in the order of ``flat``."""
    num_images, num_classes = len(image_ids), len(class_names)
    starts = np.searchsorted(flat.labels[order], np.arange(num_classes))
    cells = flat.gt_labels * num_images + flat.gt_images
    num_objects = np.bincount(cells, minlength=num_classes * num_images).reshape(num_classes, num_images)
    return MatchedRecords(
        class_names=tuple(class_names),
        image_ids=np.array(image_ids, np.int64),
        classes=tuple(
            ClassMatches(
                images=flat.images[rows],
                scores=flat.scores[rows],
                ranks=ranks[rows],
                hits=flat.hits[rows],
                ignored=flat.ignored[rows],
                num_objects=counts,
            )
            for rows, counts in zip(np.split(order, starts)[1:], num_objects, strict=True)
        ),
    )


def check_comparable(runs: Mapping[str, MatchedRecords]) -> None:
    """Checks that all ``runs`` were tested with the same classes, images and objects.

    Raises:
        ValueError: names the first run and the one that differs from it.
    """
    (first, expected), *others = runs.items()
    for name, matches in others:
        mismatch = _mismatch(expected, matches)
        if mismatch is not None:
            raise ValueError(f"{first} and {name} are not comparable: {mismatch}; test both on the same data")


def _mismatch(a: MatchedRecords, b: MatchedRecords) -> str | None:
    """Returns the first difference between the test sets of ``a`` and ``b``; None if they agree."""
    for what, ours, theirs in (
        ("classes", list(a.class_names), list(b.class_names)),
        ("images", a.image_ids.tolist(), b.image_ids.tolist()),
    ):
        if len(ours) != len(theirs):
            return f"{len(ours)} and {len(theirs)} {what}"
        if ours != theirs:
            return f"{what} " + next(f"{x!r} and {y!r}" for x, y in zip(ours, theirs, strict=True) if x != y)
    for name, ours, theirs in zip(a.class_names, a.classes, b.classes, strict=True):
        other = np.flatnonzero(ours.num_objects != theirs.num_objects)
        if len(other):
            counts = f"{ours.num_objects[other[0]]} and {theirs.num_objects[other[0]]}"
            return f"{counts} objects of class {name} in image {a.image_ids[other[0]]}"
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """Detections and objects of a whole set, and the overlapping pairs."""

    columns: Columns
    rounds: Rounds
    ignored: NDArray[np.bool_]  # (G,) ignored in every area: crowds, difficult objects, objects without a known mask
    areas: NDArray[np.float64]  # (D,) square pixels of the detections

    def objects(self, area: Area) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Returns the matched object (D, T) of each detection, -1 for none, and whether each object (G,) is ignored."""
        low, high = AREAS[area]
        ignored = self.ignored | (self.columns.gt_areas < low) | (self.columns.gt_areas > high)
        objects = assign(
            self.rounds, len(self.areas), thresholds=COCO_IOUS, ignored=ignored, shared=self.columns.gt_ignore
        )
        return objects, ignored

    def flat(self, area: Area) -> FlatMatches:
        """Returns hits and ignored detections of one area."""
        columns, (low, high) = self.columns, AREAS[area]
        objects, ignored = self.objects(area)
        of_ignored = np.append(ignored, False)[objects]  # row -1, "no object", is not ignored
        outside = (self.areas < low) | (self.areas > high)
        return FlatMatches(
            images=columns.images,
            labels=columns.labels,
            scores=columns.scores,
            hits=(objects >= 0) & ~of_ignored,
            ignored=of_ignored | ((objects < 0) & outside[:, None]),
            gt_images=columns.gt_images[~ignored],
            gt_labels=columns.gt_labels[~ignored],
        )


def _find(records: Sequence[Record], num_classes: int, iou_type: IouType) -> _Found:
    """Returns the pairs of detections and objects of ``records`` that reach the lowest of ``COCO_IOUS``."""
    limit = MAX_WITH_KEYPOINTS if iou_type == "keypoints" else MAX_DETECTIONS
    columns, least = join_records(records, num_classes, limit=limit), float(COCO_IOUS[0])
    if iou_type == "keypoints":
        candidates = keypoint_candidates(columns, shared_sigmas(records), least=least)
        ignored, areas = columns.gt_ignore | without_keypoints(columns), keypoint_areas(columns)
    elif iou_type == "bbox":
        candidates, ignored = box_candidates(columns, least=least), columns.gt_ignore
        areas = box_areas(columns.boxes)
    else:
        _check_masks(records)
        ignored = columns.gt_ignore | (mask_areas(columns.gt_masks or ()) == 0)
        candidates_of = boundary_candidates if iou_type == "boundary" else mask_candidates
        candidates = candidates_of(columns, ignored, least=least)
        areas = mask_areas(columns.masks or ())
    return _Found(columns, order_rounds(candidates, columns.cells, last_of_equals=True), ignored, areas)


def _check_masks(records: Sequence[Record]) -> None:
    for record in records:
        for masks, whose in ((record.gt_masks, "objects"), (record.masks, "detections")):
            if masks is None:
                raise ValueError(f"{record.file_name}: no masks of its {whose}, expected them for mask AP")
