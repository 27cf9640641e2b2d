"""Mirrors detection/data/objects.py."""

import math

from detection.data.objects import ImageRows, ObjectRows, build_index, files_in, nearest_class

BAD = "box outside the image or without area"


def build(*objects, drop=True, num_images=2, areas=None):
    """Images of 60x80; object n has label n % 2, area n unless ``areas`` are given, and is ignored where n is 2."""
    rows, numbers = range(num_images), range(len(objects))
    exif = [row % 2 == 0 for row in rows]
    images = ImageRows([f"{row}.jpg" for row in rows], [10 + row for row in rows], [(60, 80)] * num_images, exif)
    found = ObjectRows(
        [image for image, _ in objects],
        [box for _, box in objects],
        [number % 2 for number in numbers],
        [number == 2 for number in numbers],
        list(areas or map(float, numbers)),
        [f"object {number}" for number in numbers],
    )
    options = {"class_names": ("cat", "dog"), "category_ids": (7, 3), "files": [f"{row}.xml" for row in rows]}
    return build_index(images, found, drop=drop, **options)


def test_objects_are_sorted_by_image_and_keep_their_order_within() -> None:
    index, problems = build((1, (1, 1, 5, 5)), (0, (2, 2, 6, 6)), (1, (3, 3, 7, 7)), (0, (4, 4, 8, 8)))
    assert (problems, index.boxes[:, 0].tolist(), index.ends.tolist()) == ([], [2, 4, 1, 3], [2, 4])
    assert (index.labels.tolist(), index.areas.tolist()) == ([1, 1, 0, 0], [1, 3, 0, 2])
    assert index.ignore.tolist() == [False, False, False, True]
    assert (index.image_ids.tolist(), index.sizes.tolist()) == ([10, 11], [[60, 80], [60, 80]])
    assert (index.category_ids, index.apply_exif.tolist()) == ((7, 3), [True, False])
    index, _ = build(*((number % 2, (number, 1, number + 5, 6)) for number in range(60)))
    assert index.boxes[:, 0].tolist() == [*range(0, 60, 2), *range(1, 60, 2)]


def test_images_before_between_and_after_objects_may_be_empty() -> None:
    index, _ = build((1, (1, 1, 5, 5)), (3, (2, 2, 6, 6)), num_images=5)
    assert [len(index.target(row)) for row in range(5)] == [0, 1, 0, 1, 0]
    assert build()[0].boxes.shape == (0, 4)
    index, problems = build(num_images=0)
    assert (len(index), index.sizes.shape, problems) == (0, (0, 2), [])


def test_boxes_that_cannot_be_used_are_dropped_and_named_or_errors() -> None:
    good, nan, inf = (1.0, 1.0, 5.0, 5.0), math.nan, math.inf
    flat, outside = [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9)], [(80, 5, 90, 9), (-9, 5, 0, 9), (5, 60, 9, 70)]
    for box in (*flat, *outside, (nan, 5, 9, 9), (5, 5, inf, 9), (-inf, 5, 9, 9)):
        index, (problem,) = build((0, good), (1, box), (1, good))
        assert (index.boxes.tolist(), index.ends.tolist()) == ([list(good)] * 2, [1, 2])
        assert (index.labels.tolist(), index.ignore.tolist(), index.areas.tolist()) == ([0, 0], [False, True], [0, 2])
        assert (problem.severity, problem.kind, problem.file) == ("dropped", BAD, "1.xml")
        assert problem.detail.startswith("object 1, box")
    _, problems = build((0, (5, 5, 5, 9)), (0, (50, 5, 90, 9)), (0, (1, 1, 2, 2)), drop=False)
    cut = "box cut at the image border"
    assert [(problem.severity, problem.kind) for problem in problems] == [("error", BAD), ("error", cut)]


def test_boxes_over_the_border_are_cut_and_areas_over_it_those_of_the_box() -> None:
    index, (problem,) = build((0, (-5, -4, 90, 70)))
    assert index.boxes.tolist() == [[0, 0, 80, 60]]
    assert (problem.severity, problem.kind) == ("note", "box cut at the image border")
    index, problems = build((0, (-0.5, -1, 81, 60.9)), drop=False)
    assert (index.boxes.tolist(), problems) == ([[0, 0, 80, 60]], [])
    for area in (1e39, 4801.0):  # larger than the image
        index, (problem,) = build((0, (1, 1, 5, 6)), (0, (2, 2, 5, 5)), areas=(area, 4800.0), drop=False)
        assert (index.areas.tolist(), problem.severity) == ([20, 4800], "note")  # the first is that of the box
        assert problem.detail == f"object 0, area {area}, image 80x60"


def test_files_of_a_folder_and_the_nearest_class(tmp_path) -> None:
    (tmp_path / "a.jpg").touch()
    assert (files_in(tmp_path), files_in(tmp_path / "nothing")) == ({"a.jpg"}, set())
    assert nearest_class("cta", ("cat", "dog")) == "'cta'; did you mean 'cat'?"
    assert nearest_class("zebra", ("cat", "dog")) == "'zebra'; the card has cat, dog"
    assert nearest_class("zebra", tuple(f"n{number:08d}" for number in range(1000))).endswith("and 990 more")
