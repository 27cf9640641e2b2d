"""Confusions, image ranking and found objects in cases made by hand."""

from __future__ import annotations

import numpy as np

from detection.evaluation.confusion import confusion_matrix, found_objects, pair, rank_images
from detection.evaluation.record import Record

Objects = list[tuple[tuple[float, float, float, float], int]]
Found = list[tuple[tuple[float, float, float, float], int, float]]

A, B = (0, 0, 10, 10), (20, 0, 30, 10)


def make_record(objects: Objects, found: Found, *, ignore: tuple[int, ...] = (), image_id: int = 1) -> Record:
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(10, 100),
        gt_boxes=np.array([box for box, _ in objects], np.float32).reshape(-1, 4),
        gt_labels=np.array([label for _, label in objects], np.int64),
        gt_ignore=np.isin(np.arange(len(objects)), ignore),
        gt_areas=np.full(len(objects), 100, np.float32),
        boxes=np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        scores=np.array([score for _, _, score in found], np.float32),
        labels=np.array([label for _, label, _ in found], np.int64),
    )


class TestConfusionMatrix:
    def test_hit_confusion_false_alarm_and_miss_by_hand(self) -> None:
        record = make_record(
            [(A, 0), (B, 1), ((40, 0, 50, 10), 1)],
            [(A, 0, 0.9), (B, 0, 0.8), ((70, 0, 80, 10), 1, 0.7)],
        )
        assert confusion_matrix([record], 2, min_score=0.5).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]

    def test_own_class_comes_first_although_another_scores_higher(self) -> None:
        record = make_record([(A, 0)], [(A, 1, 0.9), (A, 0, 0.6)])
        assert confusion_matrix([record], 2, min_score=0.5).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]

    def test_second_detection_of_an_object_is_a_false_alarm(self) -> None:
        record = make_record([(A, 0)], [(A, 0, 0.9), (A, 0, 0.6)])
        assert confusion_matrix([record], 1, min_score=0.5).tolist() == [[1, 0], [1, 0]]

    def test_ignored_object_counts_nowhere_and_neither_do_detections_inside_it(self) -> None:
        record = make_record([(A, 0)], [(A, 0, 0.9), ((0, 0, 5, 5), 0, 0.8), (B, 0, 0.7)], ignore=(0,))
        assert confusion_matrix([record], 1, min_score=0.5).tolist() == [[0, 0], [1, 0]]

    def test_score_equal_to_the_threshold_counts(self) -> None:
        record = make_record([(A, 0)], [(A, 0, 0.3)])
        assert confusion_matrix([record], 1, min_score=0.3)[0, 0] == 1
        assert confusion_matrix([record], 1, min_score=0.31).tolist() == [[0, 1], [0, 0]]

    def test_overlap_below_half_is_no_match(self) -> None:
        record = make_record([(A, 0)], [((6, 0, 16, 10), 0, 0.9)])
        assert confusion_matrix([record], 1, min_score=0.5).tolist() == [[0, 1], [1, 0]]

    def test_empty(self) -> None:
        assert confusion_matrix([], 2, min_score=0.5).sum() == 0
        assert confusion_matrix([make_record([], [])], 2, min_score=0.5).sum() == 0


def test_each_detection_takes_the_object_it_overlaps_most() -> None:
    record = make_record(
        [((0, 0, 10, 10), 0), ((1, 0, 11, 10), 0)], [((1, 0, 11, 10), 0, 0.9), ((0, 0, 10, 10), 0, 0.8)]
    )
    assert pair(record, min_score=0.5).objects.tolist() == [1, 0]


def test_found_objects_need_their_own_class() -> None:
    record = make_record([(A, 0), (B, 1)], [(A, 0, 0.9), (B, 0, 0.9)])
    assert found_objects(record, min_score=0.5).tolist() == [True, False]
    assert found_objects(make_record([], [(A, 0, 0.9)]), min_score=0.5).tolist() == []


class TestRankImages:
    def test_best_first_and_counts_by_hand(self) -> None:
        records = [
            make_record([(A, 0), (B, 0)], [(A, 0, 0.9)], image_id=1),  # F1 2/3
            make_record([(A, 0)], [(A, 0, 0.9)], image_id=2),  # 1
            make_record([(A, 0), (B, 0)], [(A, 0, 0.9), (B, 0, 0.9)], image_id=3),  # 1, of more objects
            make_record([(A, 0)], [(B, 0, 0.9)], image_id=4),  # 0
        ]
        ranked = rank_images(records, min_score=0.5)
        assert [score.row for score in ranked] == [2, 1, 0, 3]
        assert [(s.hits, s.misses, s.false) for s in ranked] == [(2, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1)]
        assert ranked[2].f1 == 2 / 3

    def test_of_images_without_a_hit_the_one_with_more_errors_is_last(self) -> None:
        few = make_record([(A, 0)], [], image_id=1)
        many = make_record([(A, 0), (B, 0)], [((50, 0, 60, 10), 0, 0.9)], image_id=2)
        assert [score.row for score in rank_images([many, few], min_score=0.5)] == [1, 0]

    def test_image_with_nothing_to_see_and_nothing_shown_is_left_out(self) -> None:
        assert rank_images([make_record([], [(A, 0, 0.1)])], min_score=0.5) == []
