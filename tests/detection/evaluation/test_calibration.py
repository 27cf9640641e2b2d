"""Mirrors detection/evaluation/calibration.py."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.calibration import calibrate, joined_curve, point_of_precision, point_of_recall
from detection.evaluation.curves import ClassCurve


def curve(scores: list[float], hits: list[int], num_objects: int = 4) -> ClassCurve:
    return ClassCurve(scores=np.array(scores), hits=np.array(hits, np.bool_), num_objects=num_objects)


def test_error_is_the_mean_distance_of_score_and_precision_by_bin() -> None:
    # 0.9 and 0.95, both right: precision 1 against 0.925; 0.35, 0.33, wrong and right: 0.5 against 0.34; 0.05, wrong.
    found = calibrate(curve([0.95, 0.9, 0.35, 0.33, 0.05], [1, 1, 0, 1, 0]))
    assert found.count.tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 1, 1]
    assert (found.precision[3], found.score[3]) == (0.5, pytest.approx(0.34))
    assert found.error == pytest.approx((0.05 + 2 * 0.16 + 0.1 + 0.05) / 5)
    assert np.isnan(calibrate(curve([], [])).error)


def test_scores_that_say_how_often_they_are_right_have_no_error() -> None:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.random(200_000))
    honest, bold = (calibrate(curve(scores.tolist(), (rng.random(len(scores)) < scores / n).tolist())) for n in (1, 2))
    assert honest.error < 0.01
    assert bold.error == pytest.approx(0.25, abs=0.01)


def test_scores_for_a_wished_precision_and_recall() -> None:
    found = curve([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1])
    # from 0.9 on: precision 1, recall 1/4; 0.8: 1/2; 0.7: 2/3 and 2/4; 0.6: 3/4 and 3/4
    precise, complete = point_of_precision(found, 0.75), point_of_recall(found, 0.5)
    assert precise is not None
    assert (precise.score, precise.precision, precise.recall) == (0.6, 0.75, 0.75)
    assert complete is not None
    assert (complete.score, complete.recall) == (0.7, 0.5)
    tied = curve([0.9, 0.9, 0.9], [1, 0, 0])  # a threshold takes all detections of a score
    recalled = point_of_recall(tied, 0.25)
    assert recalled is not None
    assert recalled.precision == pytest.approx(1 / 3)
    assert point_of_precision(tied, 0.5) is point_of_precision(curve([0.5], [0]), 0.1) is None
    assert point_of_recall(found, 0.8) is point_of_recall(curve([0.9], [0], num_objects=0), 0.0) is None
    assert point_of_precision(curve([], []), 0.0) is None


def test_classes_join_by_score() -> None:
    joined = joined_curve([curve([0.9, 0.1], [1, 0], 2), curve([0.5], [1], 3)])
    assert (joined.scores.tolist(), joined.hits.tolist()) == ([0.9, 0.5, 0.1], [True, True, False])
    assert (joined.num_objects, joined_curve([]).num_objects) == (5, 0)
