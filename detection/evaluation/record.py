"""The input of evaluation: one record per test image, in original pixels.

Boxes are (N, 4) rows (x1, y1, x2, y2), width = x2 - x1; labels are 0..K-1.  Numbers are float32 from our detectors and
float64 from the files of other programs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from detection.keypoints import KeypointSpec
from detection.masks import RLE

__all__ = ["Record", "check_records", "has_objects", "judged_maps"]


# Fields without a row per object.
OF_IMAGE = ("image_id", "file_name", "size", "keypoint_spec", "label_counts", "panoptic_counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Ground truth (G boxes) and detections (D boxes, any order) of one image."""

    image_id: int  # unique in the data set
    file_name: str
    size: tuple[int, int]  # (height, width)
    gt_boxes: NDArray[np.floating]  # (G, 4)
    gt_labels: NDArray[np.int64]  # (G,)
    gt_ignore: NDArray[np.bool_]  # (G,) VOC "difficult" or COCO "iscrowd": neither hit nor miss
    gt_areas: NDArray[np.floating]  # (G,) pixels; decides small, medium or large in COCO's metric
    boxes: NDArray[np.floating]  # (D, 4)
    scores: NDArray[np.floating]  # (D,) 0..1
    labels: NDArray[np.int64]  # (D,)
    gt_masks: tuple[RLE, ...] | None = None  # (G,) of the whole image; empty if the mask is unknown
    masks: tuple[RLE, ...] | None = None  # (D,) of the whole image
    gt_keypoints: NDArray[np.floating] | None = None  # (G, J, 3) x, y, visibility; 0 if not labelled
    keypoints: NDArray[np.floating] | None = None  # (D, J, 3) x, y, score
    keypoint_spec: KeypointSpec | None = None  # of both
    # (K, K + 1) int32: pixels by true and predicted class, last column: no prediction; without void pixels. Sparse, as
    # a full array for the 171 classes of COCO-Stuff has 118 kB per image.
    label_counts: csr_array | None = None
    panoptic_counts: NDArray[np.float64] | None = None  # (K, 4) sum of IoU, hits, false positives, misses of segments

    def __post_init__(self) -> None:
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OF_IMAGE}
        lengths = {name: len(rows) for name, rows in named.items() if rows is not None}
        gt = {length for name, length in lengths.items() if name.startswith("gt_")}
        detected = {length for name, length in lengths.items() if not name.startswith("gt_")}
        if len(gt) > 1 or len(detected) > 1:
            raise ValueError(f"{self.file_name}: rows of unequal length, ground truth {gt}, detections {detected}")


def judged_maps(records: Sequence[Record], fields: Collection[str] = ()) -> frozenset[str]:
    """Returns which of "masks", "label_maps" and "panoptic" are evaluated: those in ``fields`` or in a record."""
    found = {
        "masks": any(record.masks is not None for record in records),
        "label_maps": any(record.label_counts is not None for record in records),
        "panoptic": any(record.panoptic_counts is not None for record in records),
    }
    return frozenset(name for name, known in found.items() if known or name in fields)


def has_objects(maps: Collection[str]) -> bool:
    """Returns whether objects are evaluated besides ``maps`` (of ``judged_maps``); with label maps only with masks."""
    return "label_maps" not in maps or "masks" in maps


def check_records(records: Sequence[Record], num_classes: int) -> None:
    """Checks for errors that would silently give wrong numbers.

    Raises:
        ValueError: a label is outside 0..num_classes-1, or an image id occurs twice.
    """
    seen: set[int] = set()
    for record in records:
        if record.image_id in seen:
            raise ValueError(
                f"{record.file_name}: image id {record.image_id} occurs twice, expected one record per image; "
                "drop the images that a distributed sampler repeats"
            )
        seen.add(record.image_id)
        labels = np.concatenate([record.gt_labels, record.labels])
        outside = labels[(labels < 0) | (labels >= num_classes)]
        if len(outside):
            raise ValueError(
                f"{record.file_name}: label {outside[0]}, expected 0..{num_classes - 1}; "
                "are these the class names that the detector was trained with?"
            )
