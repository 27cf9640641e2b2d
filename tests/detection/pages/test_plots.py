"""Mirrors detection/pages/plots.py: names in figures stay the text that they are."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from detection.pages.plots import Bar, Point, forest, lines, matrix, scatter

NAME = 'a\n$b_{1}$ \0 <c> & " id="text_1"'
SHOWN = r'a\n$b_{1}$ \x00 <c> & " id="text_1"'
BAR = Bar(value=0.5, low=0.4, high=0.6)


@pytest.mark.parametrize(
    ("draw", "times"),
    [
        (lambda: scatter("s", [Point(name=NAME, cost=1, bar=BAR, on_front=True)], x_label="x", y_label="y"), 1),
        (lambda: forest("f", {NAME: {NAME: BAR, "other": BAR}}, x_label=NAME), 3),
        (lambda: lines("l", {NAME: [([0, 1], [0, 1])]}, x_label="x", y_label="y"), 1),
        (lambda: matrix("m", np.eye(2, dtype=np.int64), [NAME, "nothing"], x_label="x", y_label="y"), 2),
    ],
)
def test_signs_and_control_characters_in_names(draw: Callable[[], str], times: int) -> None:
    texts = ElementTree.fromstring(draw()).iter("{http://www.w3.org/2000/svg}text")
    assert ["".join(text.itertext()).strip() for text in texts].count(SHOWN) == times
