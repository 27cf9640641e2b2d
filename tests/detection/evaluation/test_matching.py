"""Mirrors matching.py and its parts, columns, candidates, assignment and overlaps; parity with COCO tests the rest."""

from typing import Any

import numpy as np
import pytest

from detection.evaluation import candidates
from detection.evaluation.columns import join_records
from detection.evaluation.matching import check_comparable, match, match_image
from detection.evaluation.overlaps import COCO_IOUS, box_iou, covered_share
from detection.masks import encode

A, B = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)
NOWHERE = (200.0, 200.0, 210.0, 210.0)


def test_overlaps_by_hand_in_float64() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array([[0, 0, 10, 5], [5, 5, 15, 15], [10, 0, 20, 10], [3, 3, 3, 3]], np.float32)
    np.testing.assert_array_equal(box_iou(box, others), [[0.5, 25 / 175, 0, 0]])
    np.testing.assert_array_equal(covered_share(others, box), [[1.0], [0.25], [0.0], [0.0]])
    assert box_iou(np.array([[0, 0, 3, 1]], np.float32), np.array([[0, 0, 1, 1]], np.float32))[0, 0] == 1 / 3
    masks = [encode(np.arange(12).reshape(3, 4) < count) for count in range(13)] * 40
    assert candidates.mask_areas(masks).tolist() == [*range(13)] * 40
    assert candidates.mask_areas([]).tolist() == []


def test_hits_at_every_threshold_that_the_iou_reaches(record) -> None:
    # IoU 1, 0.6, exactly 0.5, and less than 0.5 with four objects apart.
    objects = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]
    heights = zip(objects, (10.0, 6.0, 5.0, 4.9), (0.9, 0.8, 0.7, 0.6), strict=True)
    found = match_image(record(objects, [((*box[:3], height), score) for box, height, score in heights]))
    np.testing.assert_array_equal((found.objects >= 0).sum(axis=1), [10, 3, 1, 0])
    np.testing.assert_array_equal(found.objects[:, 0], [0, 1, 2, -1])
    assert not found.ignored.any()


NEAR, AROUND = (2.0, 0.0, 12.0, 10.0), (0, 0, 100, 100)  # the IoU of the first with A is 8/12


@pytest.mark.parametrize(
    ("objects", "found", "ignore", "expected", "ignored"),  # by falling scores, at IoU 0.5
    [
        ([A, NEAR], [(A, 0.3), (A, 0.9), (A, 0.2)], [], [0, 1, -1], [False] * 3),  # the next takes what is free
        ([A, A], [(A, 0.9)], [], [1], [False]),  # of equals the last
        ([(A, 0), (B, 1)], [(A, 1, 0.9), (B, 1, 0.8)], [], [-1, 1], [False] * 2),  # classes do not meet
        # An ignored object takes any number of detections that find nothing else.
        ([A, AROUND], [(A, 0.9), (A, 0.8), (B, 0.7), (NOWHERE, 0.6)], [1], [0, -1, -1, -1], [False, True, True, False]),
        ([], [(A, 0.9)], [], [-1], [False]),
    ],
)
def test_by_hand(objects: Any, found: Any, ignore: Any, expected: Any, ignored: Any, record) -> None:
    matched = match_image(record(objects, found, ignore=ignore))
    assert (matched.objects[:, 0].tolist(), matched.ignored[:, 0].tolist()) == (expected, ignored)


def test_packed_by_class_and_score_with_ties_by_image_id(record) -> None:
    first = record([A], [(A, 0, 0.5), (NOWHERE, 1, 0.9)], image_id=3)
    second = record([(A, 0), (B, 1)], [(NOWHERE, 0.5), (A, 0.7)], image_id=2, ignore=[1])
    matches = match([first, second], ["cat", "dog"])
    assert (matches.class_names, matches.image_ids.tolist()) == (("cat", "dog"), [2, 3])
    cat, dog = matches.classes
    np.testing.assert_array_equal(cat.images, [0, 0, 1])  # 0.7, then the two of 0.5
    np.testing.assert_array_equal(cat.hits[:, 0], [True, False, True])
    np.testing.assert_array_equal(cat.num_objects, [1, 1])
    assert (dog.images.tolist(), dog.num_objects.tolist()) == ([1], [0, 0])  # the only dog is ignored
    found = match_image(record([A], [*((NOWHERE, i / 200) for i in range(150)), (A, 1, 0.001)]))
    np.testing.assert_array_equal(found.rows, [*range(149, 49, -1), 150])  # a hundred of each class and image count


def test_pairs_in_parts_are_all_pairs(random_records, monkeypatch) -> None:
    records = random_records(0, 4)
    whole = [table.hits for table in match(records, "abcd").classes]
    columns = join_records(records, 4)
    with pytest.raises(ValueError, match="no masks"):
        candidates.mask_candidates(columns, columns.gt_ignore, least=0.5)
    for chunk in (1, 7):
        monkeypatch.setattr(candidates, "_CHUNK", chunk)
        for table, hits in zip(match(records, "abcd").classes, whole, strict=True):
            np.testing.assert_array_equal(table.hits, hits)


def test_no_images_no_classes_no_boxes(record) -> None:
    assert match([], []).classes == ()
    (empty,) = match([], ["cat"]).classes
    assert (empty.hits.shape, empty.num_objects.shape) == ((0, len(COCO_IOUS)), (0,))
    for image, expected in ((record(), [0]), (record([A]), [1])):
        (found,) = match([image], ["cat"]).classes
        assert (len(found.images), found.num_objects.tolist()) == (0, expected)


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
def test_runs_on_other_data_are_named(change: Any, names: list[str], message: str, record) -> None:
    first = match([record([A])], ["cat"])
    check_comparable({"a": first, "b": match([record([A], [(B, 0.5)])], ["cat"])})  # whatever they detect
    others = [record(**{"objects": [A], **change})] if change is not None else [record([A]), record(image_id=2)]
    with pytest.raises(ValueError, match=f"first and second are not comparable: {message}"):
        check_comparable({"first": first, "second": match(others, names)})
