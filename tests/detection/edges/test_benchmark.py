"""Mirrors benchmark.py and thinning.py."""

import numpy as np
import pytest
from scipy.ndimage import label

from detection.edges.benchmark import EdgeCounts, edge_figures, match_edges, measure_image
from detection.edges.thinning import suppress, thin

SIZE = (60, 80)  # a diagonal of 100: pixels match up to 0.75 away, which is the pixel itself
LARGE = (600, 800)  # 7.5


def column(size: tuple[int, int], x: int, rows: slice = slice(10, 50)) -> np.ndarray:
    marked = np.zeros(size, dtype=bool)
    marked[rows, x] = True
    return marked


def test_pixels_match_one_to_one_within_the_distance() -> None:
    def matched(edges: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
        found, drawn = match_edges(edges, truth)
        return found.sum(), drawn.sum()

    assert matched(column(SIZE, 20), column(SIZE, 20)) == (40, 40)
    assert matched(column(SIZE, 20), column(SIZE, 21)) == (0, 0)
    assert matched(column(LARGE, 20), column(LARGE, 27)) == (40, 40)
    assert matched(column(LARGE, 20, slice(10, 11)), column(LARGE, 28, slice(10, 11))) == (0, 0)
    both = column(LARGE, 20) | column(LARGE, 23)  # two lines near one: each of its pixels has one partner
    assert matched(both, column(LARGE, 21)) == (40, 40)
    assert matched(both, np.zeros(LARGE, dtype=bool)) == (0, 0)
    # A pixel gives up its partner where another has none else: the first reaches 104 alone, the second both.
    found, truth = np.zeros(LARGE, dtype=bool), np.zeros(LARGE, dtype=bool)
    found[100, [100, 107]] = truth[100, [104, 114]] = True
    assert matched(found, truth) == (2, 2)


def test_counts_of_annotators_add_up_and_figures_by_hand() -> None:
    edges = 0.9 * column(SIZE, 20) + 0.4 * column(SIZE, 40)
    counts = measure_image(edges, [column(SIZE, 20), column(SIZE, 40), column(SIZE, 60)], count=3)
    assert counts.found.tolist() == [80, 40, 40]  # at 0.25, 0.5, 0.75
    assert counts.right.tolist() == counts.recalled.tolist() == [80, 40, 40]
    assert counts.wanted.tolist() == [120, 120, 120]
    # found, right, wanted, recalled by two thresholds
    one, two = [(10, 8, 10, 8), (4, 4, 10, 4)], [(30, 10, 10, 10), (10, 8, 10, 8)]
    figures = edge_figures([EdgeCounts(*np.array(rows).T) for rows in (one, two)])
    # together 18/40 and 18/20, or 12/14 and 12/20; in between both are interpolated
    ends = [2 * p * r / (p + r) for p, r in ((18 / 40, 18 / 20), (12 / 14, 12 / 20))]
    steps = [(18 / 40 + (12 / 14 - 18 / 40) * s, 18 / 20 + (12 / 20 - 18 / 20) * s) for s in np.arange(101) / 100]
    best = max(2 * p * r / (p + r) for p, r in steps)
    assert figures["ODS"] == pytest.approx(best)
    assert figures["ODS"] >= max(ends)
    assert 1 / 3 <= figures["threshold"] <= 2 / 3
    assert figures["OIS"] == pytest.approx(2 * 0.8 * 0.8 / 1.6)  # the first's first, the second's second: 16 of 20
    # from recall 0.6 to 0.9 precision falls from 12/14 to 18/40, in steps of 0.01
    heights = [12 / 14 + (18 / 40 - 12 / 14) * step / 30 for step in range(31)]
    assert figures["AP"] == pytest.approx(0.01 * sum(heights), abs=0.01)
    # An image without edges found or drawn
    none = measure_image(np.zeros(SIZE), [np.zeros(SIZE, dtype=bool)], count=2)
    assert edge_figures([none]) == {"ODS": 0, "threshold": pytest.approx(1 / 3), "OIS": 0, "AP": 0}


def components(marked: np.ndarray, *, corners: bool = True) -> int:
    """Returns the number of parts, connected by sides and perhaps by corners."""
    found = np.zeros(marked.shape, dtype=np.int32)
    label(marked, np.ones((3, 3)) if corners else None, output=found)
    return int(found.max())


def test_lines_become_one_pixel_wide_and_stay_connected() -> None:
    thick = np.zeros((40, 60), dtype=bool)
    thick[10:15, 5:50] = thick[5:35, 25:30] = True
    thinned = thin(thick)
    assert not (thinned & ~thick).any()
    assert components(thinned) == 1
    assert (thinned[:, 15].sum(), thinned[30].sum()) == (1, 1)  # across the level and the upright line
    marked = np.zeros((20, 20), dtype=bool)
    marked[5, 2:15] = marked[np.arange(8, 15), np.arange(8, 15)] = marked[18, 18] = True
    for fine in (thinned, marked):  # lines of one pixel and single pixels stay
        assert np.array_equal(thin(fine), fine)
    ring = np.zeros((20, 20), dtype=bool)
    ring[4:16, 4:16] = True
    ring[8:12, 8:12] = False
    assert (components(thin(ring)), components(~thin(ring), corners=False)) == (1, 2)  # it keeps its hole


def test_only_the_ridge_of_a_blurred_edge_is_left() -> None:
    rows, columns = np.indices((80, 100))
    for distance, along in ((columns - 50, rows), (rows - 40, columns), ((rows - columns) / np.sqrt(2), rows)):
        ridge = np.exp(-(distance**2) / 18.0)
        left = suppress(ridge)
        inner = (np.minimum(rows, 79 - rows) > 15) & (np.minimum(columns, 99 - columns) > 15) & (along > 0)
        assert (np.abs(distance[inner & (left > 0.1)]) <= 1.0).all()
        assert (left[inner & (np.abs(distance) < 0.1)] > 0.5).all()
