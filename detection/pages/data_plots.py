"""Figures of a data set: shares of classes, distributions, and the sides of objects with anchors over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from detection.evaluation.printable import printable
from detection.pages.plots import draw, legend, look

__all__ = ["histogram", "shares", "sides_and_anchors"]

MAX_POINTS = 1500  # points in a scatter plot; of more, a random sample is shown
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def shares(name: str, rows: Mapping[str, Mapping[str, float]], *, x_label: str) -> str:
    """Returns horizontal bars: one per series in each row, from top to bottom; fractions are drawn in percent."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    thick = 0.8 / max(len(series), 1)

    def fill(axes: Axes) -> None:
        for number, one in enumerate(series):
            places = [place + (number - (len(series) - 1) / 2) * thick for place in range(len(rows))]
            axes.barh(places, [100 * row.get(one, 0) for row in rows.values()], height=thick, color=look(number)[0])
        axes.set_yticks(range(len(rows)), [printable(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
        _squares(axes, series)

    per_row = 0.12 + 0.1 * len(series)
    return draw(name, fill, height=0.9 + per_row * max(len(rows), 2) + (0.25 if len(series) > 1 else 0))


def histogram(
    name: str, series: Mapping[str, NDArray[np.floating]], edges: Sequence[float], *, x_label: str, y_label: str
) -> str:
    """Returns a histogram of each series over the bins between ``edges``, in percent of the series.

    Values outside are counted in the first or last bin. Edges that double are drawn at equal distances.
    """

    def fill(axes: Axes) -> None:
        for number, values in enumerate(series.values()):
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            color, _, dashes = look(number)
            axes.stairs(100 * counts / max(len(values), 1), edges, color=color, linestyle=dashes, linewidth=1.6)
        if edges[0] > 0 and edges[-1] / edges[0] > 50:
            _log_ticks(axes, "x")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0)
        legend(axes, [(name, look(number)) for number, name in enumerate(series)], lines=True)

    return draw(name, fill, height=3.0)


def sides_and_anchors(
    name: str, sides: NDArray[np.float64], reached: NDArray[np.bool_], anchors: Mapping[str, NDArray[np.float64]]
) -> str:
    """Returns a scatter plot of objects by width and height (M, 2), with the ``anchors`` (A, 2) of each name over it.

    Objects that are not ``reached`` (M,) are marked.
    """
    if len(sides) > MAX_POINTS:
        drawn = np.random.default_rng(0).choice(len(sides), MAX_POINTS, replace=False)
        sides, reached = sides[drawn], reached[drawn]
    looks = [("reached", 4, "o"), ("not reached", 1, "x")]

    def fill(axes: Axes) -> None:
        handles = list[Line2D]()
        for (label, color, marker), own in zip(looks, (sides[reached], sides[~reached]), strict=True):
            style = {"color": look(color)[0], "marker": marker, "markersize": 3.5, "alpha": 0.6, "linestyle": ""}
            handles += axes.plot(own[:, 0], own[:, 1], label=label, **style)
        for number, (label, boxes) in enumerate(anchors.items()):
            marker, color = ("s", "D")[number % 2], ("black", look(2)[0])[number % 2]
            style = {"color": color, "marker": marker, "markersize": 7, "markerfacecolor": "none", "linestyle": ""}
            handles += axes.plot(boxes[:, 0], boxes[:, 1], label=printable(label), markeredgewidth=1.6, **style)
        _log_ticks(axes, "x")
        _log_ticks(axes, "y")
        axes.set(xlabel="width, pixels of the resized image", ylabel="height")
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return draw(name, fill, height=4.6)


def _log_ticks(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(FixedLocator(TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _squares(axes: Axes, series: Sequence[str]) -> None:
    """Adds a legend of filled squares if there are several series."""
    if len(series) > 1:
        handles = [
            axes.plot([], [], marker="s", linestyle="", color=look(number)[0], label=printable(name))[0]
            for number, name in enumerate(series)
        ]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(series)))
