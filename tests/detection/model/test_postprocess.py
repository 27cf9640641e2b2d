"""Mirrors detection/model/postprocess.py."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.boxes import iou
from detection.model.box_stage import ScoredBoxes
from detection.model.postprocess import Postprocessor, rescale
from detection.model.select import as_on_gpu
from detection.structures import Detections

SQUARE, SHIFTED, FAR = (0.0, 0, 10, 10), (0.0, 0, 10, 8), (50.0, 50, 60, 60)  # IoU of the first two: 0.8


def one(scores: Tensor, boxes: Tensor) -> ScoredBoxes:
    """One image with ``scores`` (P, K) and ``boxes`` (P, K or 1, 4)."""
    return ScoredBoxes(scores[None], boxes[None], torch.ones(1, len(scores), dtype=torch.bool))


def batch(*images: ScoredBoxes) -> ScoredBoxes:
    """Several images, of which those with fewer regions are padded by the best that there is: it must not count."""
    most = max(image.scores.shape[1] for image in images)

    def pad(values: Tensor, value: float) -> Tensor:
        return torch.cat([values, values.new_full((1, most - values.shape[1], *values.shape[2:]), value)], dim=1)

    boxes = [pad(image.boxes, 0) for image in images]
    for rows, image in zip(boxes, images, strict=True):
        rows[:, image.boxes.shape[1] :, ..., 2:] = 10
    scores, valid = [pad(image.scores, 1.0) for image in images], [pad(image.valid, 0) for image in images]
    return ScoredBoxes(torch.cat(scores), torch.cat(boxes), torch.cat(valid))


def process(scored: ScoredBoxes, **options: Any) -> Detections:
    """The detections of one image."""
    (found,) = Postprocessor(**options)(scored).ragged()
    return found


def scored(scores: list[list[float]], boxes: list[tuple[float, ...]]) -> ScoredBoxes:
    """Every class of a region has the same box."""
    rows = torch.tensor(boxes).reshape(-1, 1, 4)
    return one(torch.tensor(scores), rows.expand(-1, len(scores[0]), -1))


def rows_of(detections: Detections) -> list[tuple[float, int]]:
    return [
        (round(s, 4), label) for s, label in zip(detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ]


def test_nms_works_within_a_class_only() -> None:
    found = process(scored([[0.6, 0.7], [0.9, 0.3], [0.8, 0.0]], [SQUARE, SHIFTED, FAR]), nms_iou=0.5)
    assert rows_of(found) == [(0.9, 0), (0.8, 0), (0.7, 1)]
    torch.testing.assert_close(found.boxes, torch.tensor([SHIFTED, FAR, SQUARE]))


def test_boxes_at_most_as_near_as_the_threshold_stay() -> None:
    boxes = scored([[0.6], [0.9]], [SQUARE, SHIFTED])
    assert len(process(boxes, nms_iou=0.79)) == 1
    assert len(process(boxes, nms_iou=0.81)) == 2


def test_score_must_exceed_the_threshold() -> None:
    found = process(scored([[0.5, 0.5001], [0.4999, 0.0]], [SQUARE, FAR]), score_threshold=0.5)
    assert rows_of(found) == [(0.5001, 1)]


def test_best_detections_of_all_classes_are_kept() -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(3)]
    found = process(scored([[0.1, 0.9], [0.8, 0.2], [0.7, 0.6]], boxes), max_detections=4)
    assert rows_of(found) == [(0.9, 1), (0.8, 0), (0.7, 0), (0.6, 1)]


def test_every_class_has_its_own_box() -> None:
    boxes = torch.tensor([[SQUARE, FAR]])
    found = process(one(torch.tensor([[0.3, 0.6]]), boxes))
    assert rows_of(found) == [(0.6, 1), (0.3, 0)]
    torch.testing.assert_close(found.boxes, torch.tensor([FAR, SQUARE]))


def test_empty_boxes_are_no_detections() -> None:
    found = process(scored([[0.9], [0.8], [0.7]], [(5.0, 0, 5, 10), (0.0, 7, 10, 7), SQUARE]))
    assert rows_of(found) == [(0.7, 0)]


@pytest.mark.parametrize("regions", [0, 3])
def test_nothing_found(regions: int) -> None:
    found = process(one(torch.ones(regions, 4), torch.zeros(regions, 4, 4)), score_threshold=1.0)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == torch.int64


class TestVoting:
    """Boxes 20 wide and 10 high unless said otherwise; shifted by d pixels to the right, two overlap by IoU
    (20 - d) / (20 + d).

    Row  box                    class 0  class 1
    0    A  0, 0, 20, 10        0.8      0.3
    1    B  4, 0, 24, 10        0.6      -        IoU with A 16 / 24 = 0.667: removed by it, and its voter
    2    C  10, 0, 30, 10       0.4      -        IoU with A 10 / 30 = 0.333: removed by it, but no voter at 0.5
    3    D  2, 0, 22, 10        0.04     0.9      class 0 below the score threshold; class 1 removes A's, IoU 18 / 22
    4    F  100, 100, 120, 110  0.5      -
    5    G  100, 105, 120, 115  0.3      -        IoU with F 100 / 300 = 0.333: removed by it, but no voter at 0.5
    6    H  100, 102, 120, 112  -        0.2      near F, but of the other class: its own detection
    7    J  100, 100, 120, 105  0.1      -        half of F, IoU 0.5: removed by it, and just its voter
    """

    scores = ((0.8, 0.3), (0.6, 0), (0.4, 0), (0.04, 0.9), (0.5, 0), (0.3, 0), (0, 0.2), (0.1, 0))
    boxes = (
        (0.0, 0, 20, 10),
        (4.0, 0, 24, 10),
        (10.0, 0, 30, 10),
        (2.0, 0, 22, 10),
        (100.0, 100, 120, 110),
        (100.0, 105, 120, 115),
        (100.0, 102, 120, 112),
        (100.0, 100, 120, 105),
    )
    page = scored([list(row) for row in scores], list(boxes))
    kept = ((0.9, 1), (0.8, 0), (0.5, 0), (0.2, 1))  # D, A, F, H
    page3 = scored([[*row, 0] for row in scores], list(boxes))  # with a third class, of which there is none

    def test_worked_example(self) -> None:
        found = process(self.page, vote_iou=0.5)
        assert rows_of(found) == [*self.kept]  # scores and labels stay those of the boxes that NMS kept
        expected = [
            [1.5, 0, 21.5, 10],  # D and A of class 1: (0.9 * 2 + 0.3 * 0) / 1.2 = 1.5
            [12 / 7, 0, 20 + 12 / 7, 10],  # A and B: (0.8 * 0 + 0.6 * 4) / 1.4 = 12 / 7
            [100, 100, 120, 655 / 6],  # F and J: (0.5 * 110 + 0.1 * 105) / 0.6 = 65.5 / 0.6
            [100, 102, 120, 112],  # H alone
        ]
        torch.testing.assert_close(found.boxes, torch.tensor(expected))

    def test_lower_overlap_brings_more_voters(self) -> None:
        found = process(self.page, vote_iou=0.3)
        assert rows_of(found) == [*self.kept]
        x1 = (0.6 * 4 + 0.4 * 10) / 1.8  # A, B, C
        expected = [
            [1.5, 0, 21.5, 10],
            [x1, 0, 20 + x1, 10],
            # F, J, G: y1 (0.5 * 100 + 0.1 * 100 + 0.3 * 105) / 0.9, y2 (0.5 * 110 + 0.1 * 105 + 0.3 * 115) / 0.9
            [100, 91.5 / 0.9, 120, 100 / 0.9],
            [100, 102, 120, 112],
        ]
        torch.testing.assert_close(found.boxes, torch.tensor(expected))

    def test_no_voting_leaves_the_boxes_of_nms(self) -> None:
        found = process(self.page)
        assert rows_of(found) == [*self.kept]
        assert torch.equal(found.boxes, torch.tensor([self.boxes[row] for row in (3, 0, 4, 6)]))

    def test_only_equal_boxes_vote_at_one(self) -> None:
        # Equal but for the rounding of the mean.
        voted, plain = process(self.page, vote_iou=1.0), process(self.page)
        assert torch.equal(voted.scores, plain.scores)
        assert torch.equal(voted.labels, plain.labels)
        torch.testing.assert_close(voted.boxes, plain.boxes, rtol=1e-6, atol=0)

    def test_boxes_beyond_the_limit_of_detections_still_vote(self) -> None:
        found = process(self.page, vote_iou=0.5, max_detections=1)
        assert rows_of(found) == [(0.9, 1)]
        torch.testing.assert_close(found.boxes, torch.tensor([[1.5, 0, 21.5, 10]]))

    def test_voters_may_share_a_box_with_several_detections(self) -> None:
        # NMS at 0.8 keeps A and B, which vote for each other: (0.8 * 0 + 0.6 * 4) / 1.4; C is B's voter too
        # (IoU 14 / 26 = 0.538): (0.8 * 0 + 0.6 * 4 + 0.4 * 10) / 1.8.
        found = process(self.page, nms_iou=0.8, vote_iou=0.5)
        assert rows_of(found)[1:3] == [(0.8, 0), (0.6, 0)]
        torch.testing.assert_close(found.boxes[1:3, 0], torch.tensor([2.4 / 1.4, 6.4 / 1.8]))

    def test_class_specific_boxes_vote_for_their_own_class(self) -> None:
        boxes = torch.tensor([[SQUARE, FAR], [SHIFTED, FAR]])
        found = process(one(torch.tensor([[0.6, 0.3], [0.2, 0.1]]), boxes), vote_iou=0.5)
        assert rows_of(found) == [(0.6, 0), (0.3, 1)]
        # (0.6 * 10 + 0.2 * 8) / 0.8 = 9.5
        torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 9.5], [50, 50, 60, 60]]))

    @pytest.mark.parametrize("regions", [0, 3])
    def test_nothing_found(self, regions: int) -> None:
        boxes = one(torch.ones(regions, 4), torch.zeros(regions, 4, 4))
        found = process(boxes, score_threshold=1.0, vote_iou=0.5)
        assert found.boxes.shape == (0, 4)
        assert len(found) == 0

    def test_tiny_scores_give_finite_boxes(self) -> None:
        found = process(scored([[1e-30], [1e-30]], [SQUARE, SHIFTED]), score_threshold=0.0, vote_iou=0.5)
        torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 9]]))


def detections(boxes: Tensor) -> Detections:
    return Detections(boxes=boxes, scores=torch.rand(len(boxes)), labels=torch.arange(len(boxes)))


def test_rescale_by_hand() -> None:
    found = detections(torch.tensor([[10.0, 20, 30, 40]]))
    moved = rescale(found, (100, 200), (50, 600))  # half as high, three times as wide
    torch.testing.assert_close(moved.boxes, torch.tensor([[30.0, 10, 90, 20]]))
    assert moved.scores is found.scores
    assert moved.labels is found.labels
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 20, 30, 40]]))


def test_rescale_takes_keypoints_along() -> None:
    keypoints = torch.tensor([[[10.0, 20, 0.5], [30, 40, 0.25]]])
    moved = rescale(replace(detections(torch.tensor([[10.0, 20, 30, 40]])), keypoints=keypoints), (100, 200), (50, 600))
    assert moved.keypoints is not None
    assert moved.keypoints.tolist() == [[[30.0, 10, 0.5], [90, 20, 0.25]]]


def test_rescale_keeps_the_whole_image_whole() -> None:
    moved = rescale(detections(torch.tensor([[0.0, 0, 1000, 750]])), (750, 1000), (333, 499))
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 0, 499, 333]]))


def test_rescale_nothing() -> None:
    assert rescale(detections(torch.zeros(0, 4)), (10, 10), (20, 20)).boxes.shape == (0, 4)


# Soft-NMS


def test_soft_nms_lowers_scores_by_hand() -> None:
    # IoU 0.8 of the first two: the worse keeps 0.6 exp(-0.64 / 0.5); the third does not touch them.
    found = process(scored([[0.9], [0.6], [0.5]], [SQUARE, SHIFTED, FAR]), soft_nms_sigma=0.5)
    assert rows_of(found) == [(0.9, 0), (0.5, 0), (round(0.6 * math.exp(-0.64 / 0.5), 4), 0)]
    torch.testing.assert_close(found.boxes, torch.tensor([SQUARE, FAR, SHIFTED]))


def test_soft_nms_lets_every_better_box_count() -> None:
    # Three equal boxes: the second falls by exp(-1 / sigma), the third twice.
    found = process(scored([[0.9], [0.8], [0.7]], [SQUARE] * 3), soft_nms_sigma=2.0, score_threshold=0.01)
    fall = math.exp(-1 / 2)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8 * fall, 0.7 * fall**2])


def test_soft_nms_with_a_sigma_that_leaves_nothing_of_a_score() -> None:
    given = scored([[0.9], [0.8], [0.7], [0.6], [0.5]], [SQUARE, SQUARE, SHIFTED, FAR, FAR])
    assert rows_of(process(given, soft_nms_sigma=1e-4)) == [(0.9, 0), (0.6, 0)]


def test_soft_nms_takes_classes_apart_and_drops_what_falls_to_the_threshold() -> None:
    rows = scored([[0.9, 0.0], [0.6, 0.8]], [SQUARE, SHIFTED])
    found = process(rows, soft_nms_sigma=0.5, score_threshold=0.2)
    assert rows_of(found) == [(0.9, 0), (0.8, 1)]


def test_soft_nms_of_nothing() -> None:
    assert len(process(scored([[0.0]], [SQUARE]), soft_nms_sigma=0.5)) == 0


def random_boxes(number: int, classes: int) -> ScoredBoxes:
    """Boxes that overlap a good deal, each of one class."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(number, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + 20 + 20 * torch.rand(number, 2, generator=random)], dim=1)
    scores = torch.zeros(number, classes)
    scores[torch.arange(number), torch.arange(number) % classes] = torch.rand(number, generator=random)
    return one(scores, boxes[:, None].expand(-1, classes, -1))


