"""Mirrors detection/pages/photos.py."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detection.pages.photos import MARK, framed, jpeg, page_scale


@pytest.mark.parametrize(
    "box", [(20.0, 20, 60, 50), (-50, -50, 30, 30), (90, 70, 300, 300), (150, 10, 170, 30), (float("nan"), 0, 9, 9)]
)
def test_a_frame_can_be_seen_wherever_its_box_lies(box: tuple[float, ...]) -> None:
    canvas = np.zeros((80, 100, 3), np.uint8)
    marked = framed(canvas, np.array([box]))
    assert (marked == MARK).all(axis=2).sum() > 20
    assert not canvas.any()


@pytest.mark.parametrize("size", [(480, 640), (4, 3000), (5, 5)])
def test_pictures_are_480_pixels_long(size: tuple[int, int]) -> None:
    height, width = (max(1, round(side * page_scale(size))) for side in size)
    with Image.open(io.BytesIO(jpeg(np.zeros((height, width, 3), np.uint8)))) as image:
        assert max(image.size) == 480
