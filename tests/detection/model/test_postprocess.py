"""Mirrors detection/model/postprocess.py."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from torch import Tensor

from detection.boxes import iou
from detection.model.box_stage import ScoredBoxes
from detection.model.postprocess import Postprocessor, rescale
from detection.structures import Detections

SQUARE, SHIFTED, FAR = (0.0, 0, 10, 10), (0.0, 0, 10, 8), (50.0, 50, 60, 60)  # IoU of the first two: 0.8


def scored(scores: list[list[float]], boxes: list[tuple[float, ...]]) -> ScoredBoxes:
    """Every class of a region has the same box."""
    rows = torch.tensor(boxes).reshape(-1, 1, 4)
    return ScoredBoxes(torch.tensor(scores), rows.expand(-1, len(scores[0]), -1))


def rows_of(detections: Detections) -> list[tuple[float, int]]:
    return [
        (round(s, 4), label) for s, label in zip(detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ]


def test_nms_works_within_a_class_only() -> None:
    found = Postprocessor(nms_iou=0.5)(scored([[0.6, 0.7], [0.9, 0.3], [0.8, 0.0]], [SQUARE, SHIFTED, FAR]))
    assert rows_of(found) == [(0.9, 0), (0.8, 0), (0.7, 1)]
    torch.testing.assert_close(found.boxes, torch.tensor([SHIFTED, FAR, SQUARE]))


def test_boxes_at_most_as_near_as_the_threshold_stay() -> None:
    boxes = scored([[0.6], [0.9]], [SQUARE, SHIFTED])
    assert len(Postprocessor(nms_iou=0.79)(boxes)) == 1
    assert len(Postprocessor(nms_iou=0.81)(boxes)) == 2


def test_score_must_exceed_the_threshold() -> None:
    found = Postprocessor(score_threshold=0.5)(scored([[0.5, 0.5001], [0.4999, 0.0]], [SQUARE, FAR]))
    assert rows_of(found) == [(0.5001, 1)]


def test_best_detections_of_all_classes_are_kept() -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(3)]
    found = Postprocessor(max_detections=4)(scored([[0.1, 0.9], [0.8, 0.2], [0.7, 0.6]], boxes))
    assert rows_of(found) == [(0.9, 1), (0.8, 0), (0.7, 0), (0.6, 1)]


def test_every_class_has_its_own_box() -> None:
    boxes = torch.tensor([[SQUARE, FAR]])
    found = Postprocessor()(ScoredBoxes(torch.tensor([[0.3, 0.6]]), boxes))
    assert rows_of(found) == [(0.6, 1), (0.3, 0)]
    torch.testing.assert_close(found.boxes, torch.tensor([FAR, SQUARE]))


def test_empty_boxes_are_no_detections() -> None:
    found = Postprocessor()(scored([[0.9], [0.8], [0.7]], [(5.0, 0, 5, 10), (0.0, 7, 10, 7), SQUARE]))
    assert rows_of(found) == [(0.7, 0)]


@pytest.mark.parametrize("regions", [0, 3])
def test_nothing_found(regions: int) -> None:
    found = Postprocessor(score_threshold=1.0)(ScoredBoxes(torch.ones(regions, 4), torch.zeros(regions, 4, 4)))
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

    def test_worked_example(self) -> None:
        found = Postprocessor(vote_iou=0.5)(self.page)
        assert rows_of(found) == [*self.kept]  # scores and labels stay those of the boxes that NMS kept
        expected = [
            [1.5, 0, 21.5, 10],  # D and A of class 1: (0.9 * 2 + 0.3 * 0) / 1.2 = 1.5
            [12 / 7, 0, 20 + 12 / 7, 10],  # A and B: (0.8 * 0 + 0.6 * 4) / 1.4 = 12 / 7
            [100, 100, 120, 655 / 6],  # F and J: (0.5 * 110 + 0.1 * 105) / 0.6 = 65.5 / 0.6
            [100, 102, 120, 112],  # H alone
        ]
        torch.testing.assert_close(found.boxes, torch.tensor(expected))

    def test_lower_overlap_brings_more_voters(self) -> None:
        found = Postprocessor(vote_iou=0.3)(self.page)
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
        found = Postprocessor()(self.page)
        assert rows_of(found) == [*self.kept]
        assert torch.equal(found.boxes, torch.tensor([self.boxes[row] for row in (3, 0, 4, 6)]))

    def test_only_equal_boxes_vote_at_one(self) -> None:
        # Equal but for the rounding of the mean.
        voted, plain = Postprocessor(vote_iou=1.0)(self.page), Postprocessor()(self.page)
        assert torch.equal(voted.scores, plain.scores)
        assert torch.equal(voted.labels, plain.labels)
        torch.testing.assert_close(voted.boxes, plain.boxes, rtol=1e-6, atol=0)

    def test_boxes_beyond_the_limit_of_detections_still_vote(self) -> None:
        found = Postprocessor(vote_iou=0.5, max_detections=1)(self.page)
        assert rows_of(found) == [(0.9, 1)]
        torch.testing.assert_close(found.boxes, torch.tensor([[1.5, 0, 21.5, 10]]))

    def test_voters_may_share_a_box_with_several_detections(self) -> None:
        # NMS at 0.8 keeps A and B, which vote for each other: (0.8 * 0 + 0.6 * 4) / 1.4; C is B's voter too
        # (IoU 14 / 26 = 0.538): (0.8 * 0 + 0.6 * 4 + 0.4 * 10) / 1.8.
        found = Postprocessor(nms_iou=0.8, vote_iou=0.5)(self.page)
        assert rows_of(found)[1:3] == [(0.8, 0), (0.6, 0)]
        torch.testing.assert_close(found.boxes[1:3, 0], torch.tensor([2.4 / 1.4, 6.4 / 1.8]))

    def test_class_specific_boxes_vote_for_their_own_class(self) -> None:
        boxes = torch.tensor([[SQUARE, FAR], [SHIFTED, FAR]])
        found = Postprocessor(vote_iou=0.5)(ScoredBoxes(torch.tensor([[0.6, 0.3], [0.2, 0.1]]), boxes))
        assert rows_of(found) == [(0.6, 0), (0.3, 1)]
        # (0.6 * 10 + 0.2 * 8) / 0.8 = 9.5
        torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 9.5], [50, 50, 60, 60]]))

    @pytest.mark.parametrize("regions", [0, 3])
    def test_nothing_found(self, regions: int) -> None:
        boxes = ScoredBoxes(torch.ones(regions, 4), torch.zeros(regions, 4, 4))
        found = Postprocessor(score_threshold=1.0, vote_iou=0.5)(boxes)
        assert found.boxes.shape == (0, 4)
        assert len(found) == 0

    def test_tiny_scores_give_finite_boxes(self) -> None:
        found = Postprocessor(score_threshold=0.0, vote_iou=0.5)(scored([[1e-30], [1e-30]], [SQUARE, SHIFTED]))
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


def test_rescale_keeps_the_whole_image_whole() -> None:
    moved = rescale(detections(torch.tensor([[0.0, 0, 1000, 750]])), (750, 1000), (333, 499))
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 0, 499, 333]]))


def test_rescale_nothing() -> None:
    assert rescale(detections(torch.zeros(0, 4)), (10, 10), (20, 20)).boxes.shape == (0, 4)


# Soft-NMS


def test_soft_nms_lowers_scores_by_hand() -> None:
    # IoU 0.8 of the first two: the worse keeps 0.6 exp(-0.64 / 0.5); the third does not touch them.
    found = Postprocessor(soft_nms_sigma=0.5)(scored([[0.9], [0.6], [0.5]], [SQUARE, SHIFTED, FAR]))
    assert rows_of(found) == [(0.9, 0), (0.5, 0), (round(0.6 * math.exp(-0.64 / 0.5), 4), 0)]
    torch.testing.assert_close(found.boxes, torch.tensor([SQUARE, FAR, SHIFTED]))


def test_soft_nms_lets_every_better_box_count() -> None:
    # Three equal boxes: the second falls by exp(-1 / sigma), the third twice.
    found = Postprocessor(soft_nms_sigma=2.0, score_threshold=0.01)(scored([[0.9], [0.8], [0.7]], [SQUARE] * 3))
    fall = math.exp(-1 / 2)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8 * fall, 0.7 * fall**2])


def test_soft_nms_takes_classes_apart_and_drops_what_falls_to_the_threshold() -> None:
    rows = scored([[0.9, 0.0], [0.6, 0.8]], [SQUARE, SHIFTED])
    found = Postprocessor(soft_nms_sigma=0.5, score_threshold=0.2)(rows)
    assert rows_of(found) == [(0.9, 0), (0.8, 1)]


def test_soft_nms_of_nothing() -> None:
    assert len(Postprocessor(soft_nms_sigma=0.5)(scored([[0.0]], [SQUARE]))) == 0


def random_boxes(number: int, classes: int) -> ScoredBoxes:
    """Boxes that overlap a good deal, each of one class."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(number, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + 20 + 20 * torch.rand(number, 2, generator=random)], dim=1)
    scores = torch.zeros(number, classes)
    scores[torch.arange(number), torch.arange(number) % classes] = torch.rand(number, generator=random)
    return ScoredBoxes(scores, boxes[:, None].expand(-1, classes, -1))


@pytest.mark.parametrize("most", [10, 1000])
def test_soft_nms_equals_the_whole_matrix_worked_through(most: int) -> None:
    given = random_boxes(150, 3)
    boxes, labels = given.boxes[:, 0], torch.arange(150) % 3
    scores = given.scores.max(dim=1).values
    waiting = set((scores > 0.05).nonzero().flatten().tolist())
    pairs = torch.exp(-iou(boxes, boxes).square() / 0.5)
    while waiting:
        best = max(waiting, key=lambda row: float(scores[row]))
        waiting.remove(best)
        for row in waiting:
            if labels[row] == labels[best]:
                scores[row] *= pairs[best, row]
    order = [row for row in scores.argsort(descending=True).tolist() if scores[row] > 0.05][:most]
    found = Postprocessor(soft_nms_sigma=0.5, max_detections=most)(given)
    assert torch.equal(found.boxes, boxes[order])
    torch.testing.assert_close(found.scores, scores[order])


def test_soft_nms_of_many_boxes_needs_no_matrix_of_them() -> None:
    # 40,000 boxes with each other: 6.4 GB per float, several times.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    assert len(Postprocessor(soft_nms_sigma=0.5)(random_boxes(40_000, 1))) == 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
