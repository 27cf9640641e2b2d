"""Mirrors detection/evaluation/assignment.py; the rule itself is tested in test_matching.py, against COCO's numbers."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.assignment import assign, order_rounds
from detection.evaluation.candidates import Candidates

Pairs = list[tuple[int, int, float]]


def candidates(pairs: Pairs) -> Candidates:
    rows, objects, ious = np.array(pairs, float).reshape(-1, 3).T
    return Candidates(rows=rows.astype(np.int64), objects=objects.astype(np.int64), ious=ious)


def slow(pairs: Pairs, count: int, threshold: float, ignored: np.ndarray, shared: np.ndarray) -> list[int]:
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
    rng, thresholds = np.random.default_rng(seed), np.array([0.5, 0.6, 0.8])
    cells, gt_cells = np.sort(rng.integers(0, 5, 20)), np.sort(rng.integers(0, 5, 12))
    same = [pair for pair in np.argwhere(cells[:, None] == gt_cells).tolist() if rng.random() < 0.7]
    pairs = [(row, object_, float(rng.choice([0.5, 0.6, 0.7, 0.8]))) for row, object_ in same]
    ignored = rng.random(12) < 0.3
    shared = ignored & (rng.random(12) < 0.5)
    rounds = order_rounds(candidates(pairs), cells, last_of_equals=True)
    found = assign(rounds, 20, thresholds=thresholds, ignored=ignored, shared=shared)
    for column, threshold in zip(found.T.tolist(), thresholds, strict=True):
        assert column == slow(pairs, 20, threshold, ignored, shared)


def test_of_equal_overlaps_the_first_or_the_last_and_without_any_nothing() -> None:
    none, half = np.zeros(2, np.bool_), np.array([0.5])
    for last in (False, True):
        rounds = order_rounds(candidates([(0, 0, 0.7), (0, 1, 0.7)]), np.zeros(1, np.int64), last_of_equals=last)
        assert assign(rounds, 1, thresholds=half, ignored=none, shared=none).tolist() == [[int(last)]]
    rounds = order_rounds(candidates([]), np.zeros(3, np.int64), last_of_equals=True)
    assert assign(rounds, 3, thresholds=half, ignored=none[:0], shared=none[:0]).tolist() == [[-1]] * 3
