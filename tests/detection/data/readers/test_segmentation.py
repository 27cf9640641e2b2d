"""Mirrors detection/data/readers/segmentation.py."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.readers.segmentation import read_instances
from detection.masks import decode

SIZE = (30, 40)
LEFT, RIGHT = (2.0, 4.0, 14.0, 20.0), (20.0, 5.0, 38.0, 25.0)  # x1, y1, x2, y2


def drawn(*regions):
    numbers = np.zeros(SIZE, np.uint8)
    for number, (x1, y1, x2, y2) in regions:
        numbers[int(y1) : int(y2), int(x1) : int(x2)] = number
    return numbers


def read(file, *boxes):
    rles: Any = read_instances(file, list(boxes), SIZE, problems := [])
    return [None if rle is None else decode([rle], SIZE)[0].numpy() for rle in rles], problems


@pytest.fixture
def found(tmp_path):
    """The number in the picture of each object's mask."""

    def found(numbers, *boxes):
        image = Image.fromarray(numbers)
        image.putpalette(list(range(256)) * 3)
        image.save(tmp_path / "a.png")
        masks, problems = read(tmp_path / "a.png", *boxes)
        assert problems == []
        for mask in masks:
            if mask is not None:
                np.testing.assert_array_equal(mask, numbers == numbers[mask][0])
        return [None if mask is None else int(numbers[mask][0]) for mask in masks]

    return found


def test_masks_go_to_the_boxes_that_they_fit(found, tmp_path) -> None:
    assert found(drawn((1, LEFT), (2, RIGHT)), LEFT, RIGHT) == [1, 2]
    assert found(drawn((7, LEFT), (2, RIGHT)), RIGHT, LEFT) == [2, 7]
    assert found(drawn((255, LEFT), (3, (5, 7, 11, 17)), (255, RIGHT)), LEFT, RIGHT) == [3, None]  # void is nobody's
    assert found(drawn((1, LEFT)), (2.0, 4.0, 14.0, 25.0), LEFT) == [None, 1]  # the one that fits best
    assert found(drawn((1, LEFT)), LEFT, LEFT).count(None) == 1
    assert found(drawn((1, (2, 4, 5, 7))), LEFT, RIGHT) == [None, None]  # elsewhere
    assert (found(drawn((1, LEFT))), found(drawn(), LEFT)) == ([], [None])
    assert read(tmp_path / "b.png", LEFT) == ([None], [])


@pytest.mark.parametrize("box", [(float("nan"), 4, 14, 20), (14, 4, 2, 20), (2, 4, float("inf"), 20)])
def test_a_box_that_is_none_takes_no_mask_from_the_others(found, box) -> None:
    assert found(drawn((1, LEFT), (2, RIGHT)), box, LEFT, RIGHT) == [None, 1, 2]


def test_a_picture_that_is_no_object_numbers_of_this_image_is_an_error(tmp_path) -> None:
    file, noise = tmp_path / "a.png", np.random.default_rng(0).integers(0, 9, SIZE, np.uint8)
    turned, coloured = Image.new("L", (30, 40)), Image.new("RGB", (40, 30))
    others = ((turned, "it is 30x40 pixels, its annotation says 40x30"), (coloured, "its mode is RGB"))
    for image, said in (*others, (Image.fromarray(noise), "")):
        image.save(file)
        file.write_bytes(file.read_bytes()[: None if said else 200])  # the last is cut
        masks, (problem,) = read(file, LEFT)
        assert masks == [None]
        assert (problem.severity, problem.kind) == ("error", "instance masks that can't be read")
        assert (problem.file, said in problem.detail) == (str(file), True)
