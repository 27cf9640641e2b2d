"""Mirrors detection/evaluation/columns.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.columns import join_records, positions
from detection.evaluation.record import Record
from detection.masks import empty_rle


def record(image_id: int, labels: list[int], scores: list[float], gt_labels: list[int]) -> Record:
    """Boxes are numbered by their left side, objects from 100."""
    boxes, gt_boxes = (
        np.array([[first + i, 0, first + i + 1, 1] for i in range(count)], np.float32).reshape(-1, 4)
        for first, count in ((0, len(labels)), (100, len(gt_labels)))
    )
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(10, 200),
        gt_boxes=gt_boxes,
        gt_labels=np.array(gt_labels, np.int64),
        gt_ignore=np.zeros(len(gt_labels), np.bool_),
        gt_areas=np.ones(len(gt_labels), np.float32),
        boxes=boxes,
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
    )


RECORDS = [record(7, [1, 0, 1, 1], [0.2, 0.5, 0.9, 0.9], [1, 0]), record(3, [0], [0.1], [0])]


def test_detections_stand_by_class_image_and_score() -> None:
    columns = join_records(RECORDS, 2)
    assert columns.image_ids.tolist() == [3, 7]
    assert columns.labels.tolist() == [0, 0, 1, 1, 1]
    assert columns.images.tolist() == [0, 1, 1, 1, 1]
    assert columns.rows.tolist() == [0, 1, 2, 3, 0]  # of equal scores the first row first
    assert columns.ranks.tolist() == [0, 0, 0, 1, 2]
    assert columns.boxes[:, 0].tolist() == [0, 1, 2, 3, 0]
    assert (columns.gt_labels.tolist(), columns.gt_images.tolist(), columns.gt_rows.tolist()) == (
        [0, 0, 1],
        [0, 1, 1],
        [0, 1, 0],
    )
    assert (np.diff(columns.cells) >= 0).all()


def test_a_limit_keeps_the_best_of_a_class_in_an_image() -> None:
    columns = join_records(RECORDS, 2, limit=2)
    assert columns.scores.tolist() == pytest.approx([0.1, 0.5, 0.9, 0.9])


def test_scores_of_more_digits_keep_them() -> None:
    exact = np.array([0.1 + 1e-12, 0.1])
    columns = join_records([replace(record(1, [0, 0], [0, 0], []), scores=exact)], 1)
    assert columns.scores.tolist() == exact.tolist()


def test_masks_are_there_only_if_every_record_has_them() -> None:
    size = (10, 200)
    masked = [
        replace(r, masks=(empty_rle(size),) * len(r.boxes), gt_masks=(empty_rle(size),) * len(r.gt_boxes))
        for r in RECORDS
    ]
    columns = join_records(masked, 2)
    assert columns.masks is not None
    assert len(columns.masks) == 5
    assert join_records([masked[0], RECORDS[1]], 2).masks is None


def test_no_records_give_empty_columns() -> None:
    columns = join_records([], 2)
    assert (columns.boxes.shape, columns.gt_boxes.shape, len(columns.cells)) == ((0, 4), (0, 4), 0)


def test_positions_count_from_the_start_of_each_run() -> None:
    assert positions(np.array([4, 4, 5, 9, 9, 9])).tolist() == [0, 1, 0, 0, 1, 2]
    assert positions(np.empty(0, np.int64)).tolist() == []
