"""Figures as SVG text, readable at the width of a phone and in black and white.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can distinguish; every
series also has a marker or a line style of its own.  All values come as fractions 0..1 and are drawn in percent.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from detection.evaluation.printable import printable

__all__ = ["Bar", "Point", "draw", "forest", "legend", "lines", "look", "matrix", "scatter", "undrawn"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
WIDTH = 4.8  # inches of 72 units; the page shows it as wide as a phone, so that 10 points stay readable
PLOT_WIDTH, PLOT_HEIGHT = 285, 190  # points of the area inside the axes of a scatter, about
CHARACTER_WIDTH, LINE_HEIGHT = 6.2, 12  # points, of the wider letters
LABEL_WIDTH = 48  # characters of a line below an axis
MAX_NUMBERS = 12  # classes of a matrix whose counts fit into its cells

_drawn = ContextVar("drawn", default=True)

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # so do dollar signs
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value and its interval; None where unknown."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of ``cost`` and ``value`` with its interval, on the Pareto front or not."""

    name: str
    cost: float
    bar: Bar
    on_front: bool


def scatter(name: str, points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Returns ``points`` with their names; a line joins those on the Pareto front."""

    def fill(axes: Axes) -> None:
        front = sorted((p.cost, 100 * (p.bar.value or 0)) for p in points if p.on_front)
        axes.plot(*zip(*front, strict=True) if front else ([], []), color="#999999", linestyle="--", zorder=1)
        for number, point in enumerate(points):
            _dot(axes, point.cost, point.bar, look(number), vertical=True, hollow=not point.on_front)
        axes.margins(x=0.25, y=0.15)
        axes.set_xlim(left=0)
        _label(axes, points)
        axes.set(xlabel=x_label, ylabel=y_label)

    return draw(name, fill, height=3.4)


def forest(
    name: str,
    rows: Mapping[str, Mapping[str, Bar]],
    *,
    x_label: str,
    dots: Mapping[str, Sequence[float]] | None = None,
    zero: bool = False,
) -> str:
    """Returns a line per row, from top to bottom, with one interval per series; ``dots`` adds single values to a row.

    ``zero`` marks it, for differences.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))

    def fill(axes: Axes) -> None:
        if zero:
            axes.axvline(0, color="#555555", linewidth=1)
        for place, (row, bars_of_row) in enumerate(rows.items()):
            for number, bar in enumerate(bars_of_row.values()):
                shift = (number - (len(series) - 1) / 2) * 0.7 / max(len(series), 1)
                _dot(axes, place + shift, bar, look(series.index(list(bars_of_row)[number])), vertical=False)
            values = [100 * value for value in (dots or {}).get(row, ())]
            axes.plot(values, [place + 0.22] * len(values), "|", color="#333333", markersize=7)
        axes.set_yticks(range(len(rows)), [printable(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(_wrapped(x_label))
        if len(series) > 1:
            legend(axes, [(name, look(number)) for number, name in enumerate(series)])

    per_row = 0.3 if len(series) == 1 else 0.17 * len(series) + 0.12
    return draw(name, fill, height=0.9 + per_row * max(len(rows), 2) + (0.25 if len(series) > 1 else 0))


def lines(
    name: str,
    series: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    *,
    x_label: str,
    y_label: str,
    percent: bool = True,
    limit: float | None = None,
) -> str:
    """Returns curves (x, y); those of one series, such as the seeds of a variant, look alike.

    Args:
        name: unique on a page.
        series: name -> its curves.
        x_label: label of the x axis.
        y_label: label of the y axis.
        percent: y is a fraction 0..1, and is drawn in percent from 0 to 100.
        limit: upper end of y, for losses that start high.
    """

    def fill(axes: Axes) -> None:
        for number, curves in enumerate(series.values()):
            color, _, dashes = look(number)
            for x, y in curves:
                scaled = np.asarray(y, float) * (100 if percent else 1)
                axes.plot(
                    x, scaled, color=color, linestyle=dashes, linewidth=1.4, alpha=0.9 if len(curves) == 1 else 0.7
                )
        axes.set(xlabel=x_label, ylabel=y_label)
        if percent:
            axes.set_ylim(0, 102)
        elif limit is not None:
            axes.set_ylim(0, limit)
        legend(axes, [(name, look(number)) for number, name in enumerate(series)], lines=True)

    return draw(name, fill, height=3.5)


def matrix(name: str, counts: NDArray[np.int64], labels: Sequence[str], *, x_label: str, y_label: str) -> str:
    """Draws a confusion matrix (K + 1, K + 1): shades are shares of a row, and small ones show their counts."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def fill(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        step = 1 if len(labels) <= 30 else 5
        shown = [printable(label) for label in labels[::step]]
        axes.set_xticks(range(0, len(labels), step), shown, rotation=90, fontsize=8)
        axes.set_yticks(range(0, len(labels), step), shown, fontsize=8)
        axes.grid(visible=False)
        axes.set(xlabel=x_label, ylabel=y_label)
        if len(labels) <= MAX_NUMBERS:
            for (row, column), count in np.ndenumerate(counts):
                # At a share of 0.71 the shade has the same contrast, 4.5 to 1, with white and with black.
                color = "white" if shares[row, column] > 0.71 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)

    return draw(name, fill, height=4.6)


def _wrapped(label: str) -> str:
    """Returns the label of an axis in lines that fit below it."""
    return textwrap.fill(printable(label), LABEL_WIDTH)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Writes the name of each point beside it, unless it covers another name."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []  # left, bottom and width of a name, in points
    for point in sorted(points, key=lambda point: point.cost):
        name, value = printable(point.name), 100 * (point.bar.value or 0)
        x, y = PLOT_WIDTH * (point.cost - left) / (right - left), PLOT_HEIGHT * (value - low) / (high - low)
        width = CHARACTER_WIDTH * len(name)
        places = [(7 if side else -7 - width, 6 + 13 * step) for step in (0, -1, 1, -2, 2, 3) for side in (True, False)]
        fitting = [(dx, dy) for dx, dy in places if x + dx >= 0 and not _covers(x + dx, y + dy, width, taken)]
        dx, dy = (fitting or places)[0]
        taken.append((x + dx, y + dy, width))
        axes.annotate(name, (point.cost, value), (dx, dy), textcoords="offset points")


def _covers(x: float, y: float, width: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Returns whether a name at (x, y) covers one of the existing names (left, bottom, width)."""
    return any(x < left + other and left < x + width and abs(y - bottom) < LINE_HEIGHT for left, bottom, other in taken)


def look(number: int) -> tuple[str, str, Any]:
    """Returns the colour, marker and dashes of the series ``number``."""
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]


def _dot(
    axes: Axes, place: float, bar: Bar, look: tuple[str, str, Any], *, vertical: bool, hollow: bool = False
) -> None:
    """Draws a value with its interval; ``place`` is where on the other axis."""
    if bar.value is None:
        return
    color, marker, _ = look
    ends = [place, place], [100 * (bar.value if end is None else end) for end in (bar.low, bar.high)]
    dot = [place], [100 * bar.value]
    axes.plot(*(ends if vertical else ends[::-1]), color=color, linewidth=2, solid_capstyle="butt")
    fill = "white" if hollow else color
    axes.plot(*(dot if vertical else dot[::-1]), marker, color=color, markerfacecolor=fill, markersize=6)


def legend(axes: Axes, series: Sequence[tuple[str, tuple[str, str, Any]]], *, lines: bool = False) -> None:
    """Draws the legend above the axes, so that it hides nothing."""
    series = [(printable(name), look) for name, look in series]
    handles = [
        axes.plot(
            [], [], color=color, marker=None if lines else marker, linestyle=dashes if lines else "-", label=name
        )[0]
        for name, (color, marker, dashes) in series
    ]
    longest = max(len(name) for name, _ in series)
    columns = max(1, min(len(series), 44 // (longest + 6)))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)


@contextmanager
def undrawn() -> Iterator[None]:
    """Leaves figures empty, as drawing takes most of the time of a page of which only text and tables are needed."""
    token = _drawn.set(False)
    try:
        yield
    finally:
        _drawn.reset(token)


def draw(name: str, fill: Callable[[Axes], None], *, height: float) -> str:
    """Returns the SVG that ``fill`` draws; identifiers derive from ``name``, so that they are unique on a page."""
    if not _drawn.get():
        return "<svg></svg>"
    stream = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        fill(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _plain(stream.getvalue())


def _plain(svg: str) -> str:
    """Returns the root element of ``svg``, without metadata and unused identifiers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'(<\w+) id="[\w.]+_\d+"', r"\1", svg)  # in tags only: text may hold the same
