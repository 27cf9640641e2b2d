"""Multiple testing of many differences: family-wise error rate and false discovery rate.

Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979;
Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 1995; intervals of discoveries:
Benjamini and Yekutieli, "False discovery rate-adjusted multiple confidence intervals", JASA 2005.

Shapes: m differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["discoveries", "family", "is_discovered", "single_level", "step_down"]

Floats = NDArray[np.float64]


def family(key: str) -> str:
    """Returns the family of figures tested with ``key``, such as bbox.per_class.*.AP; often ``key`` alone."""
    section, per_class, rest = key.partition(".per_class.")
    if per_class:
        return f"{section}.per_class.*.{rest.rpartition('.')[2]}"
    return "tide.*" if key.startswith("tide.") and key != "tide.AP50" else key


def is_discovered(key: str) -> bool:
    """Returns whether claims about ``key`` control the false discovery rate, as for classes and types of errors."""
    return "*" in family(key)


def step_down(p: Floats) -> Floats:
    """Returns Holm's adjusted p-values (m,), which control the family-wise error rate.

    NaN means no test and is not counted.
    """
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    remaining = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * remaining), 1)
    return adjusted


def discoveries(p: Floats) -> Floats:
    """Returns Benjamini and Hochberg's adjusted p-values (m,), which control the false discovery rate."""
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(-p[known], kind="stable")]  # descending
    adjusted = np.full(p.shape, np.nan)
    ranks = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.minimum.accumulate(p[order] * len(order) / ranks), 1)
    return adjusted


def single_level(p: Floats, alpha: float, *, discovered: bool) -> float:
    """Returns the alpha of each single interval of a family with p-values ``p`` (m,).

    All intervals hold together with probability 1 - ``alpha`` (Bonferroni).  With ``discovered``, the fraction
    ``alpha`` of the discoveries' intervals misses on average.
    """
    count = max(int(np.count_nonzero(~np.isnan(p))), 1)
    if not discovered:
        return alpha / count
    found = int(np.count_nonzero(discoveries(p) <= alpha))  # False for NaN
    return alpha * max(found, 1) / count
