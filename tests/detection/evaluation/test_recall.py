"""Mirrors detection/evaluation/recall.py."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from detection.evaluation.recall import ProposalRecord, average_recall

Rows = Any  # of (x1, y1, x2, y2)


def proposed(objects: Rows, proposals: Rows) -> ProposalRecord:
    gt_boxes, boxes = (np.array(rows, dtype=np.float32).reshape(-1, 4) for rows in (objects, proposals))
    return ProposalRecord(gt_boxes=gt_boxes, boxes=boxes)


def part(share: float, *, at: float = 0) -> list[float]:
    """A box inside the square of 100 at x = ``at`` whose IoU with it is ``share``."""
    return [at, 0, at + 100 * share, 100]


SQUARE, SECOND, NOWHERE = [0, 0, 100, 100], [1000, 0, 1100, 100], [500, 500, 600, 600]
OVERLAPPING = [[0, 0, 10, 10], [4, 0, 14, 10]], [[1.6, 0, 11.6, 10], [0, 0, 10, 10]]


@pytest.mark.parametrize(
    ("objects", "proposals", "recall", "half"),
    [
        # One object counts at the thresholds 0.5, 0.55, ... 0.95 that its IoU reaches.
        ([SQUARE], [part(0.49)], 0, 0),
        *(([SQUARE], [part(share)], passed / 10, 1) for share, passed in ((0.5, 1), (0.62, 3), (0.87, 8), (1, 10))),
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
    found = average_recall([proposed(objects, proposals)], limits=[4])
    assert found == pytest.approx({"AR4": recall, "R50_4": half})


def test_limits_take_the_first_of_each_image() -> None:
    given = proposed([SQUARE, SECOND], [NOWHERE, part(0.62), part(0.87, at=1000), part(0.96)])
    found = average_recall([given], limits=[1, 2, 3, 1000])
    expected = {"AR1": 0, "AR2": 3 / 20, "AR3": 11 / 20, "AR1000": 18 / 20}
    assert found == pytest.approx(expected | {"R50_1": 0, "R50_2": 0.5, "R50_3": 1, "R50_1000": 1})
    np.testing.assert_array_equal(given.gt_boxes, np.array([SQUARE, SECOND]))
    assert average_recall([proposed([SQUARE], [SQUARE]), proposed([SECOND], [SECOND])], limits=[1])["AR1"] == 1
    names = ["AR100", "R50_100", "AR300", "R50_300", "AR1000", "R50_1000"]  # limits of the paper
    assert [*average_recall([proposed([SQUARE], [SQUARE])])] == names


def test_objects_of_all_images_weigh_the_same_and_images_without_them_do_not_count() -> None:
    records = [proposed([SQUARE, SECOND, NOWHERE], [SQUARE]), proposed([SQUARE], [SQUARE]), proposed([], [SQUARE])]
    assert average_recall(records, limits=[10])["AR10"] == pytest.approx(2 / 4)
    assert average_recall([proposed([SQUARE], []), proposed([], [SQUARE])])["AR100"] == 0  # one of another image
    for nothing in ([], [proposed([], [])], [proposed([], [SQUARE]), proposed([], [])]):
        found = average_recall(nothing, limits=[10, 20])
        assert list(found) == ["AR10", "R50_10", "AR20", "R50_20"]
        assert all(math.isnan(value) for value in found.values())


@pytest.fixture
def of_pycocotools(record, reference) -> Any:
    """Its AR1, AR10 and AR100 of proposals whose scores fall."""

    def recall(items: Sequence[ProposalRecord]) -> dict[str, float]:
        ranked = [zip(item.boxes, np.linspace(1, 0.1, len(item.boxes)), strict=True) for item in items]
        images = [record(i.gt_boxes, [*r], image_id=n) for n, (i, r) in enumerate(zip(items, ranked, strict=True))]
        found = reference(images, ["object"])
        return {name: getattr(found, name) for name in ("AR1", "AR10", "AR100")}

    return recall


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_pycocotools_on_disjoint_objects(seed: int, of_pycocotools) -> None:
    """It lets the proposals choose in the order of their scores, anew at each threshold; here the pairs of the highest
    IoU come first, once.  The two agree where no proposal can have two objects at IoU 0.5, as where objects are
    disjoint: an IoU of 0.5 needs half of the proposal.
    """
    rng, records = np.random.default_rng(seed), []
    for _ in range(12):
        cells, far = rng.permutation(9)[: rng.integers(0, 10)], rng.uniform(0, 250, (20, 2))
        corners = np.stack([cells % 3, cells // 3], axis=1) * 100
        objects = np.concatenate([corners, corners + rng.uniform(30, 95, corners.shape)], axis=1)
        near = np.repeat(objects, 6, axis=0) + rng.normal(0, 8, (len(objects) * 6, 4))
        boxes = np.concatenate([near, np.concatenate([far, far + rng.uniform(20, 90, (20, 2))], axis=1)])
        records.append(proposed(objects, rng.permutation(boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)])))
    ours = average_recall(records, limits=[1, 10, 100])
    assert {name: ours[name] for name in ("AR1", "AR10", "AR100")} == pytest.approx(of_pycocotools(records))
    assert 0 < ours["AR1"] < ours["AR10"] < ours["AR100"] < 1
    # Where objects overlap, a better scored proposal takes the object of a nearer one there: always one of two.
    assert of_pycocotools([proposed(*OVERLAPPING)])["AR10"] == pytest.approx(0.5)
