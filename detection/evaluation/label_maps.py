"""Semantic segmentation metrics: IoU and pixel accuracy, from counts of pixels by true and predicted class.

The IoU of a class is computed over its pixels in all images together.  A class without true and predicted pixels has no
IoU and is left out of the mean; a class that is predicted but never true has IoU 0.  This is the definition of
Cityscapes' scripts.  PASCAL VOC's and torchvision's reference scripts agree if every class has a true pixel, and so
does Detectron2, which leaves out all classes without a true pixel.  Void pixels are left out.  A pixel without a
prediction is a miss of its true class.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015, section 2.2; Long
et al., "Fully Convolutional Networks for Semantic Segmentation", 2015, section 5, for frequency-weighted IoU and
accuracies.

Shapes: H W height and width, N images, B resamples of them, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from detection.evaluation.average_precision import mean_over_classes
from detection.evaluation.record import Record
from detection.structures import VOID

__all__ = [
    "LABEL_NUMBERS",
    "LabelClasses",
    "LabelFigures",
    "check_comparable_maps",
    "label_counts",
    "label_figures",
    "pixel_counts",
    "pixel_totals",
    "segment_counts",
]

LABEL_NUMBERS = ("mIoU", "fwIoU", "pixel_accuracy", "mean_accuracy")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelClasses:
    """The classes of label maps."""

    names: tuple[str, ...]  # K
    num_things: int = 0  # number of classes of countable objects, which come first


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """Figures of B resamples of images, fractions 0..1; NaN without pixels."""

    numbers: Floats  # (B, 4) LABEL_NUMBERS
    iou: Floats  # (B, K)


def label_counts(true: NDArray[np.uint8], predicted: NDArray[np.integer], num_classes: int) -> csr_array:
    """Returns the number (K, K + 1) of pixels of one image by true and predicted class; the last column is none.

    Args:
        true: (H, W) labels 0..K-1; VOID pixels are left out.
        predicted: (H, W) labels 0..K-1, or VOID for none.
        num_classes: K.

    Raises:
        ValueError: the maps differ in size, or a label is neither VOID nor in 0..K-1.
    """
    if true.shape != predicted.shape:
        raise ValueError(
            f"a label map of {predicted.shape} is judged by one of {true.shape}; they must be equally large"
        )
    judged = true != VOID
    rows, columns = true[judged].astype(np.int64), predicted[judged].astype(np.int64)
    columns[columns == VOID] = num_classes
    for what, labels, most in (("true", rows, num_classes), ("predicted", columns, num_classes + 1)):
        if labels.size and not 0 <= labels.min() <= labels.max() < most:
            raise ValueError(
                f"{what} label {labels.min() if labels.min() < 0 else labels.max()} of {num_classes} classes"
            )
    cells = np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return csr_array(cells.reshape(num_classes, num_classes + 1).astype(np.int32))


def pixel_totals(records: Sequence[Record], num_classes: int) -> NDArray[np.int64]:
    """Returns the numbers (N, 3, K) of hit, true and predicted pixels of ``records``, by ascending image id.

    Raises:
        ValueError: a record has no counts, or counts of another number of classes.
    """
    ordered = _by_id(records)
    totals = np.zeros((len(ordered), 3, num_classes), np.int64)
    for row, record in zip(totals, ordered, strict=True):
        counts = record.label_counts
        if counts is None or counts.shape != (num_classes, num_classes + 1):
            raise _unfit(record, "label", None if counts is None else len(counts.indptr) - 1, num_classes)
        row[:] = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)[:-1]
    return totals


def pixel_counts(records: Sequence[Record]) -> NDArray[np.int64] | None:
    """Returns the number (K, K + 1) of pixels of all ``records`` by true and predicted class; None if one has none."""
    total: NDArray[np.int64] | None = None
    for record in records:
        if record.label_counts is None:
            return None
        counts = record.label_counts.toarray().astype(np.int64)
        total = counts if total is None else total + counts
    return total


def segment_counts(records: Sequence[Record], num_classes: int) -> NDArray[np.float64]:
    """Returns the panoptic counts (N, K, 4) of ``records``, by ascending image id.

    Raises:
        ValueError: a record has no counts, or counts of another number of classes.
    """
    ordered = _by_id(records)
    stacked = np.zeros((len(ordered), num_classes, 4))
    for row, record in zip(stacked, ordered, strict=True):
        counts = record.panoptic_counts
        if counts is None or len(counts) != num_classes:
            raise _unfit(record, "panoptic", None if counts is None else len(counts), num_classes)
        row[:] = counts
    return stacked


def label_figures(totals: NDArray[np.int64]) -> LabelFigures:
    """Returns the figures for ``totals`` (B, 3, K), the numbers of hit, true and predicted pixels."""
    hits, true, predicted = np.moveaxis(totals, 1, 0)
    iou, pixels = _ratio(hits, true + predicted - hits), true.sum(axis=1)
    numbers = [
        mean_over_classes(iou),
        _ratio((np.nan_to_num(iou) * true).sum(axis=1), pixels),
        _ratio(hits.sum(axis=1), pixels),
        mean_over_classes(_ratio(hits, true)),
    ]
    return LabelFigures(np.stack(numbers, axis=1), iou)


def check_comparable_maps(runs: Mapping[str, Sequence[Record]]) -> None:
    """Checks that all ``runs`` on the same images, or none, have label maps with the same ground truth.

    Raises:
        ValueError: names the first run and the one that differs from it.
    """
    (first, expected), *others = runs.items()
    for name, records in others:
        for a, b in zip(_by_id(expected), _by_id(records), strict=True):
            if (a.label_counts is None) != (b.label_counts is None):
                raise ValueError(f"{first} and {name} are not comparable: only one of them predicts label maps")
            if a.label_counts is None or b.label_counts is None:
                continue
            ours, theirs = a.label_counts.sum(axis=1), b.label_counts.sum(axis=1)
            if not np.array_equal(ours, theirs):
                raise ValueError(
                    f"{first} and {name} are not comparable: {a.file_name} was evaluated with other label maps; test "
                    "both on the same data"
                )


def _by_id(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.image_id)


def _unfit(record: Record, what: str, classes: int | None, num_classes: int) -> ValueError:
    found = f"no {what} counts" if classes is None else f"{what} counts of {classes} classes"
    return ValueError(f"{record.file_name}: {found}, expected those of {num_classes} classes; test again")


def _ratio(part: NDArray[Any], whole: NDArray[np.int64]) -> Floats:
    """Returns ``part`` / ``whole``, NaN for 0 / 0."""
    return part / np.where(whole > 0, whole, np.nan)
