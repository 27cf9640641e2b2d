"""Claims about many differences at once: family-wise error rate and false discovery rate.

Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979;
Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 1995; intervals of what was discovered:
Benjamini and Yekutieli, "False discovery rate-adjusted multiple confidence intervals", JASA 2005.

Shapes: m differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["discoveries", "family", "is_discovered", "single_level", "step_down"]

Floats = NDArray[np.float64]


def family(key: str) -> str:
    """Returns which figures are claimed together with ``key``, such as bbox.per_class.*.AP; mostly it is alone."""
    section, per_class, rest = key.partition(".per_class.")
    if per_class:
        return f"{section}.per_class.*.{rest.rpartition('.')[2]}"
    return "tide.*" if key.startswith("tide.") and key != "tide.AP50" else key


def is_discovered(key: str) -> bool:
    """Returns whether ``key`` is one of many that are looked through, and its claims have a false discovery rate."""
    return "*" in family(key)


def step_down(p: Floats) -> Floats:
    """Returns Holm's adjusted p-values (m,): a family of them under 0.05 has a false one in 5 % of the cases at most.

    NaN, no test, is not counted.
    """
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    remaining = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * remaining), 1)
    return adjusted


def discoveries(p: Floats) -> Floats:
    """Returns Benjamini's and Hochberg's adjusted p-values (m,): of those under 0.05, 5 % are false on average."""
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(-p[known], kind="stable")]  # the largest first
    adjusted = np.full(p.shape, np.nan)
    ranks = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.minimum.accumulate(p[order] * len(order) / ranks), 1)
    return adjusted


def single_level(p: Floats, alpha: float, *, discovered: bool) -> float:
    """Returns the alpha of each interval of a family with p-values ``p`` (m,).

    All intervals hold together with 1 - ``alpha`` (Bonferroni); where ``discovered``, a share of ``alpha`` of those of
    the discoveries misses on average.
    """
    count = max(int(np.count_nonzero(~np.isnan(p))), 1)
    if not discovered:
        return alpha / count
    found = int(np.count_nonzero(discoveries(p) <= alpha))  # False for NaN
    return alpha * max(found, 1) / count
