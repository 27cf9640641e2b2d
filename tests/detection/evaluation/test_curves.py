"""Mirrors detection/evaluation/curves.py, by hand and against COCO's AP50."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detection.evaluation.coco import evaluate_coco
from detection.evaluation.curves import (
    RECALLS,
    THRESHOLDS,
    best_threshold,
    class_curves,
    f1_by_threshold,
    mean_precision,
    score_of_as_many,
)
from detection.evaluation.record import Record

Make = Callable[..., Record]
A, B, C, D = [(20 * i, 0, 20 * i + 10, 10) for i in range(4)]


def test_precision_and_recall_by_hand(record: Make) -> None:
    (curve,) = class_curves([record([A, B], [(A, 0.9), (D, 0.8), (B, 0.7)])], 1)
    assert curve.hits.tolist() == [True, False, True]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 2, 1 / 2, 1])
    (curve,) = class_curves([record([A, B], [(A, 0.9), (B, 0.8)], ignore=[0])], 1)  # detections of ignored ones go
    assert curve.num_objects == 1
    np.testing.assert_allclose(curve.scores, [0.8])


@pytest.mark.parametrize("seed", range(4))
def test_mean_precision_averages_to_coco_ap50(seed: int, random_records: Any) -> None:
    records = random_records(seed)
    expected = evaluate_coco(records, ("a", "b", "c", "d")).AP50
    assert mean_precision(class_curves(records, 4)).mean() == pytest.approx(expected, abs=1e-12)


def test_f1_by_hand_and_a_score_equal_to_the_threshold_is_kept(record: Make) -> None:
    f1 = f1_by_threshold(class_curves([record([A, B], [(A, 0.9), (D, 0.3)])], 1))
    at = {round(float(threshold), 2): value for threshold, value in zip(THRESHOLDS, f1, strict=True)}
    assert at[0.3] == pytest.approx(2 / 4)
    assert at[0.31] == at[0.9] == pytest.approx(2 / 3)
    assert at[0.91] == 0
    assert best_threshold(f1) == pytest.approx(0.9)  # the highest of equals


def test_classes_without_objects_are_left_out_of_the_means(record: Make) -> None:
    curves = class_curves([record([A], [(A, 0, 0.9), (B, 1, 0.9)])], 2)
    assert mean_precision(curves).tolist() == [1.0] * len(RECALLS)
    assert f1_by_threshold(curves)[0] == 1.0
    assert np.isnan(curves[1].recall).all()


def test_nothing_to_find_has_no_value_and_objects_without_detections_zero(record: Make) -> None:
    for records in ([], [record()], [record([], [(A, 0.5)])]):
        curves = class_curves(records, 1)
        assert np.isnan(mean_precision(curves)).all()
        assert best_threshold(f1_by_threshold(curves)) == 0.5
    curves = class_curves([record([A])], 1)
    assert mean_precision(curves).max() == f1_by_threshold(curves).max() == 0
    with pytest.raises(ValueError, match=r"label 3, expected 0\.\.1"):
        class_curves([record([(A, 3)])], 2)


def test_as_many_detections_as_objects_are_the_best_over_all_images(record: Make) -> None:
    first = record([A, B], [(A, 0.9), (B, 0.2), (C, 0.5)])
    second = record([A, B], [(A, 0.75)], ignore=[1], image_id=2)
    assert score_of_as_many([first, second]) == pytest.approx(0.5)  # 3 objects that are not ignored: 0.9, 0.75, 0.5
    for records in ([record([A, B], [(A, 0.9)])], [record([], [(A, 0.9)])], []):
        assert score_of_as_many(records) == 0
