"""Mirrors detection/evaluation/assignment.py; the rule itself is tested in test_matching.py, against COCO's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detection.evaluation.assignment import assign, order_rounds
from detection.evaluation.candidates import Candidates

Array = np.ndarray[Any, Any]


def candidates(pairs: list[tuple[int, int, float]]) -> Candidates:
    rows, objects, ious = (np.array(column) for column in zip(*pairs, strict=True))
    return Candidates(rows=rows, objects=objects, ious=ious)


def slow(pairs: list[tuple[int, int, float]], count: int, threshold: float, ignored: Array, shared: Array) -> list[int]:
    """Every detection after the other, as COCO's rule says."""
    taken, result = set[int](), []
    for row in range(count):
        free = [(iou, o) for r, o, iou in pairs if r == row and iou >= threshold and (o not in taken or shared[o])]
        best = max(free, key=lambda pair: (not ignored[pair[1]], *pair), default=(0, -1))[1]
        taken.add(best)
        result.append(best)
    return result


@pytest.mark.parametrize("seed", range(30))
def test_all_cells_at_once_as_one_detection_after_the_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    thresholds = np.array([0.5, 0.6, 0.8])
    cells = np.sort(rng.integers(0, 5, 20))
    gt_cells = np.sort(rng.integers(0, 5, 12))
    pairs = [
        (row, object_, float(rng.choice([0.5, 0.6, 0.7, 0.8])))
        for row, object_ in np.argwhere(cells[:, None] == gt_cells).tolist()
        if rng.random() < 0.7
    ]
    ignored = rng.random(12) < 0.3
    shared = ignored & (rng.random(12) < 0.5)
    rounds = order_rounds(candidates(pairs), cells, last_of_equals=True)
    found = assign(rounds, 20, thresholds=thresholds, ignored=ignored, shared=shared)
    for column, threshold in zip(found.T.tolist(), thresholds, strict=True):
        assert column == slow(pairs, 20, threshold, ignored, shared)


def test_of_equal_overlaps_the_first_or_the_last() -> None:
    none, pairs = np.zeros(2, np.bool_), candidates([(0, 0, 0.7), (0, 1, 0.7)])
    for last in (False, True):
        rounds = order_rounds(pairs, np.zeros(1, np.int64), last_of_equals=last)
        assert assign(rounds, 1, thresholds=np.array([0.5]), ignored=none, shared=none).tolist() == [[int(last)]]


def test_no_candidates_take_nothing() -> None:
    empty = Candidates(rows=np.empty(0, np.int64), objects=np.empty(0, np.int64), ious=np.empty(0))
    none = np.zeros(0, np.bool_)
    rounds = order_rounds(empty, np.zeros(3, np.int64), last_of_equals=True)
    assert assign(rounds, 3, thresholds=np.array([0.5]), ignored=none, shared=none).tolist() == [[-1]] * 3
