"""Greedy matching of all images and classes at once: the best detections choose first.

The candidates of the best detection of every class in every image are looked at together, then those of the second,
and so on: as many rounds as the fullest image has detections on objects, whatever the number of images.

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
    """Candidates by round, by detection and from the smallest IoU to the largest."""

    rows: NDArray[np.int64]  # (P,) 0..D-1
    objects: NDArray[np.int64]  # (P,) 0..G-1
    ious: NDArray[np.float64]  # (P,)
    detections: NDArray[np.int64]  # where the pairs of each detection start
    rounds: NDArray[np.int64]  # where the detections of each round start, among ``detections``


def order_rounds(candidates: Candidates, cells: NDArray[np.int64], *, last_of_equals: bool) -> Rounds:
    """Returns ``candidates`` in the order in which detections choose.

    Args:
        candidates: of detections that stand by class, image and score, best first.
        cells: (D,) the class and image of each detection.
        last_of_equals: of objects with the same IoU the last is preferred, as in COCO's rule; else the first.
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
    """Returns the object (D, T) that each detection takes, -1 for none.

    From the best score on, a detection takes, of the objects that are free and reach the threshold, the one with the
    largest IoU; those that are ignored only where there is no other.

    Args:
        rounds: the candidates.
        num_detections: D.
        thresholds: (T,) IoU.
        ignored: (G,) objects that come last.
        shared: (G,) objects that any number of detections may take.
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
    """Yields the pairs of each round, and where the pairs of each detection start among them."""
    pairs = np.append(rounds.detections, len(rounds.rows)).tolist()
    for start, stop in pairwise([*rounds.rounds.tolist(), len(rounds.detections)]):
        yield slice(pairs[start], pairs[stop]), rounds.detections[start:stop] - pairs[start]
