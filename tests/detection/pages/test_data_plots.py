"""Mirrors detection/pages/data_plots.py: names stay the text that they are, and nothing to draw is drawn."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from detection.pages.data_plots import histogram, shares, sides_and_anchors

NAME, SHOWN = "a\n$b$ <c> &", r"a\n$b$ <c> &"
SIDES = np.array([[10.0, 20.0], [300.0, 200.0]])


def texts(svg: str) -> list[str]:
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()).strip() for text in found]


@pytest.mark.parametrize(
    ("draw", "times"),
    [
        (lambda: shares("s", {NAME: {NAME: 0.5, "other": 0.1}}, x_label="x"), 2),
        (lambda: histogram("h", {NAME: np.array([1.0, 2.0])}, (0, 1, 2), x_label="x", y_label="y"), 1),
        (lambda: sides_and_anchors("a", SIDES, np.array([True, False]), {NAME: SIDES}), 1),
    ],
)
def test_signs_and_control_characters_in_names(draw: Callable[[], str], times: int) -> None:
    assert texts(draw()).count(SHOWN) == times


def test_nothing_to_draw_is_drawn() -> None:
    nothing = np.zeros((0, 2))
    assert "train" in texts(histogram("h", {"train": np.zeros(0)}, (1, 2, 4), x_label="x", y_label="y"))
    assert "reached" in texts(sides_and_anchors("a", nothing, np.zeros(0, np.bool_), {}))


def test_many_objects_make_no_larger_a_figure() -> None:
    sides = np.random.default_rng(0).uniform(5, 500, (100_000, 2))
    few = sides_and_anchors("a", sides[:2000], np.ones(2000, np.bool_), {})
    many = sides_and_anchors("a", sides, np.ones(len(sides), np.bool_), {})
    assert len(many) < 1.1 * len(few)
