"""Mirrors thinning.py."""

import numpy as np
from scipy.ndimage import label

from detection.edges.thinning import suppress, thin


def components(marked: np.ndarray, *, corners: bool = True) -> int:
    """How many parts there are, connected by sides and perhaps by corners."""
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
