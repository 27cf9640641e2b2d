"""Mirrors detection/evaluation/candidates.py."""

from __future__ import annotations

from collections.abc import Callable
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

Records = Callable[..., list[Record]]


def expected(columns: Columns, ious: np.ndarray[Any, Any], least: float) -> list[tuple[int, int, float]]:
    same = columns.cells[:, None] == columns.gt_cells
    return [(row, object_, ious[row, object_]) for row, object_ in np.argwhere(same & (ious >= least)).tolist()]


def listed(found: Candidates) -> list[tuple[int, int, float]]:
    return sorted(zip(found.rows.tolist(), found.objects.tolist(), found.ious.tolist(), strict=True))


@pytest.mark.parametrize("chunk", [1, 7, 10**6])  # pairs at once
def test_pairs_of_boxes_are_those_of_all_with_all(
    chunk: int, random_records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_CHUNK", chunk)
    for seed in range(3):
        columns = join_records(random_records(seed, 4, ignored=0.4), 4)
        columns = replace(columns, boxes=columns.boxes.round(), gt_boxes=columns.gt_boxes.round())  # sums are exact
        ious = box_iou(columns.boxes, columns.gt_boxes)
        assert listed(box_candidates(columns, least=0.2, crowds=False)) == expected(columns, ious, 0.2)
        ious[:, columns.gt_ignore] = covered_share(columns.boxes, columns.gt_boxes)[:, columns.gt_ignore]
        assert listed(box_candidates(columns, least=0.2)) == expected(columns, ious, 0.2) != []


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_masks_are_those_of_all_with_all(seed: int, random_records: Records) -> None:
    columns = join_records(random_records(seed, 4, ignored=0.4, masks=True), 4)
    ignored = columns.gt_ignore
    ious = coco_mask.iou(list(columns.masks or ()), list(columns.gt_masks or ()), ignored.tolist())
    assert listed(mask_candidates(columns, ignored, least=0.3)) == expected(columns, ious, 0.3) != []
    assert listed(mask_candidates(columns, np.zeros_like(ignored), least=1.1)) == []
    with pytest.raises(ValueError, match="no masks"):
        mask_candidates(replace(columns, masks=None), ignored, least=0.5)


def test_areas_of_hundreds_of_masks_are_counted() -> None:
    masks = [encode(np.arange(12).reshape(3, 4) < count) for count in range(13)] * 40
    assert mask_areas(masks).tolist() == [*range(13)] * 40
    assert mask_areas([]).tolist() == []
