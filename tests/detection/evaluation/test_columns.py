"""Mirrors detection/evaluation/columns.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.columns import join_records, positions
from detection.evaluation.record import Record
from detection.masks import empty_rle

Records = list[Record]


@pytest.fixture
def records(record: Callable[..., Record]) -> Records:
    """Boxes are numbered by their left side, objects from 100."""
    boxes = [(i, 0, i + 1, 1) for i in range(102)]
    found = [(boxes[0], 1, 0.2), (boxes[1], 0, 0.5), (boxes[2], 1, 0.9), (boxes[3], 1, 0.9)]
    first = record([(boxes[100], 1), (boxes[101], 0)], found, image_id=7)
    return [first, record([(boxes[100], 0)], [(boxes[0], 0, 0.1)], image_id=3)]


def test_detections_stand_by_class_image_and_score(records: Records) -> None:
    columns = join_records(records, 2)
    assert columns.image_ids.tolist() == [3, 7]
    assert columns.labels.tolist() == [0, 0, 1, 1, 1]
    assert columns.images.tolist() == [0, 1, 1, 1, 1]
    assert (
        columns.rows.tolist() == columns.boxes[:, 0].tolist() == [0, 1, 2, 3, 0]
    )  # of equal scores the first row first
    assert columns.ranks.tolist() == [0, 0, 0, 1, 2]
    truth = columns.gt_labels.tolist(), columns.gt_images.tolist(), columns.gt_rows.tolist()
    assert truth == ([0, 0, 1], [0, 1, 1], [0, 1, 0])
    assert (np.diff(columns.cells) >= 0).all()
    limited = join_records(records, 2, limit=2)  # the best of a class in an image
    assert limited.scores.tolist() == pytest.approx([0.1, 0.5, 0.9, 0.9])


def test_scores_of_more_digits_keep_them(records: Records) -> None:
    exact = np.array([0.1 + 1e-12])
    assert join_records([replace(records[1], scores=exact)], 1).scores.tolist() == exact.tolist()


def test_masks_are_there_only_if_every_record_has_them(records: Records) -> None:
    empty = empty_rle((300, 300))
    masked = [replace(r, masks=(empty,) * len(r.boxes), gt_masks=(empty,) * len(r.gt_boxes)) for r in records]
    assert len(join_records(masked, 2).masks or ()) == 5
    assert join_records([masked[0], records[1]], 2).masks is None


def test_no_records_give_empty_columns() -> None:
    columns = join_records([], 2)
    assert (columns.boxes.shape, columns.gt_boxes.shape, len(columns.cells)) == ((0, 4), (0, 4), 0)


def test_positions_count_from_the_start_of_each_run() -> None:
    assert positions(np.array([4, 4, 5, 9, 9, 9])).tolist() == [0, 1, 0, 0, 1, 2]
    assert positions(np.empty(0, np.int64)).tolist() == []
