"""Greedy matching for all images and classes at once, in order of score.

Round 1 matches the best detection of every class in every image, round 2 the second best, and so on.  The number of
rounds is the largest number of detections on objects in one image, whatever the number of images.

Shapes: P pairs, D detections and G objects of a whole set, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.candidates import Candidates
from detection.evaluation.columns import positions

__all__ = ["Rounds", "assign", "order_rounds"]

_NEAREST_ONE = 1 - 1e-10  # COCO's threshold for an IoU of 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Candidates sorted by round, by detection and by rising IoU."""

    rows: NDArray[np.int64]  # (P,) 0..D-1
    objects: NDArray[np.int64]  # (P,) 0..G-1
    ious: NDArray[np.float64]  # (P,)
    detections: NDArray[np.int64]  # where the pairs of each detection start
    rounds: NDArray[np.int64]  # where the detections of each round start, among ``detections``


def order_rounds(candidates: Candidates, cells: NDArray[np.int64], *, last_of_equals: bool) -> Rounds:
    """Returns ``candidates`` in the order in which detections are matched.

    Args:
        candidates: candidates of detections sorted by class, image and score, best first.
        cells: (D,) class and image of each detection, as one number.
        last_of_equals: prefer the last of objects with the same IoU, as COCO does; else the first.
    """
    chosen = np.flatnonzero(np.diff(candidates.rows, prepend=-1))  # the first pair of each detection
    turns = positions(cells[candidates.rows[chosen]])  # the round of each detection
    turn = np.repeat(turns, np.diff(chosen, append=len(candidates.rows)))
    objects = candidates.objects if last_of_equals else -candidates.objects
    order = np.lexsort((objects, candidates.ious, candidates.rows, turn))
    rows = candidates.rows[order]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return Rounds(
        rows=rows,
        objects=candidates.objects[order],
        ious=candidates.ious[order],
        detections=starts,
        rounds=np.flatnonzero(np.diff(turn[order][starts], prepend=-1)),
    )


def assign(
    rounds: Rounds,
    num_detections: int,
    *,
    thresholds: NDArray[np.float64],
    ignored: NDArray[np.bool_],
    shared: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Returns the matched object (D, T) of each detection, -1 for none.

    In order of score, each detection is matched to the free object with the largest IoU at or above the threshold.
    Ignored objects are used only if there is no other.

    Args:
        rounds: the candidates.
        num_detections: D.
        thresholds: (T,) IoU thresholds.
        ignored: (G,) whether an object is ignored.
        shared: (G,) whether several detections may match an object.
    """
    taken = np.full((num_detections, len(thresholds)), -1)
    free = np.ones((len(ignored), len(thresholds)), np.bool_)
    limits = np.minimum(thresholds, _NEAREST_ONE)
    for pairs, starts in _turns(rounds):
        objects, count = rounds.objects[pairs], pairs.stop - pairs.start
        possible = free[objects] & (rounds.ious[pairs, None] >= limits)
        preference = np.arange(1, count + 1) + np.where(ignored[objects], 0, count)
        best = np.maximum.reduceat(np.where(possible, preference[:, None], 0), starts, axis=0)
        detection, threshold = np.nonzero(best)
        object_ = objects[(best[detection, threshold] - 1) % count]
        taken[rounds.rows[pairs][starts[detection]], threshold] = object_
        free[object_, threshold] = shared[object_]
    return taken


def _turns(rounds: Rounds) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Yields the slice of pairs of each round, and the start of each detection's pairs in it."""
    pairs = np.append(rounds.detections, len(rounds.rows)).tolist()
    for start, stop in pairwise([*rounds.rounds.tolist(), len(rounds.detections)]):
        yield slice(pairs[start], pairs[stop]), rounds.detections[start:stop] - pairs[start]
