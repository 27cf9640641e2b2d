"""Mirrors detection/data/objects.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from detection.data.index import AnnotationIndex
from detection.data.objects import ImageRows, ObjectRows, build_index, files_in, nearest_class
from detection.data.problems import Problem

Box = tuple[float, float, float, float]


def build(
    *objects: tuple[int, Box], drop: bool = True, num_images: int = 2, areas: Sequence[float] | None = None
) -> tuple[AnnotationIndex, list[Problem]]:
    """Images of 60x80; object n has label n % 2, area n unless ``areas`` are given, and is ignored where n is 2."""
    numbers = range(len(objects))
    images = ImageRows(
        [f"{row}.jpg" for row in range(num_images)],
        list(range(10, 10 + num_images)),
        [(60, 80)] * num_images,
        [row % 2 == 0 for row in range(num_images)],
    )
    rows = ObjectRows(
        [image for image, _ in objects],
        [box for _, box in objects],
        [number % 2 for number in numbers],
        [number == 2 for number in numbers],
        list(areas or map(float, numbers)),
        [f"object {number}" for number in numbers],
    )
    return build_index(
        images,
        rows,
        class_names=("cat", "dog"),
        category_ids=(7, 3),
        files=[f"{row}.xml" for row in range(num_images)],
        drop=drop,
    )


def test_objects_are_sorted_by_image_and_keep_their_order_within() -> None:
    index, problems = build((1, (1, 1, 5, 5)), (0, (2, 2, 6, 6)), (1, (3, 3, 7, 7)), (0, (4, 4, 8, 8)))
    assert problems == []
    assert index.boxes[:, 0].tolist() == [2, 4, 1, 3]
    assert index.labels.tolist() == [1, 1, 0, 0]
    assert index.ignore.tolist() == [False, False, False, True]
    assert index.areas.tolist() == [1, 3, 0, 2]
    assert index.ends.tolist() == [2, 4]
    assert index.image_ids.tolist() == [10, 11]
    assert index.sizes.tolist() == [[60, 80], [60, 80]]
    assert index.category_ids == (7, 3)


def test_many_objects_of_one_image_keep_their_order() -> None:
    index, _ = build(*((number % 2, (number, 1, number + 5, 6)) for number in range(60)))
    assert index.boxes[:, 0].tolist() == [*range(0, 60, 2), *range(1, 60, 2)]


def test_images_before_between_and_after_objects_may_be_empty() -> None:
    index, _ = build((1, (1, 1, 5, 5)), (3, (2, 2, 6, 6)), num_images=5)
    assert [len(index.target(row)) for row in range(5)] == [0, 1, 0, 1, 0]


def test_no_objects_and_no_images() -> None:
    assert build()[0].boxes.shape == (0, 4)
    index, problems = build(num_images=0)
    assert (len(index), index.sizes.shape, problems) == (0, (0, 2), [])


def test_the_exif_policy_of_each_image_is_kept() -> None:
    assert build(num_images=3)[0].apply_exif.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 9),
        (5, 5, 9, 5),
        (9, 5, 5, 9),
        (80, 5, 90, 9),
        (-9, 5, 0, 9),
        (5, 60, 9, 70),
        (math.nan, 5, 9, 9),
        (5, 5, math.inf, 9),
        (-math.inf, 5, 9, 9),
    ],
    ids=["no width", "no height", "swapped", "right", "left", "below", "nan", "inf", "-inf"],
)
def test_a_box_that_cannot_be_used_is_dropped_and_named(box: Box) -> None:
    good = (1.0, 1.0, 5.0, 5.0)
    index, problems = build((0, good), (1, box), (1, good))
    assert index.boxes.tolist() == [list(good)] * 2
    assert (index.labels.tolist(), index.ignore.tolist(), index.areas.tolist()) == ([0, 0], [False, True], [0, 2])
    assert index.ends.tolist() == [1, 2]
    (problem,) = problems
    assert (problem.severity, problem.kind, problem.file) == (
        "dropped",
        "box outside the image or without area",
        "1.xml",
    )
    assert problem.detail.startswith("object 1, box")
    assert problem.detail.endswith("image 80x60")


def test_a_box_that_cannot_be_used_is_an_error_where_the_card_says_so() -> None:
    _, problems = build((0, (5, 5, 5, 9)), (0, (50, 5, 90, 9)), (0, (1, 1, 2, 2)), drop=False)
    assert [problem.severity for problem in problems] == ["error", "error"]
    assert [problem.kind for problem in problems] == [
        "box outside the image or without area",
        "box cut at the image border",
    ]


def test_a_box_over_the_border_is_cut_with_a_note() -> None:
    index, (problem,) = build((0, (-5, -4, 90, 70)))
    assert index.boxes.tolist() == [[0, 0, 80, 60]]
    assert (problem.severity, problem.kind) == ("note", "box cut at the image border")


def test_rounding_at_the_border_is_cut_without_a_word() -> None:
    index, problems = build((0, (-0.5, -1, 81, 60.9)), drop=False)
    assert index.boxes.tolist() == [[0, 0, 80, 60]]
    assert problems == []


@pytest.mark.parametrize("area", [1e39, 4801.0])
def test_an_area_larger_than_the_image_is_that_of_the_box_and_named(area: float) -> None:
    index, problems = build((0, (1, 1, 5, 6)), (0, (2, 2, 5, 5)), areas=(area, 4800.0), drop=False)
    assert index.areas.tolist() == [20, 4800]
    (problem,) = problems
    assert (problem.severity, problem.kind) == ("note", "area larger than the image; that of the box is taken")
    assert problem.detail == f"object 0, area {area}, image 80x60"


def test_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert files_in(tmp_path) == {"a.jpg"}
    assert files_in(tmp_path / "nothing") == set()


def test_the_nearest_class_is_named_or_all_are() -> None:
    assert nearest_class("cta", ("cat", "dog")) == "'cta'; did you mean 'cat'?"
    assert nearest_class("zebra", ("cat", "dog")) == "'zebra'; the card has cat, dog"


def test_a_message_does_not_list_a_thousand_classes() -> None:
    names = tuple(f"n{number:08d}" for number in range(1000))
    assert nearest_class("zebra", names).endswith("n00000009 and 990 more")
