"""Mirrors detection/evaluation/recall.py."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.recall import ProposalRecord, average_recall

Rows = Any  # of (x1, y1, x2, y2)


def record(objects: Rows, proposals: Rows) -> ProposalRecord:
    gt_boxes, boxes = (np.array(rows, dtype=np.float32).reshape(-1, 4) for rows in (objects, proposals))
    return ProposalRecord(gt_boxes=gt_boxes, boxes=boxes)


def part(share: float, *, at: float = 0) -> list[float]:
    """A box inside the square of 100 at x = ``at`` whose IoU with it is ``share``."""
    return [at, 0, at + 100 * share, 100]


SQUARE, SECOND, NOWHERE = [0, 0, 100, 100], [1000, 0, 1100, 100], [500, 500, 600, 600]
OVERLAPPING = [[0, 0, 10, 10], [4, 0, 14, 10]], [[1.6, 0, 11.6, 10], [0, 0, 10, 10]]


@pytest.mark.parametrize(
    ("share", "passed"), [(0.49, 0), (0.5, 1), (0.51, 1), (0.62, 3), (0.73, 5), (0.87, 8), (0.96, 10), (1, 10)]
)
def test_one_object_counts_at_the_thresholds_that_its_iou_reaches(share: float, passed: int) -> None:
    found = average_recall([record([SQUARE], [part(share)])], limits=[1])
    assert found == {"AR1": pytest.approx(passed / 10), "R50_1": float(share >= 0.5)}


def test_limits_take_the_first_of_each_image() -> None:
    given = record([SQUARE, SECOND], [NOWHERE, part(0.62), part(0.87, at=1000), part(0.96)])
    found = average_recall([given], limits=[1, 2, 3, 1000])
    assert found == pytest.approx(
        {"AR1": 0, "AR2": 3 / 20, "AR3": 11 / 20, "AR1000": 18 / 20}
        | {"R50_1": 0, "R50_2": 0.5, "R50_3": 1, "R50_1000": 1}
    )
    np.testing.assert_array_equal(given.gt_boxes, np.array([SQUARE, SECOND]))
    assert average_recall([record([SQUARE], [SQUARE]), record([SECOND], [SECOND])], limits=[1])["AR1"] == 1
    assert [*average_recall([record([SQUARE], [SQUARE])])] == [
        "AR100",
        "R50_100",
        "AR300",
        "R50_300",
        "AR1000",
        "R50_1000",
    ]


@pytest.mark.parametrize(
    ("objects", "proposals", "recall", "half"),
    [
        ([SQUARE], [part(0.6), part(0.96), part(0.9), NOWHERE], 1, 1),  # worse ones change nothing
        ([part(1), part(0.8)], [part(0.98)], 0.5, 0.5),  # one proposal finds one object, though it overlaps both
        ([part(1), part(0.8)], [part(0.98), NOWHERE], 0.5, 0.5),
        ([part(1), part(0.8)], [part(0.98), part(0.9)], (10 + 8) / 20, 1),  # the second's IoU: 0.8 / 0.9
        # The first proposal has IoU 8.4 / 11.6 = 0.72 and 7.6 / 12.4 = 0.61 with the objects; the second is the first
        # object, and takes it, so that the first proposal finds the second object at 0.5, 0.55 and 0.6.
        (*OVERLAPPING, (10 + 3) / 20, 1),
        ([SQUARE, SECOND], [], 0, 0),
    ],
)
def test_pairs_of_the_highest_iou_come_first(objects: Rows, proposals: Rows, recall: float, half: float) -> None:
    found = average_recall([record(objects, proposals)], limits=[4])
    assert found == pytest.approx({"AR4": recall, "R50_4": half})


def test_objects_of_all_images_weigh_the_same_and_images_without_them_do_not_count() -> None:
    records = [record([SQUARE, SECOND, NOWHERE], [SQUARE]), record([SQUARE], [SQUARE]), record([], [SQUARE])]
    assert average_recall(records, limits=[10])["AR10"] == pytest.approx(2 / 4)
    assert average_recall([record([SQUARE], []), record([], [SQUARE])], limits=[10])["AR10"] == 0  # of another image


@pytest.mark.parametrize("records", [[], [record([], [])], [record([], [SQUARE]), record([], [])]])
def test_no_objects_give_no_figure(records: list[ProposalRecord]) -> None:
    found = average_recall(records, limits=[10, 20])
    assert list(found) == ["AR10", "R50_10", "AR20", "R50_20"]
    assert all(math.isnan(value) for value in found.values())


def random_record(rng: np.random.Generator) -> ProposalRecord:
    """Up to nine objects that are disjoint, each with proposals around it, and proposals anywhere."""
    count = int(rng.integers(0, 10))
    cells, far = rng.permutation(9)[:count], rng.uniform(0, 250, (20, 2))
    corners = np.stack([cells % 3, cells // 3], axis=1) * 100
    objects = np.concatenate([corners, corners + rng.uniform(30, 95, (count, 2))], axis=1)
    near = np.repeat(objects, 6, axis=0) + rng.normal(0, 8, (count * 6, 4))
    proposals = np.concatenate([near, np.concatenate([far, far + rng.uniform(20, 90, (20, 2))], axis=1)])
    return record(objects, rng.permutation(proposals[(proposals[:, 2:] > proposals[:, :2]).all(axis=1)]))


def pycocotools_recall(records: Sequence[ProposalRecord], limits: Sequence[int]) -> dict[str, float]:
    """The same figures from pycocotools, without regard to classes."""

    def entries(boxes: Any, image: int) -> list[dict[str, Any]]:
        shared = {"image_id": image, "category_id": 1, "iscrowd": 0}
        return [
            {**shared, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for x1, y1, x2, y2 in boxes.astype(np.float64).tolist()
        ]

    objects, proposals = [], []
    for image, item in enumerate(records, start=1):
        objects += [entry | {"id": len(objects) + i} for i, entry in enumerate(entries(item.gt_boxes, image), start=1)]
        proposals += [entry | {"score": 1 - i / 1000} for i, entry in enumerate(entries(item.boxes, image))]
    truth: Any = COCO()  # its stubs want every field of the format
    images = [{"id": image} for image in range(1, len(records) + 1)]
    truth.dataset = {"images": images, "annotations": objects, "categories": [{"id": 1}], "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(proposals), "bbox")
        run.params.useCats, run.params.maxDets = 0, list(limits)
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    recall = run.eval["recall"][:, 0, 0, :].T  # (limits, thresholds)
    figures = zip(limits, recall, strict=True)
    return {key: value for n, row in figures for key, value in ((f"AR{n}", row.mean()), (f"R50_{n}", row[0]))}


class TestAgainstPycocotools:
    """pycocotools lets the proposals choose in the order of their scores, anew at each threshold; here the pairs of the
    highest IoU come first, once.  The two agree where no proposal can have two objects at IoU 0.5, as where objects
    are disjoint: an IoU of 0.5 needs half of the proposal.
    """

    @pytest.mark.parametrize("seed", range(4))
    def test_agrees_on_disjoint_objects(self, seed: int) -> None:
        rng, limits = np.random.default_rng(seed), [5, 20, 100]
        records = [random_record(rng) for _ in range(12)]
        ours = average_recall(records, limits=limits)
        assert ours == pytest.approx(pycocotools_recall(records, limits))
        assert 0.05 < ours["AR5"] < ours["AR20"] < ours["AR100"] < 1

    def test_differs_where_a_better_scored_proposal_takes_the_object_of_a_nearer_one(self) -> None:
        # pycocotools: up to 0.7 the first proposal takes the first object, and the second is left without; above, the
        # second proposal takes it.  Always one of two.
        assert pycocotools_recall([record(*OVERLAPPING)], [2]) == pytest.approx({"AR2": 0.5, "R50_2": 0.5})
