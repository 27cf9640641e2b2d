"""Formats numbers for print: fractions in percent, a dash for missing values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detection.evaluation.metrics import NONE
from detection.pages.plots import Bar

__all__ = ["bar", "best_cells", "claimed", "deciding", "differing", "number", "pair_name", "percent_interval", "spread"]

MINUS = "\N{MINUS SIGN}"  # as wide as a plus


def spread(over_seeds: Mapping[str, Any], *, scale: float = 100, digits: int = 1) -> str:
    """Formats mean and standard deviation over seeds, 57.7 ± 0.4; the latter only with several seeds."""
    if over_seeds["mean"] is None:
        return NONE
    mean = f"{scale * over_seeds['mean']:.{digits}f}"
    return mean if over_seeds["sd"] is None else f"{mean} ± {scale * over_seeds['sd']:.{digits}f}"


def percent_interval(interval: Mapping[str, float | None]) -> str:
    """Formats a value with its interval: 57.7 [55.1, 60.0]."""
    return _interval(interval, "")


def differing(interval: Mapping[str, float | None] | None) -> str:
    """Formats a difference with its interval: +1.2 [+0.3, +2.1]."""
    return NONE if interval is None else _interval(interval, "+")


def claimed(claim: Mapping[str, Any] | None) -> str:
    """Formats a difference with its interval, and a star if it is proven: +1.2 [+0.3, +2.1]*."""
    return differing(claim) + ("*" if claim is not None and claim["proven"] else "")


def best_cells(
    values: Sequence[Sequence[float | None]], *, first: int = 1, lower: Collection[int] = ()
) -> set[tuple[int, int]]:
    """Returns (row, column) of the best value of each column of a table; none in a table of one row.

    Args:
        values: rows of numbers; None for a missing value.
        first: the column of the table at which ``values`` start.
        lower: columns of ``values`` in which the smallest is the best.
    """
    best = set[tuple[int, int]]()
    for column in range(len(values[0]) if len(values) > 1 else 0):
        known = {row: value for row, of_row in enumerate(values) if (value := of_row[column]) is not None}
        if known:
            wanted = (min if column in lower else max)(known.values())
            best |= {(row, first + column) for row, value in known.items() if value == wanted}
    return best


def deciding(numbers: Mapping[str, Any]) -> str:
    """Returns the name of the figure of the verdicts: AP, or that of label maps."""
    return numbers.get("deciding", {"name": "AP"})["name"]  # a pilot may be older than the key


def number(value: float | None, digits: int = 1) -> str:
    """Formats a number: 1,234.5."""
    return NONE if value is None else f"{value:,.{digits}f}"


def pair_name(pair: Mapping[str, Any]) -> str:
    """Returns the name of the difference of two variants."""
    return f"{pair['b']} {MINUS} {pair['a']}"


def bar(interval: Mapping[str, float | None]) -> Bar:
    """Returns an interval as a bar of a plot."""
    return Bar(value=interval["value"], low=interval["low"], high=interval["high"])


def _interval(interval: Mapping[str, float | None], sign: str) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return NONE
    # z: values that round to zero have no minus sign.
    shown = f"{100 * value:{sign}z.1f}"
    if low is not None and high is not None:
        shown += f" [{100 * low:{sign}z.1f}, {100 * high:{sign}z.1f}]"
    return shown.replace("-", MINUS)