@pytest.mark.parametrize("most", [10, 1000])
def test_soft_nms_equals_the_whole_matrix_worked_through(most: int) -> None:
    given = random_boxes(150, 3)
    boxes, labels = given.boxes[0, :, 0], torch.arange(150) % 3
    scores = given.scores[0].max(dim=1).values
    waiting = set((scores > 0.05).nonzero().flatten().tolist())
    pairs = torch.exp(-iou(boxes, boxes).square() / 0.5)
    while waiting:
        best = max(waiting, key=lambda row: float(scores[row]))
        waiting.remove(best)
        for row in waiting:
            if labels[row] == labels[best]:
                scores[row] *= pairs[best, row]
    order = [row for row in scores.argsort(descending=True).tolist() if scores[row] > 0.05][:most]
    found = process(given, soft_nms_sigma=0.5, max_detections=most)
    assert torch.equal(found.boxes, boxes[order])
    torch.testing.assert_close(found.scores, scores[order])


def test_soft_nms_of_many_boxes_needs_no_matrix_of_them() -> None:
    # 40,000 boxes with each other: 6.4 GB per float, several times.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    assert len(process(random_boxes(40_000, 1), soft_nms_sigma=0.5)) == 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


# Several images


OPTIONS = [
    {},
    {"max_detections": 2},
    {"vote_iou": 0.5},
    {"soft_nms_sigma": 0.5},
    {"score_threshold": 0.0, "max_detections": 1000, "vote_iou": 0.3},
]


