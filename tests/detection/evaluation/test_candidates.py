"""Mirrors detection/evaluation/candidates.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detection.evaluation import candidates
from detection.evaluation.candidates import Candidates, box_candidates, coco_mask, mask_areas, mask_candidates
from detection.evaluation.columns import Columns, join_records
from detection.evaluation.overlaps import box_iou, covered_share
from detection.evaluation.record import Record
from detection.masks import encode

Array = np.ndarray[Any, Any]
SIZE = (40, 50)


def random_columns(seed: int) -> Columns:
    """Overlapping boxes of two classes in three images, and masks in them."""
    rng = np.random.default_rng(seed)
    records = []
    for image_id in range(3):
        boxes = [_boxes(rng, count) for count in (int(rng.integers(0, 6)), 9)]
        records.append(
            Record(
                image_id=image_id,
                file_name=f"{image_id}.jpg",
                size=SIZE,
                gt_boxes=boxes[0],
                gt_labels=rng.integers(0, 2, len(boxes[0])),
                gt_ignore=rng.random(len(boxes[0])) < 0.4,
                gt_areas=np.ones(len(boxes[0]), np.float32),
                boxes=boxes[1],
                scores=rng.random(9, np.float32),
                labels=rng.integers(0, 2, 9),
                gt_masks=tuple(encode(mask) for mask in _masks(rng, boxes[0])),
                masks=tuple(encode(mask) for mask in _masks(rng, boxes[1])),
            )
        )
    return join_records(records, 2)


def _boxes(rng: np.random.Generator, count: int) -> Array:
    corners, sides = rng.integers(0, 20, (count, 2)), rng.integers(1, 20, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def _masks(rng: np.random.Generator, boxes: Array) -> Array:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    x1, y1, x2, y2 = boxes.T[..., None, None]
    return (x >= x1) & (x < x2) & (y >= y1) & (y < y2) & (rng.random((len(boxes), *SIZE)) < 0.8)


def expected(columns: Columns, ious: Array, least: float) -> list[tuple[int, int, float]]:
    same = columns.cells[:, None] == columns.gt_cells
    return [(row, object_, ious[row, object_]) for row, object_ in np.argwhere(same & (ious >= least)).tolist()]


def listed(found: Candidates) -> list[tuple[int, int, float]]:
    return sorted(zip(found.rows.tolist(), found.objects.tolist(), found.ious.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [1, 7, 10**6])  # pairs at once
def test_pairs_of_boxes_are_those_of_all_with_all(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_CHUNK", chunk)
    columns = random_columns(seed)
    ious = box_iou(columns.boxes, columns.gt_boxes)
    assert listed(box_candidates(columns, least=0.2, crowds=False)) == expected(columns, ious, 0.2)
    ious[:, columns.gt_ignore] = covered_share(columns.boxes, columns.gt_boxes)[:, columns.gt_ignore]
    assert listed(box_candidates(columns, least=0.2)) == expected(columns, ious, 0.2)
    assert expected(columns, ious, 0.2)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_masks_are_those_of_all_with_all(seed: int) -> None:
    columns = random_columns(seed)
    assert columns.masks is not None
    assert columns.gt_masks is not None
    ignored = columns.gt_ignore
    ious = coco_mask.iou(list(columns.masks), list(columns.gt_masks), ignored.tolist())
    found = mask_candidates(columns, ignored, least=0.3)
    assert listed(found) == expected(columns, ious, 0.3)
    assert listed(found)


def test_masks_of_which_none_can_overlap_enough_have_no_pairs() -> None:
    columns = random_columns(0)
    assert listed(mask_candidates(columns, np.zeros_like(columns.gt_ignore), least=1.1)) == []


def test_areas_of_hundreds_of_masks_are_counted() -> None:
    masks = [encode(np.arange(12).reshape(3, 4) < count) for count in range(13)] * 40
    assert mask_areas(masks).tolist() == [*range(13)] * 40
    assert mask_areas([]).tolist() == []


def test_masks_that_are_not_there_are_an_error() -> None:
    columns = replace(random_columns(0), masks=None)
    with pytest.raises(ValueError, match="no masks"):
        mask_candidates(columns, columns.gt_ignore, least=0.5)
