"""Mirrors detection/evaluation/matching.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.matching import check_comparable, match, match_image
from detection.evaluation.overlaps import COCO_IOUS
from detection.evaluation.record import Record

Box = tuple[float, float, float, float]

A, B = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)
NOWHERE = (200.0, 200.0, 210.0, 210.0)


def record(
    objects: Sequence[Box] = (),
    detections: Sequence[tuple[Box, float]] = (),
    *,
    image_id: int = 1,
    ignore: Sequence[bool] | None = None,
    gt_labels: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
) -> Record:
    """One image; every label is 0 and no object is ignored unless given."""
    gt_boxes = np.array(objects, np.float32).reshape(-1, 4)
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(300, 300),
        gt_boxes=gt_boxes,
        gt_labels=np.array(gt_labels or [0] * len(objects), np.int64),
        gt_ignore=np.array(ignore or [False] * len(objects), np.bool_),
        gt_areas=(gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(axis=1),
        boxes=np.array([box for box, _ in detections], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score in detections], np.float32),
        labels=np.array(labels or [0] * len(detections), np.int64),
    )


def test_hits_at_every_threshold_that_the_iou_reaches() -> None:
    # IoU 1, 0.6, exactly 0.5, and less than 0.5 with four objects apart.
    objects = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]
    heights = (10.0, 6.0, 5.0, 4.9)
    detections = [
        ((x1, 0.0, x2, height), 0.9 - 0.1 * i)
        for i, ((x1, _, x2, _), height) in enumerate(zip(objects, heights, strict=True))
    ]
    found = match_image(record(objects, detections))
    np.testing.assert_array_equal((found.objects >= 0).sum(axis=1), [10, 3, 1, 0])
    np.testing.assert_array_equal(found.objects[:, 0], [0, 1, 2, -1])
    assert not found.ignored.any()


def test_the_best_score_chooses_first_and_the_next_takes_what_is_free() -> None:
    near = (2.0, 0.0, 12.0, 10.0)  # IoU with A is 8/12
    found = match_image(record([A, near], [(A, 0.3), (A, 0.9), (A, 0.2)]))
    np.testing.assert_array_equal(found.rows, [1, 0, 2])
    np.testing.assert_array_equal(found.objects[:, 0], [0, 1, -1])
    np.testing.assert_array_equal(found.objects[:, 9], [0, -1, -1])  # 8/12 is under 0.95


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    np.testing.assert_array_equal(match_image(record([A, A], [(A, 0.9)])).objects, [[1] * 10])


def test_classes_do_not_meet() -> None:
    found = match_image(record([A, B], [(A, 0.9), (B, 0.8)], gt_labels=[0, 1], labels=[1, 1]))
    np.testing.assert_array_equal(found.objects[:, 0], [-1, 1])


def test_ignored_objects_take_any_number_of_detections_that_find_nothing_else() -> None:
    # The ignored object surrounds everything: each detection is covered by it, and only the second best has no other.
    surrounding = (0.0, 0.0, 100.0, 100.0)
    found = match_image(record([A, surrounding], [(A, 0.9), (A, 0.8), (B, 0.7), (NOWHERE, 0.6)], ignore=[False, True]))
    np.testing.assert_array_equal(found.objects[:, 0], [0, -1, -1, -1])
    np.testing.assert_array_equal(found.ignored[:, 0], [False, True, True, False])


def test_a_hundred_detections_of_each_class_and_image_count() -> None:
    detections = [(NOWHERE, i / 200) for i in range(150)] + [(A, 0.001)]
    found = match_image(record([A], detections, labels=[0] * 150 + [1]))
    np.testing.assert_array_equal(found.rows, [*range(149, 49, -1), 150])


def test_packed_by_class_and_score_with_ties_by_image_id() -> None:
    first = record([A], [(A, 0.5), (NOWHERE, 0.9)], image_id=3, labels=[0, 1])
    second = record([A, B], [(NOWHERE, 0.5), (A, 0.7)], image_id=2, gt_labels=[0, 1], ignore=[False, True])
    matches = match([first, second], ["cat", "dog"])
    assert matches.class_names == ("cat", "dog")
    np.testing.assert_array_equal(matches.image_ids, [2, 3])
    cat, dog = matches.classes
    np.testing.assert_array_equal(cat.images, [0, 0, 1])  # 0.7, then the two of 0.5
    np.testing.assert_array_equal(cat.hits[:, 0], [True, False, True])
    np.testing.assert_array_equal(cat.num_objects, [1, 1])
    np.testing.assert_array_equal(dog.images, [1])
    np.testing.assert_array_equal(dog.num_objects, [0, 0])  # the only dog is ignored


def test_no_images_no_classes_no_boxes() -> None:
    assert match([], []).classes == ()
    (empty,) = match([], ["cat"]).classes
    assert (empty.hits.shape, empty.num_objects.shape) == ((0, len(COCO_IOUS)), (0,))
    (blank,) = match([record()], ["cat"]).classes
    assert (len(blank.images), blank.num_objects.tolist()) == (0, [0])
    (missed,) = match([record([A])], ["cat"]).classes
    assert (len(missed.images), missed.num_objects.tolist()) == (0, [1])
    assert match_image(record([], [(A, 0.9)])).objects.shape == (1, 10)


def test_unknown_labels_and_repeated_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"1\.jpg: label 1, expected 0\.\.0"):
        match([record([A], gt_labels=[1])], ["cat"])
    with pytest.raises(ValueError, match="image id 1 occurs twice"):
        match([record(), record()], ["cat"])


def test_runs_on_the_same_images_are_comparable_whatever_they_detect() -> None:
    image = record([A])
    check_comparable({"a": match([image], ["cat"]), "b": match([record([A], [(B, 0.5)])], ["cat"])})


@pytest.mark.parametrize(
    ("records", "names", "message"),
    [
        ([record([A])], ["cat", "dog"], "1 and 2 classes"),
        ([record([A])], ["dog"], "classes 'cat' and 'dog'"),
        ([record([A]), record(image_id=2)], ["cat"], "1 and 2 images"),
        ([replace(record([A]), image_id=7)], ["cat"], "images 1 and 7"),
        ([record([A, B])], ["cat"], "1 and 2 objects of class cat in image 1"),
    ],
)
def test_runs_on_other_data_are_named(records: list[Record], names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"first and second are not comparable: {message}"):
        check_comparable({"first": match([record([A])], ["cat"]), "second": match(records, names)})