@pytest.mark.parametrize("path", [nullcontext, as_on_gpu], ids=["cpu", "gpu"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_image_of_a_batch_is_as_if_alone(
    options: dict[str, Any], path: Callable[[], AbstractContextManager[None]]
) -> None:
    images = [random_boxes(90, 3), scored([[0.0, 0.0, 0.0]], [SQUARE]), TestVoting.page3, random_boxes(7, 3)]
    alone = [process(image, **options) for image in images]
    with path():
        found = Postprocessor(**options)(batch(*images))
    assert len(alone[1]) == 0 < len(alone[3])
    assert found.boxes.isfinite().all()
    assert (found.scores[~found.valid] == -torch.inf).all()
    for own, expected in zip(found.ragged(), alone, strict=True):
        assert torch.equal(own.labels, expected.labels)
        assert torch.equal(own.scores, expected.scores)
        torch.testing.assert_close(own.boxes, expected.boxes, rtol=1e-6, atol=0)


@pytest.mark.parametrize("most", [1, 4, 5, 100])
def test_equal_scores_go_by_region_and_class(most: int) -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]
    found = process(scored([[0.3, 0.3], [0.3, 0.6], [0.3, 0.3], [0.2, 0.3]], boxes), max_detections=most)
    expected = [(1, 1), (0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0)]
    assert list(zip((found.boxes[:, 0] / 20).int().tolist(), found.labels.tolist(), strict=True)) == expected[:most]


def test_one_box_for_all_classes_is_that_of_each() -> None:
    given = random_boxes(50, 3)
    agnostic = ScoredBoxes(given.scores, given.boxes[:, :, :1], given.valid)
    for vote_iou in (None, 0.5):
        wanted, found = (process(each, vote_iou=vote_iou) for each in (given, agnostic))
        assert torch.equal(found.boxes, wanted.boxes)
        assert torch.equal(found.labels, wanted.labels)
