"""Mirrors detection/evaluation/panoptic.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from detection.evaluation.panoptic import PANOPTIC_NUMBERS, class_qualities, panoptic_counts, panoptic_figures
from detection.segments import Segment, Segments

K = 4


def image(*rows: str, crowd: str = "", **labels: int) -> Segments:
    """Rows of letters, one a pixel: a segment each, of the class in ``labels``; "." is void."""
    letters = sorted({letter for row in rows for letter in row} - {"."})
    ids = np.array([[0 if letter == "." else ord(letter) for letter in row] for row in rows], np.int32)
    return Segments(ids, tuple(Segment(ord(letter), labels[letter], letter in crowd) for letter in letters))


def brute_force(true: Segments, predicted: Segments) -> NDArray[np.float64]:
    """The definition, segment by segment over sets of pixels."""

    def pixels(segments: Segments, segment: Segment) -> set[int]:
        return set(np.flatnonzero(segments.ids == segment.id).tolist())

    counts, void = np.zeros((K, 4)), set(np.flatnonzero(true.ids == 0).tolist())
    matched: set[int] = set()
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


def random_segments(generator: np.random.Generator, *, crowds: bool) -> Segments:
    """Rectangles over each other, one-pixel segments among them, with void between."""
    ids = np.zeros((12, 14), np.int32)
    for number in range(1, generator.integers(2, 9)):
        top, left = generator.integers(0, 12), generator.integers(0, 14)
        height, width = generator.integers(1, 9, 2) if generator.random() < 0.8 else (1, 1)
        ids[top : top + height, left : left + width] = 1000 * number
    found = [
        Segment(int(n), int(generator.integers(K - 1)), crowds and generator.random() < 0.25)
        for n in np.unique(ids)
        if n
    ]
    return Segments(ids, tuple(found))


class TestCounts:
    def test_a_hit_a_false_positive_and_a_miss_by_hand(self) -> None:
        true = image("aaaabb", "aaaabb", a=0, b=1)
        predicted = image("ccccdd", "ccc.ee", c=0, d=1, e=1)
        # a: 7 of 8 pixels; d and e have an IoU of exactly 1/2 with b: not above it.
        assert panoptic_counts(true, predicted, 2).tolist() == [[7 / 8, 1, 0, 0], [0, 0, 2, 1]]

    def test_void_is_taken_out_of_the_union_and_forgives(self) -> None:
        true = image("aaaa....", a=0)
        assert panoptic_counts(true, image("bbbbbbbb", b=0), 1).tolist() == [[1, 1, 0, 0]]
        assert panoptic_counts(true, image("...bbb..", b=0), 1).tolist() == [[0, 0, 0, 1]]  # 2 of 3 pixels in void
        assert panoptic_counts(true, image("..bbbb..", b=0), 1).tolist() == [[0, 0, 1, 1]]  # half is not mostly

    def test_a_crowd_is_never_missed_and_forgives_its_own_class_alone(self) -> None:
        true = image("aaaabb", crowd="a", a=0, b=1)
        assert panoptic_counts(true, image("cccdee", c=0, d=0, e=1), 2).tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
        assert panoptic_counts(true, image("cccc..", c=1), 2).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]

    def test_equal_to_brute_force(self) -> None:
        generator = np.random.default_rng(0)
        for _ in range(300):
            true = random_segments(generator, crowds=True)
            predicted = random_segments(generator, crowds=False)
            if generator.random() < 0.5:  # most segments as they are
                ids = np.where(generator.random(true.ids.shape) < 0.2, 0, true.ids).astype(np.int32)
                kept = set(np.unique(ids).tolist())
                predicted = Segments(ids, tuple(replace(s, crowd=False) for s in true.found if s.id in kept))
            assert panoptic_counts(true, predicted, K) == pytest.approx(brute_force(true, predicted))

    def test_nothing_in_either_image(self) -> None:
        empty = Segments(np.zeros((3, 2), np.int32), ())
        assert not panoptic_counts(empty, empty, K).any()

    @pytest.mark.parametrize(
        ("predicted", "named"),
        [
            (Segments(np.full((1, 2), 7, np.int32), ()), "7"),
            (Segments(np.ones((1, 2), np.int32), (Segment(1, 0), Segment(1, 2))), "1"),
            (Segments(np.ones((1, 2), np.int32), (Segment(1, K),)), str(K)),
            (Segments(np.zeros((2, 2), np.int32), ()), r"\(2, 2\)"),
        ],
    )
    def test_segments_that_make_no_sense_are_named(self, predicted: Segments, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            panoptic_counts(Segments(np.zeros((1, 2), np.int32), ()), predicted, K)


class TestFigures:
    COUNTS = np.array([[1.6, 2, 1, 1], [0, 0, 0, 0], [0, 0, 0, 2], [0.9, 1, 0, 0]])  # a class without any segment

    def test_by_hand(self) -> None:
        assert class_qualities(self.COUNTS)[[0, 2, 3]] == pytest.approx(
            np.array([[1.6 / 3, 0.8, 2 / 3], [0, 0, 0], [0.9, 0.9, 1]])
        )
        assert np.isnan(class_qualities(self.COUNTS)[1]).all()
        figures = dict(zip(PANOPTIC_NUMBERS, panoptic_figures(self.COUNTS, 2).tolist(), strict=True))
        assert figures["PQ"] == pytest.approx((1.6 / 3 + 0 + 0.9) / 3)
        assert (figures["PQ_things"], figures["SQ_things"]) == pytest.approx((1.6 / 3, 0.8))
        assert (figures["PQ_stuff"], figures["RQ_stuff"]) == pytest.approx((0.45, 0.5))

    def test_a_group_without_segments_has_no_figure(self) -> None:
        figures = panoptic_figures(self.COUNTS, 4)
        assert np.isnan(figures[6:]).all()
        assert not np.isnan(figures[:6]).any()

    def test_many_sums_at_once(self) -> None:
        sums = np.stack([self.COUNTS, 2 * self.COUNTS])
        assert panoptic_figures(sums, 2)[1] == pytest.approx(panoptic_figures(self.COUNTS, 2))
