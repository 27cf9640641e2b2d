"""Mirrors curves.py, calibration.py and confusion.py: by hand, and curves against COCO's AP50."""

from typing import Any

import numpy as np
import pytest

from detection.evaluation import curves
from detection.evaluation.calibration import calibrate, joined_curve, point_of_precision, point_of_recall
from detection.evaluation.coco import evaluate_coco
from detection.evaluation.confusion import confusion_matrix, found_objects, pair, rank_images
from detection.evaluation.curves import best_threshold, class_curves, f1_by_threshold, mean_precision

A, B, C, D = [(20 * i, 0, 20 * i + 10, 10) for i in range(4)]


def test_precision_and_recall_by_hand(record) -> None:
    (curve,) = class_curves([record([A, B], [(A, 0.9), (D, 0.8), (B, 0.7)])], 1)
    assert curve.hits.tolist() == [True, False, True]
    np.testing.assert_allclose([curve.precision, curve.recall], [[1, 1 / 2, 2 / 3], [1 / 2, 1 / 2, 1]])
    (curve,) = class_curves([record([A, B], [(A, 0.9), (B, 0.8)], ignore=[0])], 1)  # detections of ignored ones go
    assert (curve.num_objects, curve.scores.tolist()) == (1, pytest.approx([0.8]))


@pytest.mark.parametrize("seed", range(4))
def test_mean_precision_averages_to_coco_ap50(seed: int, random_records) -> None:
    records = random_records(seed)
    expected = evaluate_coco(records, "abcd").AP50
    assert mean_precision(class_curves(records, 4)).mean() == pytest.approx(expected, abs=1e-12)


def test_f1_by_hand_and_a_score_equal_to_the_threshold_is_kept(record) -> None:
    f1 = f1_by_threshold(class_curves([record([A, B], [(A, 0.9), (D, 0.3)])], 1))
    at = dict(zip(curves.THRESHOLDS.round(2).tolist(), f1.tolist(), strict=True))
    assert [at[0.3], at[0.31], at[0.9], at[0.91]] == pytest.approx([2 / 4, 2 / 3, 2 / 3, 0])
    assert best_threshold(f1) == pytest.approx(0.9)  # the highest of equals
    found = class_curves([record([A], [(A, 0, 0.9), (B, 1, 0.9)])], 2)  # a class without objects stays out of means
    assert mean_precision(found).tolist() == [1.0] * len(curves.RECALLS)
    assert f1_by_threshold(found)[0] == 1.0
    assert np.isnan(found[1].recall).all()


def test_nothing_to_find_has_no_value_and_objects_without_detections_zero(record) -> None:
    for records in ([], [record()], [record([], [(A, 0.5)])]):
        found = class_curves(records, 1)
        assert np.isnan(mean_precision(found)).all()
        assert best_threshold(f1_by_threshold(found)) == 0.5
    found = class_curves([record([A])], 1)
    assert mean_precision(found).max() == f1_by_threshold(found).max() == 0
    with pytest.raises(ValueError, match=r"label 3, expected 0\.\.1"):
        class_curves([record([(A, 3)])], 2)


def test_as_many_detections_as_objects_are_the_best_over_all_images(record) -> None:
    first = record([A, B], [(A, 0.9), (B, 0.2), (C, 0.5)])
    second = record([A, B], [(A, 0.75)], ignore=[1], image_id=2)
    found = curves.score_of_as_many([first, second])
    assert found == pytest.approx(0.5)  # 3 objects that are not ignored: 0.9, 0.75, 0.5
    for records in ([record([A, B], [(A, 0.9)])], [record([], [(A, 0.9)])], []):
        assert curves.score_of_as_many(records) == 0


def curve(scores: list[float], hits: list[int], num_objects: int = 4) -> curves.ClassCurve:
    return curves.ClassCurve(scores=np.array(scores), hits=np.array(hits, np.bool_), num_objects=num_objects)


