"""Mirrors detection/evaluation/recall.py."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.recall import ProposalRecord, average_recall

Rows = Sequence[Sequence[float]]


def boxes_of(rows: Rows | NDArray[Any]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def record(objects: Rows | NDArray[Any], proposals: Rows | NDArray[Any]) -> ProposalRecord:
    return ProposalRecord(gt_boxes=boxes_of(objects), boxes=boxes_of(proposals))


def part(share: float, *, at: float = 0) -> list[float]:
    """A box inside the square of 100 at x = ``at`` whose IoU with it is ``share``."""
    return [at, 0, at + 100 * share, 100]


SQUARE, SECOND = [0, 0, 100, 100], [1000, 0, 1100, 100]


class TestByHand:
    """Ten thresholds, 0.5, 0.55, ... 0.95."""

    @pytest.mark.parametrize(
        ("share", "passed"), [(0.49, 0), (0.51, 1), (0.62, 3), (0.73, 5), (0.87, 8), (0.96, 10), (1, 10)]
    )
    def test_one_object_counts_at_the_thresholds_that_its_iou_reaches(self, share: float, passed: int) -> None:
        found = average_recall([record([SQUARE], [part(share)])], limits=[1])
        assert found == {"AR1": pytest.approx(passed / 10), "R50_1": float(share > 0.5)}

    def test_iou_at_the_threshold_is_enough(self) -> None:
        assert average_recall([record([SQUARE], [part(0.5)])], limits=[1])["R50_1"] == 1

    def test_worse_proposals_of_a_found_object_change_nothing(self) -> None:
        proposals = [part(0.6), part(0.96), part(0.9), [500, 500, 600, 600]]
        assert average_recall([record([SQUARE], proposals)], limits=[4])["AR4"] == pytest.approx(1)

    def test_limits_take_the_first(self) -> None:
        proposals = [[500, 500, 600, 600], part(0.62), part(0.87, at=1000), part(0.96)]
        found = average_recall([record([SQUARE, SECOND], proposals)], limits=[1, 2, 3, 1000])
        assert found == {
            "AR1": 0,
            "R50_1": 0,
            "AR2": pytest.approx(3 / 20),
            "R50_2": 0.5,
            "AR3": pytest.approx(11 / 20),
            "R50_3": 1,
            "AR1000": pytest.approx(18 / 20),
            "R50_1000": 1,
        }

    def test_limits_of_the_paper_are_the_default(self) -> None:
        found = average_recall([record([SQUARE], [SQUARE])])
        assert found == {"AR100": 1, "R50_100": 1, "AR300": 1, "R50_300": 1, "AR1000": 1, "R50_1000": 1}

    def test_a_proposal_finds_one_object_only(self) -> None:
        objects = [part(1), part(0.8)]  # IoU 0.8 with each other
        found = average_recall([record(objects, [part(0.98)])], limits=[1])
        assert found == {"AR1": pytest.approx(0.5), "R50_1": 0.5}
        beside = average_recall([record(objects, [part(0.98), [500, 500, 600, 600]])], limits=[2])
        assert beside == {"AR2": pytest.approx(0.5), "R50_2": 0.5}
        both = average_recall([record(objects, [part(0.98), part(0.9)])], limits=[2])  # the second's IoU: 0.8 / 0.9
        assert both == {"AR2": pytest.approx((10 + 8) / 20), "R50_2": 1}

    def test_pairs_of_the_highest_iou_come_first_whatever_the_scores(self) -> None:
        # The first proposal has IoU 8.4 / 11.6 = 0.72 and 7.6 / 12.4 = 0.61 with the objects; the second is the first
        # object, and takes it, so that the first proposal finds the second object at 0.5, 0.55 and 0.6.
        objects = [[0, 0, 10, 10], [4, 0, 14, 10]]
        found = average_recall([record(objects, [[1.6, 0, 11.6, 10], [0, 0, 10, 10]])], limits=[2])
        assert found == {"AR2": pytest.approx((10 + 3) / 20), "R50_2": 1}

    def test_objects_of_all_images_weigh_the_same(self) -> None:
        records = [record([SQUARE, SECOND, [0, 500, 100, 600]], [SQUARE]), record([SQUARE], [SQUARE])]
        assert average_recall(records, limits=[10])["AR10"] == pytest.approx(2 / 4)

    def test_the_limit_is_per_image(self) -> None:
        records = [record([SQUARE], [SQUARE]), record([SECOND], [SECOND])]
        assert average_recall(records, limits=[1])["AR1"] == 1

    def test_proposals_of_another_image_find_nothing(self) -> None:
        assert average_recall([record([SQUARE], []), record([], [SQUARE])], limits=[10])["AR10"] == 0

    def test_arguments_stay(self) -> None:
        given = record([SQUARE, SECOND], [part(0.7), SECOND])
        average_recall([given], limits=[1, 2])
        np.testing.assert_array_equal(given.boxes, boxes_of([part(0.7), SECOND]))
        np.testing.assert_array_equal(given.gt_boxes, boxes_of([SQUARE, SECOND]))


class TestNothing:
    """No objects, no proposals, no images."""

    @pytest.mark.parametrize("records", [[], [record([], [])], [record([], [SQUARE]), record([], [])]])
    def test_no_objects_give_no_figure(self, records: list[ProposalRecord]) -> None:
        found = average_recall(records, limits=[10, 20])
        assert list(found) == ["AR10", "R50_10", "AR20", "R50_20"]
        assert all(math.isnan(value) for value in found.values())

    def test_no_proposals_find_nothing(self) -> None:
        assert average_recall([record([SQUARE, SECOND], [])], limits=[10]) == {"AR10": 0, "R50_10": 0}

    def test_images_without_objects_do_not_count(self) -> None:
        records = [record([SQUARE], [SQUARE]), record([], [SQUARE])]
        assert average_recall(records, limits=[10])["AR10"] == 1


def random_record(rng: np.random.Generator, *, apart: bool) -> ProposalRecord:
    """Up to nine objects, disjoint if ``apart``, each with proposals around it, and proposals anywhere."""
    count = int(rng.integers(0, 10))
    cells = rng.permutation(9)[:count]
    corners = np.stack([cells % 3, cells // 3], axis=1) * 100 if apart else rng.uniform(0, 60, (count, 2))
    objects = np.concatenate([corners, corners + rng.uniform(30, 95, (count, 2))], axis=1)
    near = np.repeat(objects, 6, axis=0) + rng.normal(0, 8, (count * 6, 4))
    far = rng.uniform(0, 250, (20, 2))
    proposals = np.concatenate([near, np.concatenate([far, far + rng.uniform(20, 90, (20, 2))], axis=1)])
    proposals = proposals[(proposals[:, 2:] > proposals[:, :2]).all(axis=1)]
    return record(objects, rng.permutation(proposals))


def pycocotools_recall(records: Sequence[ProposalRecord], limits: Sequence[int]) -> dict[str, float]:
    """The same figures from pycocotools, without regard to classes."""

    def entries(boxes: NDArray[np.float32], image: int) -> list[dict[str, Any]]:
        rows = boxes.astype(np.float64).tolist()
        return [
            {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for x1, y1, x2, y2 in rows
        ]

    objects, proposals = [], []
    for image, item in enumerate(records, start=1):
        objects += [entry | {"iscrowd": 0} for entry in entries(item.gt_boxes, image)]
        ranked = entries(item.boxes, image)
        proposals += [entry | {"score": 1 - place / 1000} for place, entry in enumerate(ranked)]
    truth: Any = COCO()  # its stubs want every field of the format
    truth.dataset = {
        "images": [{"id": image} for image in range(1, len(records) + 1)],
        "annotations": [entry | {"id": number} for number, entry in enumerate(objects, start=1)],
        "categories": [{"id": 1, "name": "object"}],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(proposals), "bbox")
        run.params.useCats, run.params.maxDets = 0, list(limits)
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    recall = run.eval["recall"][:, 0, 0, :]  # (thresholds, limits)
    figures: dict[str, float] = {}
    for column, limit in enumerate(limits):
        figures |= {f"AR{limit}": float(recall[:, column].mean()), f"R50_{limit}": float(recall[0, column])}
    return figures


class TestAgainstPycocotools:
    """pycocotools lets the proposals choose in the order of their scores, anew at each threshold; here the pairs of the
    highest IoU come first, once.  The two agree where no proposal can have two objects at IoU 0.5, as where objects
    are disjoint: an IoU of 0.5 needs half of the proposal.
    """

    @pytest.mark.parametrize("seed", range(4))
    def test_agrees_on_disjoint_objects(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        records = [random_record(rng, apart=True) for _ in range(12)]
        limits = [5, 20, 100]
        ours = average_recall(records, limits=limits)
        assert ours == pytest.approx(pycocotools_recall(records, limits))
        assert 0.05 < ours["AR5"] < ours["AR20"] < ours["AR100"] < 1

    def test_differs_where_a_better_scored_proposal_takes_the_object_of_a_nearer_one(self) -> None:
        records = [record([[0, 0, 10, 10], [4, 0, 14, 10]], [[1.6, 0, 11.6, 10], [0, 0, 10, 10]])]
        # pycocotools: up to 0.7 the first proposal takes the first object, and the second is left without; above, the
        # second proposal takes it.  Always one of two.
        assert pycocotools_recall(records, [2]) == pytest.approx({"AR2": 0.5, "R50_2": 0.5})
        assert average_recall(records, limits=[2]) == pytest.approx({"AR2": 0.65, "R50_2": 1.0})

    def test_stays_near_on_crowded_objects(self) -> None:
        rng = np.random.default_rng(0)
        records = [random_record(rng, apart=False) for _ in range(20)]
        ours, theirs = average_recall(records, limits=[20, 100]), pycocotools_recall(records, [20, 100])
        assert ours == pytest.approx(theirs, abs=0.1)
