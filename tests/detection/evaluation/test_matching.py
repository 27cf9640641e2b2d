"""Mirrors detection/evaluation/matching.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detection.evaluation.matching import check_comparable, match, match_image
from detection.evaluation.overlaps import COCO_IOUS
from detection.evaluation.record import Record

Make = Callable[..., Record]
A, B = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)
NOWHERE = (200.0, 200.0, 210.0, 210.0)


def test_hits_at_every_threshold_that_the_iou_reaches(record: Make) -> None:
    # IoU 1, 0.6, exactly 0.5, and less than 0.5 with four objects apart.
    objects = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]
    heights = zip(objects, (10.0, 6.0, 5.0, 4.9), (0.9, 0.8, 0.7, 0.6), strict=True)
    found = match_image(record(objects, [((*box[:3], height), score) for box, height, score in heights]))
    np.testing.assert_array_equal((found.objects >= 0).sum(axis=1), [10, 3, 1, 0])
    np.testing.assert_array_equal(found.objects[:, 0], [0, 1, 2, -1])
    assert not found.ignored.any()


def test_the_best_score_chooses_first_and_the_next_takes_what_is_free(record: Make) -> None:
    near = (2.0, 0.0, 12.0, 10.0)  # IoU with A is 8/12
    found = match_image(record([A, near], [(A, 0.3), (A, 0.9), (A, 0.2)]))
    np.testing.assert_array_equal(found.rows, [1, 0, 2])
    np.testing.assert_array_equal(found.objects[:, 0], [0, 1, -1])
    np.testing.assert_array_equal(found.objects[:, 9], [0, -1, -1])  # 8/12 is under 0.95
    np.testing.assert_array_equal(match_image(record([A, A], [(A, 0.9)])).objects, [[1] * 10])  # of equals the last
    classes = match_image(record([(A, 0), (B, 1)], [(A, 1, 0.9), (B, 1, 0.8)]))
    np.testing.assert_array_equal(classes.objects[:, 0], [-1, 1])  # which do not meet


def test_ignored_objects_take_any_number_of_detections_that_find_nothing_else(record: Make) -> None:
    # The ignored object surrounds everything: each detection is covered by it, and only the second best has no other.
    found = match_image(record([A, (0, 0, 100, 100)], [(A, 0.9), (A, 0.8), (B, 0.7), (NOWHERE, 0.6)], ignore=[1]))
    np.testing.assert_array_equal(found.objects[:, 0], [0, -1, -1, -1])
    np.testing.assert_array_equal(found.ignored[:, 0], [False, True, True, False])


def test_a_hundred_detections_of_each_class_and_image_count(record: Make) -> None:
    found = match_image(record([A], [*((NOWHERE, i / 200) for i in range(150)), (A, 1, 0.001)]))
    np.testing.assert_array_equal(found.rows, [*range(149, 49, -1), 150])


def test_packed_by_class_and_score_with_ties_by_image_id(record: Make) -> None:
    first = record([A], [(A, 0, 0.5), (NOWHERE, 1, 0.9)], image_id=3)
    second = record([(A, 0), (B, 1)], [(NOWHERE, 0.5), (A, 0.7)], image_id=2, ignore=[1])
    matches = match([first, second], ["cat", "dog"])
    assert matches.class_names == ("cat", "dog")
    np.testing.assert_array_equal(matches.image_ids, [2, 3])
    cat, dog = matches.classes
    np.testing.assert_array_equal(cat.images, [0, 0, 1])  # 0.7, then the two of 0.5
    np.testing.assert_array_equal(cat.hits[:, 0], [True, False, True])
    np.testing.assert_array_equal(cat.num_objects, [1, 1])
    np.testing.assert_array_equal(dog.images, [1])
    np.testing.assert_array_equal(dog.num_objects, [0, 0])  # the only dog is ignored


def test_no_images_no_classes_no_boxes(record: Make) -> None:
    assert match([], []).classes == ()
    (empty,) = match([], ["cat"]).classes
    assert (empty.hits.shape, empty.num_objects.shape) == ((0, len(COCO_IOUS)), (0,))
    for image, expected in ((record(), [0]), (record([A]), [1])):
        (found,) = match([image], ["cat"]).classes
        assert (len(found.images), found.num_objects.tolist()) == (0, expected)
    assert match_image(record([], [(A, 0.9)])).objects.shape == (1, 10)


def test_unknown_labels_and_repeated_images_are_named(record: Make) -> None:
    with pytest.raises(ValueError, match=r"1\.jpg: label 1, expected 0\.\.0"):
        match([record([(A, 1)])], ["cat"])
    with pytest.raises(ValueError, match="image id 1 occurs twice"):
        match([record(), record()], ["cat"])


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({}, ["cat", "dog"], "1 and 2 classes"),
        ({}, ["dog"], "classes 'cat' and 'dog'"),
        (None, ["cat"], "1 and 2 images"),
        ({"image_id": 7}, ["cat"], "images 1 and 7"),
        ({"objects": [A, B]}, ["cat"], "1 and 2 objects of class cat in image 1"),
    ],
)
def test_runs_on_other_data_are_named(change: Any, names: list[str], message: str, record: Make) -> None:
    first = match([record([A])], ["cat"])
    check_comparable({"a": first, "b": match([record([A], [(B, 0.5)])], ["cat"])})  # whatever they detect
    others = [record(**{"objects": [A], **change})] if change is not None else [record([A]), record(image_id=2)]
    with pytest.raises(ValueError, match=f"first and second are not comparable: {message}"):
        check_comparable({"first": first, "second": match(others, names)})
