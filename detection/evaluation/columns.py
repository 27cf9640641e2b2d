"""The records of a test set as columns, so that matching works on all images and classes at once.

Shapes: N images, K classes; D detections and G objects of the whole set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.record import Record, check_records
from detection.masks import RLE

__all__ = ["Columns", "join_records", "positions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Detections sorted by class, image and falling score; objects sorted by class and image.

    Images are numbered by ascending id.  Equal scores keep the order of their rows.
    """

    image_ids: NDArray[np.int64]  # (N,) ascending
    images: NDArray[np.int64]  # (D,) 0..N-1
    rows: NDArray[np.int64]  # (D,) row in the image's record
    labels: NDArray[np.int64]  # (D,)
    ranks: NDArray[np.int64]  # (D,) rank by score in its class and image, from 0
    scores: NDArray[np.floating]  # (D,)
    boxes: NDArray[np.float64]  # (D, 4)
    masks: tuple[RLE, ...] | None  # (D,)
    keypoints: NDArray[np.float64] | None  # (D, J, 3)
    gt_images: NDArray[np.int64]  # (G,) 0..N-1
    gt_rows: NDArray[np.int64]  # (G,) row in the image's record
    gt_labels: NDArray[np.int64]  # (G,)
    gt_boxes: NDArray[np.float64]  # (G, 4)
    gt_areas: NDArray[np.floating]  # (G,)
    gt_ignore: NDArray[np.bool_]  # (G,)
    gt_masks: tuple[RLE, ...] | None  # (G,)
    gt_keypoints: NDArray[np.float64] | None  # (G, J, 3)

    @property
    def cells(self) -> NDArray[np.int64]:
        """(D,) number of the class and image of each detection, ascending."""
        return self.labels * len(self.image_ids) + self.images

    @property
    def gt_cells(self) -> NDArray[np.int64]:
        """(G,) number of the class and image of each object, ascending."""
        return self.gt_labels * len(self.image_ids) + self.gt_images


def join_records(records: Sequence[Record], num_classes: int, *, limit: int | None = None) -> Columns:
    """Returns the columns of ``records``, with the best ``limit`` detections of each class in an image.

    Columns of masks and keypoints exist if every record has them.

    Raises:
        ValueError: a label is not in 0..num_classes-1, or an image occurs twice.
    """
    check_records(records, num_classes)
    ordered = sorted(records, key=lambda record: record.image_id)
    images, rows = _places([len(record.boxes) for record in ordered])
    labels, scores = _joined(ordered, "labels", np.int64), _joined(ordered, "scores", np.float32)
    order = np.lexsort((-scores, images, labels))  # stable
    ranks = positions(labels[order] * len(ordered) + images[order])
    kept = slice(None) if limit is None else ranks < limit
    order, ranks = order[kept], ranks[kept]
    gt_images, gt_rows = _places([len(record.gt_boxes) for record in ordered])
    gt_labels = _joined(ordered, "gt_labels", np.int64)
    gt_order = np.lexsort((gt_images, gt_labels))
    return Columns(
        image_ids=np.array([record.image_id for record in ordered], np.int64),
        images=images[order],
        rows=rows[order],
        labels=labels[order],
        ranks=ranks,
        scores=scores[order],
        boxes=_joined(ordered, "boxes", np.float64, (4,))[order],
        masks=_joined_masks([record.masks for record in ordered], order),
        keypoints=_joined_keypoints([record.keypoints for record in ordered], order),
        gt_images=gt_images[gt_order],
        gt_rows=gt_rows[gt_order],
        gt_labels=gt_labels[gt_order],
        gt_boxes=_joined(ordered, "gt_boxes", np.float64, (4,))[gt_order],
        gt_areas=_joined(ordered, "gt_areas", np.float32)[gt_order],
        gt_ignore=_joined(ordered, "gt_ignore", np.bool_)[gt_order],
        gt_masks=_joined_masks([record.gt_masks for record in ordered], gt_order),
        gt_keypoints=_joined_keypoints([record.gt_keypoints for record in ordered], gt_order),
    )


def positions(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the position (M,), from 0, of each row within its run of equal ``groups`` (M,)."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    lengths = np.diff(starts, append=len(groups))
    return np.arange(len(groups)) - np.repeat(starts, lengths)


def _places(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the image, and the row in the image's record, of every row of all images."""
    images = np.repeat(np.arange(len(counts)), counts)
    return images, positions(images)


def _joined(records: Sequence[Record], name: str, dtype: Any, shape: tuple[int, ...] = ()) -> NDArray[Any]:
    # The empty array sets the type without records; wider types stay as they are.
    return np.concatenate([np.empty((0, *shape), dtype), *(getattr(record, name) for record in records)])


def _joined_masks(masks: Sequence[tuple[RLE, ...] | None], order: NDArray[np.int64]) -> tuple[RLE, ...] | None:
    known = [of_image for of_image in masks if of_image is not None]
    if len(known) < len(masks):
        return None
    joined = list(chain.from_iterable(known))
    return tuple(joined[row] for row in order.tolist())


def _joined_keypoints(
    keypoints: Sequence[NDArray[np.floating] | None], order: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    known = [of_image for of_image in keypoints if of_image is not None]
    if len(known) < len(keypoints):
        return None
    rows = [of_image for of_image in known if len(of_image)]  # empty ones may not know J
    return np.concatenate(rows).astype(np.float64)[order] if rows else np.empty((0, 0, 3))
