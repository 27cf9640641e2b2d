"""Localisation error: whether one of five (class, box) guesses has the right class and a matching box.

Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, section 4.2.

Shapes: G ground-truth boxes and P guesses of one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.overlaps import HIT_IOU, box_iou

__all__ = ["LocalizationErrors", "LocalizationRecord", "localization_error"]

MAX_GUESSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizationRecord:
    """One image: its class, where objects of that class are, and guesses, best first; boxes x1, y1, x2, y2."""

    file_name: str
    label: int  # 0..K-1
    gt_boxes: NDArray[np.float32]  # (G, 4) usable objects of the image's class; an image without any is left out
    labels: NDArray[np.int64]  # (P,) guessed classes
    boxes: NDArray[np.float32]  # (P, 4) guessed boxes

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.boxes):
            raise ValueError(f"{self.file_name}: {len(self.labels)} guessed classes for {len(self.boxes)} boxes")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizationErrors:
    """Errors as fractions 0..1 of the images; NaN without images."""

    images: int  # number of images with ground truth
    top1: float  # share of images whose first guess is wrong
    top5: float  # all of the first five guesses are wrong
    top5_class: float  # none of the first five has the right class: the classification error


def localization_error(records: Sequence[LocalizationRecord]) -> LocalizationErrors:
    """Returns the errors over all ``records`` with ground truth.

    A guess is right if its class is the image's and its box has an IoU of at least 0.5 with any of the boxes.  Guesses
    after the fifth are ignored.
    """
    usable = [record for record in records if len(record.gt_boxes)]
    hits = [_hits(record) for record in usable]
    return LocalizationErrors(
        images=len(usable),
        top1=_share(not located[:1].any() for _, located in hits),
        top5=_share(not located.any() for _, located in hits),
        top5_class=_share(not classified.any() for classified, _ in hits),
    )


def _hits(record: LocalizationRecord) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns two masks of the first five guesses: those with the image's class, and those of them with a right box."""
    classified = record.labels[:MAX_GUESSES] == record.label
    overlaps = box_iou(record.boxes[:MAX_GUESSES], record.gt_boxes)
    return classified, classified & (overlaps.max(axis=1) >= HIT_IOU)


def _share(wrong: Iterable[bool]) -> float:
    values = list(wrong)
    return sum(values) / len(values) if values else math.nan
