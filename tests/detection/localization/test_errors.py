"""Mirrors detection/localization/errors.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from detection.localization.errors import LocalizationRecord, localization_error

GT = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)  # IoU with GT is exactly 0.5
LESS = (0.0, 0.0, 10.0, 4.99)
FAR = (50.0, 50.0, 60.0, 60.0)

Guess = tuple[int, tuple[float, float, float, float]]


def record(
    guesses: Sequence[Guess], *, label: int = 0, gt: Sequence[tuple[float, float, float, float]] = (GT,)
) -> LocalizationRecord:
    return LocalizationRecord(
        file_name="image.jpg",
        label=label,
        gt_boxes=np.array(gt, dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for label, _ in guesses], dtype=np.int64),
        boxes=np.array([box for _, box in guesses], dtype=np.float32).reshape(-1, 4),
    )


def errors(*records: LocalizationRecord) -> tuple[float, float, float]:
    found = localization_error(records)
    return found.top1, found.top5, found.top5_class


@pytest.mark.parametrize(
    ("guesses", "expected"),
    [
        ([(0, GT)], (0, 0, 0)),
        ([(0, HALF)], (0, 0, 0)),  # 0.5 is enough
        ([(0, LESS)], (1, 1, 0)),
        ([(1, GT)], (1, 1, 1)),  # the box alone is worth nothing
        ([(1, GT), (0, GT)], (1, 0, 0)),
        ([(0, FAR), (1, GT)], (1, 1, 0)),  # class and box of two guesses do not add up
        ([(1, GT)] * 4 + [(0, GT)], (1, 0, 0)),
        ([(1, GT)] * 5 + [(0, GT)], (1, 1, 1)),  # the sixth counts nowhere
        ([(0, FAR)] * 5 + [(0, GT)], (1, 1, 0)),
        ([], (1, 1, 1)),
    ],
)
def test_one_image(guesses: Sequence[Guess], expected: tuple[float, float, float]) -> None:
    assert errors(record(guesses)) == expected


def test_any_of_the_boxes_will_do() -> None:
    assert errors(record([(0, FAR)], gt=[GT, FAR])) == (0, 0, 0)


def test_an_iou_just_below_one_half_is_a_miss() -> None:
    # In float32 this IoU would round to 0.5.
    box = np.nextafter(np.float32(5e5), np.float32(0))
    assert errors(record([(0, (0, 0, 1, float(box)))], gt=[(0, 0, 1, 1e6)])) == (1, 1, 0)


def test_errors_are_shares_of_the_images() -> None:
    records = [record([(0, GT)]), record([(1, GT), (0, GT)]), record([(0, FAR)]), record([(1, GT)])]
    assert errors(*records) == (0.75, 0.5, 0.25)


def test_images_without_ground_truth_are_left_out() -> None:
    found = localization_error([record([(0, GT)], gt=[]), record([(0, FAR)])])
    assert (found.images, found.top1, found.top5, found.top5_class) == (1, 1, 1, 0)


@pytest.mark.parametrize("records", [[], [record([(0, GT)], gt=[])]])
def test_no_images_have_no_error(records: list[LocalizationRecord]) -> None:
    found = localization_error(records)
    assert found.images == 0
    assert all(math.isnan(value) for value in (found.top1, found.top5, found.top5_class))


def test_unequal_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image\.jpg: 2 guessed classes for 1 boxes"):
        LocalizationRecord(
            file_name="image.jpg",
            label=0,
            gt_boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(2, np.int64),
            boxes=np.zeros((1, 4), np.float32),
        )
