"""Mirrors detection/windows.py."""

from itertools import pairwise

import numpy as np
import pytest

from detection.windows import Window, windows


@pytest.mark.parametrize(
    ("size", "side", "overlap"), [((1000, 1700), 400, 0.2), ((401, 400), 400, 0.5), ((90, 5), 64, 0)]
)
def test_windows_cover_every_pixel_and_share_the_overlap(size, side: int, overlap: float) -> None:
    found, covered = windows(size, side, overlap), np.zeros(size, np.int64)
    for window in found:
        covered[window.slices] += 1
    assert covered.min() == 1
    assert {window.size for window in found} == {(min(side, size[0]), min(side, size[1]))}
    for axis in (0, 1):
        starts = sorted({window.corner[axis] for window in found})
        assert all(later - start <= side * (1 - overlap) for start, later in pairwise(starts))


def test_an_image_no_larger_than_a_window_is_one() -> None:
    assert windows((64, 30), 64, 0.2) == [Window((0, 0), (64, 30))]
