"""Mirrors detection/evaluation/confusion.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detection.evaluation.confusion import confusion_matrix, found_objects, pair, rank_images
from detection.evaluation.record import Record

Make = Callable[..., Record]
A, B, C, D = [(20 * i, 0, 20 * i + 10, 10) for i in range(4)]


@pytest.mark.parametrize(
    ("objects", "found", "ignore", "expected"),
    [
        # a hit, a confusion, a false alarm and a miss
        ([A, (B, 1), (C, 1)], [(A, 0, 0.9), (B, 0, 0.8), (D, 1, 0.7)], [], [[1, 0, 0], [1, 0, 1], [0, 1, 0]]),
        ([A], [(A, 1, 0.9), (A, 0, 0.6)], [], [[1, 0, 0], [0, 0, 0], [0, 1, 0]]),  # the own class goes first
        ([A], [(A, 0.9), (A, 0.6)], [], [[1, 0, 0], [0, 0, 0], [1, 0, 0]]),  # a second detection is a false alarm
        # an ignored object counts nowhere, and neither do detections inside it
        ([A], [(A, 0.9), ((0, 0, 5, 5), 0.8), (B, 0.7)], [0], [[0, 0, 0], [0, 0, 0], [1, 0, 0]]),
        ([A], [(A, 0.5)], [], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),  # the threshold itself
        ([A], [(A, 0.49)], [], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),
        ([A], [((6, 0, 16, 10), 0.9)], [], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),  # an overlap below half
        ([], [], [], [[0, 0, 0]] * 3),
    ],
)
def test_matrix_by_hand(objects: list[Any], found: list[Any], ignore: list[int], expected: Any, record: Make) -> None:
    assert confusion_matrix([record(objects, found, ignore=ignore)], 2, min_score=0.5).tolist() == expected
    assert confusion_matrix([], 2, min_score=0.5).sum() == 0


def test_each_detection_takes_the_object_it_overlaps_most_and_finds_its_own_class(record: Make) -> None:
    near = (1, 0, 11, 10)
    assert pair(record([A, near], [(near, 0.9), (A, 0.8)]), min_score=0.5).objects.tolist() == [1, 0]
    assert found_objects(record([A, (B, 1)], [(A, 0.9), (B, 0.9)]), min_score=0.5).tolist() == [True, False]
    assert found_objects(record([], [(A, 0.9)]), min_score=0.5).tolist() == []


def test_images_are_ranked_with_the_best_first(record: Make) -> None:
    images = [
        record([A, B], [(A, 0.9)]),  # F1 2/3
        record([A], [(A, 0.9)]),  # 1
        record([A, B], [(A, 0.9), (B, 0.9)]),  # 1, of more objects
        record([A, B], [(C, 0.9)]),  # 0, with more errors than the next
        record([A], [(B, 0.9)]),
        record([], [(A, 0.1)]),  # nothing to see and nothing shown
    ]
    ranked = rank_images(images, min_score=0.5)
    assert [score.row for score in ranked] == [2, 1, 0, 4, 3]
    assert [(s.hits, s.misses, s.false) for s in ranked] == [(2, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1), (0, 2, 1)]
    assert ranked[2].f1 == np.float64(2 / 3)
