import io
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detection.pages.data_plots import histogram, shares, sides_and_anchors
from detection.pages.photos import MARK, framed, jpeg, page_scale
from detection.pages.plots import Bar, Point, forest, lines, matrix, scatter

NAME = 'a\n$b_{1}$ \0 <c> & " id="text_1"'
SHOWN = r'a\n$b_{1}$ \x00 <c> & " id="text_1"'
BAR = Bar(value=0.5, low=0.4, high=0.6)
SIDES = np.array([[10.0, 20.0], [300.0, 200.0]])
AXES: dict[str, Any] = {"x_label": "x", "y_label": "y"}


def texts(svg: str) -> list[str]:
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()).strip() for text in found]


@pytest.mark.parametrize(
    ("draw", "times"),
    [
        (lambda: scatter("s", [Point(name=NAME, cost=1, bar=BAR, on_front=True)], **AXES), 1),
        (lambda: forest("f", {NAME: {NAME: BAR, "other": BAR}}, x_label=NAME), 3),
        (lambda: lines("l", {NAME: [([0, 1], [0, 1])]}, **AXES), 1),
        (lambda: matrix("m", np.eye(2, dtype=np.int64), [NAME, "nothing"], **AXES), 2),
        (lambda: shares("s", {NAME: {NAME: 0.5, "other": 0.1}}, x_label="x"), 2),
        (lambda: histogram("h", {NAME: np.array([1.0, 2.0])}, (0, 1, 2), **AXES), 1),
        (lambda: sides_and_anchors("a", SIDES, np.array([True, False]), {NAME: SIDES}), 1),
    ],
)
def test_signs_and_control_characters_in_names(draw, times) -> None:
    assert texts(draw()).count(SHOWN) == times


def test_nothing_to_draw_is_drawn_and_many_objects_make_no_larger_a_figure() -> None:
    assert "train" in texts(histogram("h", {"train": np.zeros(0)}, (1, 2, 4), **AXES))
    assert "reached" in texts(sides_and_anchors("a", np.zeros((0, 2)), np.zeros(0, np.bool_), {}))
    sides = np.random.default_rng(0).uniform(5, 500, (100_000, 2))
    few, many = (len(sides_and_anchors("a", sides[:count], np.ones(count, np.bool_), {})) for count in (2000, 100_000))
    assert many < 1.1 * few


def test_a_frame_can_be_seen_wherever_its_box_lies() -> None:
    canvas, nowhere = np.zeros((80, 100, 3), np.uint8), (float("nan"), 0, 9, 9)
    for box in ((20.0, 20, 60, 50), (-50, -50, 30, 30), (90, 70, 300, 300), (150, 10, 170, 30), nowhere):
        assert (framed(canvas, np.array([box])) == MARK).all(axis=2).sum() > 20
    assert not canvas.any()


def test_pictures_are_480_pixels_long() -> None:
    for size in ((480, 640), (4, 3000), (5, 5)):
        height, width = (max(1, round(side * page_scale(size))) for side in size)
        with Image.open(io.BytesIO(jpeg(np.zeros((height, width, 3), np.uint8)))) as image:
            assert max(image.size) == 480
