"""The F-measure of edge maps by the definition of BSDS500: ODS by one threshold for all images, OIS by one for each.

A pixel is right where it can be matched, one to one, to a pixel of an annotator's boundaries at most 0.0075 of the
image's diagonal away.  Precision counts pixels that match any annotator, recall the boundaries of all annotators.

Source: Martin, Fowlkes and Malik 2004, "Learning to Detect Natural Image Boundaries"; Arbeláez et al. 2011, "Contour
Detection and Hierarchical Image Segmentation" (ODS, OIS, AP).
Departure: the matching has the most pairs, where the benchmark's has the least cost, in which a pixel without a partner
costs as much as a hundred of the longest pairs; so the number of pairs, which alone counts, is the same but for ties.
Shapes: H W height and width, T thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from detection.edges.thinning import thin

__all__ = ["EdgeCounts", "edge_figures", "match_edges", "measure_image"]

Marked = NDArray[np.bool_]

THRESHOLDS = 99
MAX_DISTANCE = 0.0075  # of the image's diagonal
STEPS = 100  # between two thresholds, where their recall and precision are interpolated


@dataclass(frozen=True, slots=True)
class EdgeCounts:
    """Pixels of one image by threshold, (T,) each."""

    found: NDArray[np.int64]  # in the edge map
    right: NDArray[np.int64]  # of these, matched to any annotator
    wanted: NDArray[np.int64]  # in the boundaries of all annotators together
    recalled: NDArray[np.int64]  # of these, matched


def measure_image(edges: NDArray[np.float64], boundaries: Sequence[Marked], *, count: int = THRESHOLDS) -> EdgeCounts:
    """Returns the counts of one edge map.

    Args:
        edges: (H, W) probabilities, after suppression; each threshold's map is thinned.
        boundaries: (H, W) of each annotator.
        count: T.
    """
    rows = list[tuple[int, int, int, int]]()
    for threshold in thresholds(count):
        marked = thin(edges >= threshold)
        pairs = [match_edges(marked, truth) for truth in boundaries]
        right = np.logical_or.reduce([own for own, _ in pairs]) if pairs else np.zeros_like(marked)
        recalled = sum(int(matched.sum()) for _, matched in pairs)
        rows.append((int(marked.sum()), int(right.sum()), sum(int(truth.sum()) for truth in boundaries), recalled))
    return EdgeCounts(*np.array(rows, dtype=np.int64).T)


def match_edges(found: Marked, truth: Marked) -> tuple[Marked, Marked]:
    """Returns which pixels of ``found`` and of ``truth`` (H, W) have a partner in the other map."""
    height, width = found.shape
    matched = np.zeros_like(found), np.zeros_like(truth)
    ours, theirs = np.argwhere(found), np.argwhere(truth)
    if not len(ours) or not len(theirs):
        return matched
    reach = MAX_DISTANCE * float(np.hypot(height, width))
    near = KDTree(ours).sparse_distance_matrix(KDTree(theirs), reach, output_type="ndarray")
    graph = csr_matrix((np.ones(len(near), dtype=np.int8), (near["i"], near["j"])), shape=(len(ours), len(theirs)))
    partner = maximum_bipartite_matching(graph, perm_type="column")
    matched[0][tuple(ours[partner >= 0].T)] = True
    matched[1][tuple(theirs[partner[partner >= 0]].T)] = True
    return matched


def edge_figures(images: Sequence[EdgeCounts]) -> dict[str, float]:
    """Returns ODS, its threshold, OIS and AP over ``images``, at least one.

    ODS is the best F of the counts of all images together, between thresholds too; OIS is the F of the sum of every
    image's counts at its own best threshold; AP is the area below precision over recall.
    """
    count = len(images[0].found)
    precision, recall = _shares(
        np.sum([image.found for image in images], axis=0),
        np.sum([image.right for image in images], axis=0),
        np.sum([image.wanted for image in images], axis=0),
        np.sum([image.recalled for image in images], axis=0),
    )
    best, at = _best_between(precision, recall, thresholds(count))
    chosen = np.zeros(4, dtype=np.int64)
    for image in images:
        place = int(_f(*_shares(image.found, image.right, image.wanted, image.recalled)).argmax())
        chosen += [image.found[place], image.right[place], image.wanted[place], image.recalled[place]]
    own = _f(*_shares(*(np.array([value]) for value in chosen)))
    return {"ODS": best, "threshold": at, "OIS": float(own[0]), "AP": _area(precision, recall)}


def thresholds(count: int) -> NDArray[np.float64]:
    """Returns ``count`` thresholds (T,), evenly spaced between 0 and 1, both excluded."""
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)


def _shares(
    found: NDArray[np.int64], right: NDArray[np.int64], wanted: NDArray[np.int64], recalled: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns precision and recall; 0 where nothing is found or wanted."""
    return right / np.maximum(found, 1), recalled / np.maximum(wanted, 1)


def _f(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def _best_between(
    precision: NDArray[np.float64], recall: NDArray[np.float64], at: NDArray[np.float64]
) -> tuple[float, float]:
    """Returns the best F and its threshold, where precision and recall between two thresholds are interpolated."""
    fine = np.linspace(0, len(at) - 1, STEPS * (len(at) - 1) + 1)
    places = np.arange(len(at))
    scores = _f(np.interp(fine, places, precision), np.interp(fine, places, recall))
    best = int(scores.argmax())
    return float(scores[best]), float(np.interp(fine[best], places, at))


def _area(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """Returns the area below precision over recall, between the measured recalls, in steps of 0.01."""
    values, first = np.unique(recall, return_index=True)
    if len(values) < 2:
        return 0.0
    steps = np.arange(0, 1.005, 0.01)
    heights = np.interp(steps, values, precision[first], left=0.0, right=0.0)
    return float(heights.sum() * 0.01)
