"""Mirrors detection/localization/errors.py."""

import math
from typing import Any

import numpy as np
import pytest

from detection.localization.errors import LocalizationRecord, localization_error

GT, FAR = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
HALF, LESS = (0.0, 0.0, 10.0, 5.0), (0.0, 0.0, 10.0, 4.99)  # IoU with GT is exactly 0.5, and less
LARGE, BELOW = (0, 0, 1, 1e6), (0, 0, 1, float(np.nextafter(np.float32(5e5), np.float32(0))))  # 0.5 in float32


def record(guesses: Any, gt: Any = (GT,), boxes: Any = None) -> LocalizationRecord:
    rows = [box for _, box in guesses] if boxes is None else boxes
    return LocalizationRecord(
        file_name="image.jpg",
        label=0,
        gt_boxes=np.array(gt, dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for label, _ in guesses], dtype=np.int64),
        boxes=np.array(rows, dtype=np.float32).reshape(-1, 4),
    )


@pytest.mark.parametrize(
    ("guesses", "gt", "expected"),
    [
        ([(0, GT)], [GT], (0, 0, 0)),
        ([(0, HALF)], [GT], (0, 0, 0)),  # 0.5 is enough
        ([(0, LESS)], [GT], (1, 1, 0)),
        ([(0, BELOW)], [LARGE], (1, 1, 0)),
        ([(1, GT)], [GT], (1, 1, 1)),  # the box alone is worth nothing
        ([(1, GT), (0, GT)], [GT], (1, 0, 0)),
        ([(0, FAR), (1, GT)], [GT], (1, 1, 0)),  # class and box of two guesses do not add up
        ([(0, FAR)], [GT, FAR], (0, 0, 0)),  # any of the boxes will do
        ([(1, GT)] * 4 + [(0, GT)], [GT], (1, 0, 0)),
        ([(1, GT)] * 5 + [(0, GT)], [GT], (1, 1, 1)),  # the sixth counts nowhere
        ([(0, FAR)] * 5 + [(0, GT)], [GT], (1, 1, 0)),
        ([], [GT], (1, 1, 1)),
    ],
)
def test_one_image(guesses, gt, expected) -> None:
    found = localization_error([record(guesses, gt)])
    assert (found.top1, found.top5, found.top5_class) == expected


def test_errors_are_shares_of_the_images_with_ground_truth() -> None:
    bare, rows = record([(0, GT)], gt=[]), ([(0, GT)], [(1, GT), (0, GT)], [(0, FAR)], [(1, GT)])
    found = localization_error([bare, *map(record, rows)])
    assert (found.images, found.top1, found.top5, found.top5_class) == (4, 0.75, 0.5, 0.25)
    for records in ([], [bare]):
        found = localization_error(records)
        assert found.images == 0
        assert all(math.isnan(value) for value in (found.top1, found.top5, found.top5_class))
    with pytest.raises(ValueError, match=r"image\.jpg: 2 guessed classes for 1 boxes"):
        record([(0, GT), (0, GT)], boxes=[GT])
