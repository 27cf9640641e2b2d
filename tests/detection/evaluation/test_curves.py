"""Curves against hand-made cases and against COCO's AP50."""

from __future__ import annotations

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

Boxes = list[tuple[float, float, float, float]]


def make_record(
    objects: list[tuple[int, int]],
    found: list[tuple[int, int, float]],
    *,
    image_id: int = 1,
    ignore: tuple[int, ...] = (),
) -> Record:
    """Objects (place, label) and detections (place, label, score); boxes at different places do not touch."""

    def boxes(places: list[int]) -> np.ndarray:
        return np.array([(20 * p, 0, 20 * p + 10, 10) for p in places], np.float32).reshape(-1, 4)

    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(10, 200),
        gt_boxes=boxes([place for place, _ in objects]),
        gt_labels=np.array([label for _, label in objects], np.int64),
        gt_ignore=np.isin(np.arange(len(objects)), ignore),
        gt_areas=np.full(len(objects), 100, np.float32),
        boxes=boxes([place for place, _, _ in found]),
        scores=np.array([score for _, _, score in found], np.float32),
        labels=np.array([label for _, label, _ in found], np.int64),
    )


def random_records(seed: int) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [
        make_record(
            [(place, int(rng.integers(3))) for place in range(5)],
            [(int(rng.integers(7)), int(rng.integers(3)), round(float(rng.random()), 1)) for _ in range(9)],
            image_id=image_id,
            ignore=(0,),
        )
        for image_id in range(1, 9)
    ]


def test_precision_and_recall_by_hand() -> None:
    """Two objects: a hit, a false alarm, a hit."""
    record = make_record([(0, 0), (1, 0)], [(0, 0, 0.9), (5, 0, 0.8), (1, 0, 0.7)])
    (curve,) = class_curves([record], 1)
    assert curve.hits.tolist() == [True, False, True]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 2, 1 / 2, 1])


def test_detections_of_ignored_objects_are_left_out() -> None:
    record = make_record([(0, 0), (1, 0)], [(0, 0, 0.9), (1, 0, 0.8)], ignore=(0,))
    (curve,) = class_curves([record], 1)
    assert curve.num_objects == 1
    np.testing.assert_allclose(curve.scores, [0.8])


@pytest.mark.parametrize("seed", range(4))
def test_mean_precision_averages_to_coco_ap50(seed: int) -> None:
    records = random_records(seed)
    expected = evaluate_coco(records, ("a", "b", "c")).AP50
    assert mean_precision(class_curves(records, 3)).mean() == pytest.approx(expected, abs=1e-12)


def test_f1_by_hand_and_a_score_equal_to_the_threshold_is_kept() -> None:
    record = make_record([(0, 0), (1, 0)], [(0, 0, 0.9), (5, 0, 0.3)])
    f1 = f1_by_threshold(class_curves([record], 1))
    at = {round(float(threshold), 2): value for threshold, value in zip(THRESHOLDS, f1, strict=True)}
    assert at[0.3] == pytest.approx(2 / 4)
    assert at[0.31] == at[0.9] == pytest.approx(2 / 3)
    assert at[0.91] == 0


def test_best_threshold_is_the_highest_of_equals() -> None:
    record = make_record([(0, 0)], [(0, 0, 0.9), (5, 0, 0.3)])
    assert best_threshold(f1_by_threshold(class_curves([record], 1))) == pytest.approx(0.9)


def test_classes_without_objects_are_left_out_of_the_means() -> None:
    curves = class_curves([make_record([(0, 0)], [(0, 0, 0.9), (1, 1, 0.9)])], 2)
    assert mean_precision(curves).tolist() == [1.0] * len(RECALLS)
    assert f1_by_threshold(curves)[0] == 1.0
    assert np.isnan(curves[1].recall).all()


@pytest.mark.parametrize("records", [[], [make_record([], [])], [make_record([], [(0, 0, 0.5)])]])
def test_nothing_to_find_has_no_value(records: list[Record]) -> None:
    curves = class_curves(records, 1)
    assert np.isnan(mean_precision(curves)).all()
    assert best_threshold(f1_by_threshold(curves)) == 0.5


def test_objects_without_detections_have_zero_precision() -> None:
    curves = class_curves([make_record([(0, 0)], [])], 1)
    assert mean_precision(curves).max() == f1_by_threshold(curves).max() == 0


def test_label_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label 3, expected 0\.\.1"):
        class_curves([make_record([(0, 3)], [])], 2)


def test_as_many_detections_as_objects_are_the_best_over_all_images() -> None:
    first = make_record([(0, 0), (1, 0)], [(0, 0, 0.9), (1, 0, 0.2), (2, 0, 0.5)])
    second = make_record([(0, 0), (1, 0)], [(0, 0, 0.75)], ignore=(1,), image_id=2)
    assert score_of_as_many([first, second]) == pytest.approx(0.5)  # 3 objects that are not ignored: 0.9, 0.75, 0.5
    assert score_of_as_many([make_record([(0, 0), (1, 0)], [(0, 0, 0.9)])]) == 0
    assert score_of_as_many([make_record([], [(0, 0, 0.9)])]) == 0
    assert score_of_as_many([]) == 0
