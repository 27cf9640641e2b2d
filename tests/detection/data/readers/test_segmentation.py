"""Mirrors detection/data/readers/segmentation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detection.data.problems import Problem
from detection.data.readers.segmentation import read_instances
from detection.masks import decode

SIZE = (30, 40)
LEFT, RIGHT = (2.0, 4.0, 14.0, 20.0), (20.0, 5.0, 38.0, 25.0)  # x1, y1, x2, y2


def draw(*regions: tuple[int, tuple[float, float, float, float]]) -> NDArray[np.uint8]:
    numbers = np.zeros(SIZE, np.uint8)
    for number, (x1, y1, x2, y2) in regions:
        numbers[int(y1) : int(y2), int(x1) : int(x2)] = number
    return numbers


def read(file: Path, *boxes: tuple[float, float, float, float]) -> tuple[list[NDArray[np.bool_] | None], list[Problem]]:
    problems = list[Problem]()
    rles: list[Any] = read_instances(file, list(boxes), SIZE, problems)
    return [None if rle is None else decode([rle], SIZE)[0].numpy() for rle in rles], problems


def found(tmp_path: Path, numbers: NDArray[np.uint8], *boxes: tuple[float, float, float, float]) -> list[int | None]:
    """The number in the picture of each object's mask."""
    image = Image.fromarray(numbers)
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "a.png")
    masks, problems = read(tmp_path / "a.png", *boxes)
    assert problems == []
    for mask in masks:
        if mask is not None:
            np.testing.assert_array_equal(mask, numbers == numbers[mask][0])
    return [None if mask is None else int(numbers[mask][0]) for mask in masks]


def test_masks_go_to_the_boxes_that_they_fit(tmp_path: Path) -> None:
    assert found(tmp_path, draw((1, LEFT), (2, RIGHT)), LEFT, RIGHT) == [1, 2]
    assert found(tmp_path, draw((7, LEFT), (2, RIGHT)), RIGHT, LEFT) == [2, 7]


def test_void_belongs_to_nobody(tmp_path: Path) -> None:
    numbers = draw((255, LEFT), (3, (5, 7, 11, 17)), (255, RIGHT))
    assert found(tmp_path, numbers, LEFT, RIGHT) == [3, None]


def test_a_mask_goes_to_one_object_the_one_that_fits_best(tmp_path: Path) -> None:
    near = (2.0, 4.0, 14.0, 25.0)
    assert found(tmp_path, draw((1, LEFT)), near, LEFT) == [None, 1]
    assert found(tmp_path, draw((1, LEFT)), LEFT, LEFT).count(None) == 1


def test_a_mask_elsewhere_is_not_taken(tmp_path: Path) -> None:
    assert found(tmp_path, draw((1, (2, 4, 5, 7))), LEFT, RIGHT) == [None, None]


@pytest.mark.parametrize("box", [(float("nan"), 4, 14, 20), (14, 4, 2, 20), (2, 4, float("inf"), 20)])
def test_a_box_that_is_none_takes_no_mask_from_the_others(
    tmp_path: Path, box: tuple[float, float, float, float]
) -> None:
    assert found(tmp_path, draw((1, LEFT), (2, RIGHT)), box, LEFT, RIGHT) == [None, 1, 2]


def test_no_objects_no_masks_and_no_file(tmp_path: Path) -> None:
    assert found(tmp_path, draw((1, LEFT))) == []
    assert found(tmp_path, draw(), LEFT) == [None]
    assert read(tmp_path / "b.png", LEFT) == ([None], [])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (30, 40)), "it is 30x40 pixels, its annotation says 40x30"),
        (Image.new("RGB", (40, 30)), "its mode is RGB, expected object numbers (P, a palette, or L)"),
    ],
)
def test_a_picture_that_is_no_object_numbers_of_this_image_is_an_error(
    tmp_path: Path, image: Image.Image, message: str
) -> None:
    file = tmp_path / "a.png"
    image.save(file)
    masks, (problem,) = read(file, LEFT)
    assert masks == [None]
    assert (problem.severity, problem.kind, problem.file) == ("error", "instance masks that can't be read", str(file))
    assert problem.detail == message


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, SIZE, np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:200])
    _, (problem,) = read(file, LEFT)
    assert problem.kind == "instance masks that can't be read"