def test_error_is_the_mean_distance_of_score_and_precision_by_bin() -> None:
    # 0.9 and 0.95, both right: precision 1 against 0.925; 0.35, 0.33, wrong and right: 0.5 against 0.34; 0.05, wrong.
    found = calibrate(curve([0.95, 0.9, 0.35, 0.33, 0.05], [1, 1, 0, 1, 0]))
    assert found.count.tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 1, 1]
    assert (found.precision[3], found.score[3]) == (0.5, pytest.approx(0.34))
    assert found.error == pytest.approx((0.05 + 2 * 0.16 + 0.1 + 0.05) / 5)
    assert np.isnan(calibrate(curve([], [])).error)
    joined = joined_curve([curve([0.9, 0.1], [1, 0], 2), curve([0.5], [1], 3)])  # of all classes, by score
    assert (joined.scores.tolist(), joined.hits.tolist()) == ([0.9, 0.5, 0.1], [True, True, False])
    assert (joined.num_objects, joined_curve([]).num_objects) == (5, 0)


def test_scores_for_a_wished_precision_and_recall() -> None:
    found = curve([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1])
    # from 0.9 on: precision 1, recall 1/4; 0.8: 1/2; 0.7: 2/3 and 2/4; 0.6: 3/4 and 3/4
    tied = curve([0.9, 0.9, 0.9], [1, 0, 0])  # a threshold takes all detections of a score
    points = point_of_precision(found, 0.75), point_of_recall(found, 0.5), point_of_recall(tied, 0.25)
    expected = [(0.6, 0.75, 0.75), (0.7, pytest.approx(2 / 3), 0.5), (0.9, pytest.approx(1 / 3), 0.25)]
    assert [point and (point.score, point.precision, point.recall) for point in points] == expected
    assert point_of_precision(tied, 0.5) is point_of_precision(curve([0.5], [0]), 0.1) is None
    assert point_of_recall(found, 0.8) is point_of_recall(curve([0.9], [0], num_objects=0), 0.0) is None
    assert point_of_precision(curve([], []), 0.0) is None


@pytest.mark.parametrize(
    ("objects", "found", "ignore", "expected"),
    [
        # a hit, a confusion, a false alarm and a miss
        ([A, (B, 1), (C, 1)], [(A, 0, 0.9), (B, 0, 0.8), (D, 1, 0.7)], [], [[1, 0, 0], [1, 0, 1], [0, 1, 0]]),
        ([A], [(A, 1, 0.9), (A, 0, 0.6)], [], [[1, 0, 0], [0, 0, 0], [0, 1, 0]]),  # the own class goes first
        ([A], [(A, 0.9), (A, 0.6)], [], [[1, 0, 0], [0, 0, 0], [1, 0, 0]]),  # a second detection is a false alarm
        # an ignored object counts nowhere, and neither do detections inside it
        ([A], [(A, 0.9), ((0, 0, 5, 5), 0.8), (B, 0.7)], [0], [[0, 0, 0], [0, 0, 0], [1, 0, 0]]),
        ([A], [(A, 0.5)], [], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),  # the threshold itself
        ([A], [(A, 0.49)], [], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),
        ([A], [((6, 0, 16, 10), 0.9)], [], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),  # an overlap below half
        ([], [], [], [[0, 0, 0]] * 3),
    ],
)
def test_matrix_by_hand(objects: list[Any], found: list[Any], ignore: list[int], expected: Any, record) -> None:
    assert confusion_matrix([record(objects, found, ignore=ignore)], 2, min_score=0.5).tolist() == expected


def test_found_objects_and_ranked_images(record) -> None:
    near = (1, 0, 11, 10)  # each detection takes the object it overlaps most, and finds its own class
    assert pair(record([A, near], [(near, 0.9), (A, 0.8)]), min_score=0.5).objects.tolist() == [1, 0]
    assert found_objects(record([A, (B, 1)], [(A, 0.9), (B, 0.9)]), min_score=0.5).tolist() == [True, False]
    images = [
        record([A, B], [(A, 0.9)]),  # F1 2/3
        record([A], [(A, 0.9)]),  # 1
        record([A, B], [(A, 0.9), (B, 0.9)]),  # 1, of more objects
        record([A, B], [(C, 0.9)]),  # 0, with more errors than the next
        record([A], [(B, 0.9)]),
        record([], [(A, 0.1)]),  # nothing to see and nothing shown
    ]
    ranked = rank_images(images, min_score=0.5)
    expected = [(2, 2, 0, 0), (1, 1, 0, 0), (0, 1, 1, 0), (4, 0, 1, 1), (3, 0, 2, 1)]
    assert [(s.row, s.hits, s.misses, s.false) for s in ranked] == expected
    assert ranked[2].f1 == 2 / 3
