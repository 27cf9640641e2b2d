"""Pairs of overlapping detections and objects of one class and image, the input of every matching rule.

Mask IoU is pycocotools'.  It is not computed for most pairs, as the areas and boxes of the masks already show that it
is below the required IoU.

Shapes: D detections and G objects of a whole set; P pairs of a detection and an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as pycocotools_mask

from detection.evaluation.columns import Columns
from detection.evaluation.overlaps import box_areas, intersections
from detection.masks import RLE

__all__ = [
    "Candidates",
    "IouType",
    "box_candidates",
    "enough",
    "joined",
    "mask_areas",
    "mask_candidates",
    "mask_ious",
    "pairs",
]

IouType = Literal["bbox", "segm", "boundary", "keypoints"]  # IoU of boxes; of masks; of masks and their boundaries; OKS

coco_mask: Any = pycocotools_mask  # its stubs declare the bytes of an RLE as text

_CHUNK = 2**20  # pairs computed at once: about 100 MB
_MASKS = 255  # masks per call; pycocotools 2.0.11 fails on more under numpy 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Pairs of one class and image, sorted by detection, then by object."""

    rows: NDArray[np.int64]  # (P,) 0..D-1
    objects: NDArray[np.int64]  # (P,) 0..G-1
    ious: NDArray[np.float64]  # (P,)


def box_candidates(columns: Columns, *, least: float, crowds: bool = True) -> Candidates:
    """Returns the pairs with a box IoU of at least ``least``, which is above 0.

    With ``crowds``, the IoU with an ignored object is COCO's: the fraction of the detection that the object covers.
    """
    areas, gt_areas = box_areas(columns.boxes), box_areas(columns.gt_boxes)
    crowd = columns.gt_ignore & crowds
    parts = []
    for rows, objects in pairs(columns):
        shared = intersections(columns.boxes[rows], columns.gt_boxes[objects])
        union = areas[rows] + np.where(crowd[objects], 0, gt_areas[objects] - shared)
        parts.append(enough(rows, objects, shared / np.where(shared > 0, union, 1), least))
    return joined(parts)


def mask_candidates(columns: Columns, ignored: NDArray[np.bool_], *, least: float) -> Candidates:
    """Returns the pairs with a mask IoU of at least ``least``, which is above 0.

    The IoU with an ``ignored`` object (G,) is the fraction of the detection that the object covers.
    """
    if columns.masks is None or columns.gt_masks is None:
        raise ValueError("no masks of detections and objects, expected them for the IoU of masks")
    masks, gt_masks = columns.masks, columns.gt_masks
    areas, gt_areas = mask_areas(masks), mask_areas(gt_masks)
    boxes, gt_boxes = _mask_boxes(masks), _mask_boxes(gt_masks)
    parts = []
    for rows, objects in pairs(columns):
        shared = intersections(boxes[rows], gt_boxes[objects])
        shared = np.minimum(shared, np.minimum(areas[rows], gt_areas[objects]))  # upper limit of the common pixels
        union = areas[rows] + np.where(ignored[objects], 0, gt_areas[objects] - shared)
        open_ = (shared > 0) & (shared >= least * union)
        kept, of = rows[open_], objects[open_]
        parts.append(enough(kept, of, mask_ious(masks, gt_masks, ignored, kept, of), least))
    return joined(parts)


def mask_areas(masks: Sequence[RLE]) -> NDArray[np.float64]:
    """Returns the area (N,) of each of ``masks`` in pixels."""
    parts = [coco_mask.area(list(masks[start : start + _MASKS])) for start in range(0, len(masks), _MASKS)]
    return np.concatenate([np.empty(0), *parts])


def pairs(columns: Columns) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the rows of detections and objects of all pairs of one class and image, in chunks."""
    cells, gt_cells = columns.cells, columns.gt_cells
    first = np.searchsorted(gt_cells, cells)
    counts = np.searchsorted(gt_cells, cells, side="right") - first  # objects of each detection
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        part = rows[start:stop]
        repeated = np.repeat(part, counts[part])
        offset = np.arange(len(repeated)) - np.repeat(ends[start:stop] - counts[part] - before, counts[part])
        yield repeated, first[repeated] + offset
        start = stop


def enough(rows: NDArray[np.int64], objects: NDArray[np.int64], ious: NDArray[np.float64], least: float) -> Candidates:
    """Returns the pairs of ``rows`` and ``objects`` (P,) whose ``ious`` are at least ``least``."""
    kept = ious >= least
    return Candidates(rows=rows[kept], objects=objects[kept], ious=ious[kept])


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Returns the pairs of all ``parts``, in order."""
    return Candidates(
        rows=np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)]),
        objects=np.concatenate([np.empty(0, np.int64), *(part.objects for part in parts)]),
        ious=np.concatenate([np.empty(0, np.float64), *(part.ious for part in parts)]),
    )


def _mask_boxes(masks: Sequence[RLE]) -> NDArray[np.float64]:
    """Returns the bounding boxes (N, 4) of ``masks``."""
    boxes = np.asarray(coco_mask.toBbox(list(masks)), np.float64).reshape(-1, 4)  # x, y, width, height
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def mask_ious(
    masks: Sequence[RLE],
    gt_masks: Sequence[RLE],
    ignored: NDArray[np.bool_],
    rows: NDArray[np.int64],
    objects: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Returns the mask IoU (P,) of each pair, with one call of pycocotools per object."""
    order = np.argsort(objects, kind="stable")
    starts = np.flatnonzero(np.diff(objects[order], prepend=-1)).tolist()
    ious = np.empty(len(rows))
    for start, stop in pairwise([*starts, len(order)]):
        own = order[start:stop]
        object_ = int(objects[own[0]])
        found = [masks[row] for row in rows[own].tolist()]
        ious[own] = coco_mask.iou(found, [gt_masks[object_]], [bool(ignored[object_])])[:, 0]
    return ious
