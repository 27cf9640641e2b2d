"""Mirrors detection/evaluation/panoptic.py."""

from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.panoptic import PANOPTIC_NUMBERS, class_qualities, panoptic_counts, panoptic_figures
from detection.segments import Segment, Segments

K = 4
COUNTS = np.array([[1.6, 2, 1, 1], [0, 0, 0, 0], [0, 0, 0, 2], [0.9, 1, 0, 0]])  # a class without any segment


def image(*rows: str, crowd: str = "", **labels: int) -> Segments:
    """Rows of letters, one a pixel: a segment each, of the class in ``labels``; "." is void."""
    letters = sorted({letter for row in rows for letter in row} - {"."})
    ids = np.array([[0 if letter == "." else ord(letter) for letter in row] for row in rows], np.int32)
    return Segments(ids, tuple(Segment(ord(letter), labels[letter], letter in crowd) for letter in letters))


def brute_force(true: Segments, predicted: Segments) -> np.ndarray:
    """The definition, segment by segment over sets of pixels."""

    def pixels(segments: Segments, segment: Segment) -> set[int]:
        return set(np.flatnonzero(segments.ids == segment.id).tolist())

    counts, void = np.zeros((K, 4)), set(np.flatnonzero(true.ids == 0).tolist())
    matched = set[int]()
    for segment in predicted.found:
        own, hit, forgiven = pixels(predicted, segment), False, set(void)
        for other in true.found:
            if other.label == segment.label and other.crowd:
                forgiven |= pixels(true, other)
            elif other.label == segment.label:
                shared, union = own & pixels(true, other), (own | pixels(true, other)) - (void & own)
                if len(shared) / len(union) > 0.5:
                    counts[segment.label, :2] += len(shared) / len(union), 1
                    hit = True
                    matched.add(other.id)
        if not hit and len(own & forgiven) / len(own) <= 0.5:
            counts[segment.label, 2] += 1
    for other in true.found:
        counts[other.label, 3] += other.id not in matched and not other.crowd
    return counts


def random_segments(rng: np.random.Generator, *, crowds: bool) -> Segments:
    """Rectangles over each other, one-pixel segments among them, with void between."""
    ids = np.zeros((12, 14), np.int32)
    for number in range(1, rng.integers(2, 9)):
        top, left = rng.integers(0, 12), rng.integers(0, 14)
        height, width = rng.integers(1, 9, 2) if rng.random() < 0.8 else (1, 1)
        ids[top : top + height, left : left + width] = 1000 * number
    known = [int(number) for number in np.unique(ids) if number]
    return Segments(ids, tuple(Segment(n, int(rng.integers(K - 1)), crowds and rng.random() < 0.25) for n in known))


THING, BOTH = image("aaaa....", a=0), image("aaaabb", "aaaabb", a=0, b=1)
CROWD = image("aaaabb", crowd="a", a=0, b=1)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        # a: 7 of 8 pixels; d and e have an IoU of exactly 1/2 with b: not above it.
        (BOTH, image("ccccdd", "ccc.ee", c=0, d=1, e=1), [[7 / 8, 1, 0, 0], [0, 0, 2, 1]]),
        # Void is taken out of the union and forgives what lies mostly in it: 2 of 3 pixels do, 2 of 4 not.
        (THING, image("bbbbbbbb", b=0), [[1, 1, 0, 0], [0] * 4]),
        (THING, image("...bbb..", b=0), [[0, 0, 0, 1], [0] * 4]),
        (THING, image("..bbbb..", b=0), [[0, 0, 1, 1], [0] * 4]),
        # A crowd is never missed and forgives its own class alone.
        (CROWD, image("cccdee", c=0, d=0, e=1), [[0] * 4, [1, 1, 0, 0]]),
        (CROWD, image("cccc..", c=1), [[0] * 4, [0, 0, 1, 1]]),
        (image("..."), image("..."), [[0] * 4] * 2),
    ],
)
def test_counts_by_hand(true: Segments, predicted: Segments, expected: list[list[float]]) -> None:
    assert panoptic_counts(true, predicted, 2).tolist() == expected


def test_counts_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        true, predicted = random_segments(rng, crowds=True), random_segments(rng, crowds=False)
        if rng.random() < 0.5:  # most segments as they are
            ids = np.where(rng.random(true.ids.shape) < 0.2, 0, true.ids).astype(np.int32)
            kept = set(np.unique(ids).tolist())
            predicted = Segments(ids, tuple(replace(s, crowd=False) for s in true.found if s.id in kept))
        assert panoptic_counts(true, predicted, K) == pytest.approx(brute_force(true, predicted))


@pytest.mark.parametrize(
    ("ids", "found", "named"),
    [
        (np.full((1, 2), 7), (), "7"),
        (np.ones((1, 2)), (Segment(1, 0), Segment(1, 2)), "1"),
        (np.ones((1, 2)), (Segment(1, K),), str(K)),
        (np.zeros((2, 2)), (), r"\(2, 2\)"),
    ],
)
def test_segments_that_make_no_sense_are_named(ids: np.ndarray, found: tuple[Segment, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        panoptic_counts(Segments(np.zeros((1, 2), np.int32), ()), Segments(ids.astype(np.int32), found), K)


def test_figures_by_hand_of_many_sums_at_once() -> None:
    qualities = class_qualities(COUNTS)
    assert qualities[[0, 2, 3]] == pytest.approx(np.array([[1.6 / 3, 0.8, 2 / 3], [0, 0, 0], [0.9, 0.9, 1]]))
    assert np.isnan(qualities[1]).all()
    found = panoptic_figures(np.stack([COUNTS, 2 * COUNTS]), 2)
    assert found[1] == pytest.approx(found[0])
    figures = dict(zip(PANOPTIC_NUMBERS, found[0].tolist(), strict=True))
    assert figures["PQ"] == pytest.approx((1.6 / 3 + 0 + 0.9) / 3)
    assert (figures["PQ_things"], figures["SQ_things"]) == pytest.approx((1.6 / 3, 0.8))
    assert (figures["PQ_stuff"], figures["RQ_stuff"]) == pytest.approx((0.45, 0.5))
    assert np.isnan(panoptic_figures(COUNTS, 4)).tolist() == [False] * 6 + [True] * 3  # a group without segments
