"""Mirrors detection/model/postprocess.py."""

import resource
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from detection.boxes import iou
from detection.model.box_stage import ScoredBoxes
from detection.model.postprocess import Postprocessor, rescale
from detection.model.select import as_on_gpu
from detection.structures import Detections

SQUARE, SHIFTED, FAR = (0.0, 0, 10, 10), (0.0, 0, 10, 8), (50.0, 50, 60, 60)  # IoU of the first two: 0.8
THREE = [SQUARE, SHIFTED, FAR]


def one(scores: Any, boxes: Any) -> ScoredBoxes:
    """One image with ``scores`` (P, K) and ``boxes`` (P, K or 1, 4), or (P, 4) where classes share them."""
    scores, boxes = torch.as_tensor(scores), torch.as_tensor(boxes)
    boxes = boxes.reshape(-1, 1, 4).expand(-1, scores.shape[1], -1) if boxes.ndim == 2 else boxes
    return ScoredBoxes(scores[None], boxes[None], torch.ones(1, len(scores), dtype=torch.bool))


def process(scored: ScoredBoxes, **options: Any) -> Detections:
    (found,) = Postprocessor(**options)(scored).ragged()
    return found


def rows_of(detections: Detections) -> list[tuple[float, int]]:
    return list(zip([round(s, 4) for s in detections.scores.tolist()], detections.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("scores", "boxes", "options", "expected"),
    [
        ([[0.6, 0.7], [0.9, 0.3], [0.8, 0.0]], THREE, {"nms_iou": 0.5}, [(0.9, 0), (0.8, 0), (0.7, 1)]),
        ([[0.6], [0.9]], [SQUARE, SHIFTED], {"nms_iou": 0.79}, [(0.9, 0)]),
        ([[0.6], [0.9]], [SQUARE, SHIFTED], {"nms_iou": 0.81}, [(0.9, 0), (0.6, 0)]),
        ([[0.5, 0.5001], [0.4999, 0.0]], [SQUARE, FAR], {"score_threshold": 0.5}, [(0.5001, 1)]),
        ([[0.9], [0.8], [0.7]], [(5.0, 0, 5, 10), (0.0, 7, 10, 7), SQUARE], {}, [(0.7, 0)]),  # empty boxes are none
    ],
)
def test_detections_by_hand(scores, boxes, options, expected) -> None:
    found = process(one(scores, boxes), **options)
    assert rows_of(found) == expected
    rows = [next(row for row, own in enumerate(scores) if score in own) for score, _ in expected]
    torch.testing.assert_close(found.boxes, torch.tensor([boxes[row] for row in rows]))
    found = process(one([[0.3, 0.6]], [[SQUARE, FAR]]))  # every class has its own box
    assert rows_of(found) == [(0.6, 1), (0.3, 0)]
    torch.testing.assert_close(found.boxes, torch.tensor([FAR, SQUARE]))


@pytest.mark.parametrize("most", [1, 4, 5, 100])
def test_the_best_of_all_classes_are_kept_and_equal_scores_go_by_region_and_class(most) -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]
    found = process(one([[0.3, 0.3], [0.3, 0.6], [0.3, 0.3], [0.2, 0.3]], boxes), max_detections=most)
    expected = [(1, 1), (0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0)]
    assert list(zip((found.boxes[:, 0] / 20).int().tolist(), found.labels.tolist(), strict=True)) == expected[:most]


@pytest.mark.parametrize("regions", [0, 3])
@pytest.mark.parametrize("options", [{}, {"vote_iou": 0.5}, {"soft_nms_sigma": 0.5}])
def test_nothing_found(regions, options) -> None:
    found = process(one(torch.ones(regions, 4), torch.zeros(regions, 4, 4)), score_threshold=1.0, **options)
    assert (len(found), found.boxes.shape, found.labels.dtype) == (0, (0, 4), torch.int64)


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

    SCORES = ((0.8, 0.3), (0.6, 0), (0.4, 0), (0.04, 0.9), (0.5, 0), (0.3, 0), (0, 0.2), (0.1, 0))
    BOXES = (
        *[(left, 0, left + 20.0, 10) for left in (0.0, 4, 10, 2)],
        *[(100.0, top, 120, bottom) for top, bottom in ((100, 110), (105, 115), (102, 112), (100, 105))],
    )
    PAGE = one(SCORES, BOXES)
    KEPT = ((0.9, 1), (0.8, 0), (0.5, 0), (0.2, 1))  # D, A, F, H: scores and labels stay those of NMS

    @pytest.mark.parametrize(
        ("vote_iou", "x1", "y"),
        [
            (None, [2, 0], (100, 110)),
            (1.0, [2, 0], (100, 110)),  # only equal boxes vote
            # D and A of class 1: (0.9 * 2 + 0.3 * 0) / 1.2; A and B: (0.8 * 0 + 0.6 * 4) / 1.4; F and J
            (0.5, [1.5, 12 / 7], (100, (0.5 * 110 + 0.1 * 105) / 0.6)),
            # A, B, C; F, J, G: (0.5 * 100 + 0.1 * 100 + 0.3 * 105) / 0.9, (0.5 * 110 + 0.1 * 105 + 0.3 * 115) / 0.9
            (0.3, [1.5, (0.6 * 4 + 0.4 * 10) / 1.8], (91.5 / 0.9, 100 / 0.9)),
        ],
    )
    def test_worked_example(self, vote_iou, x1, y) -> None:
        expected = [*([left, 0, left + 20, 10] for left in x1), [100, y[0], 120, y[1]], [100, 102, 120, 112]]
        for most in (1, 100):  # boxes beyond the limit of detections still vote
            found = process(self.PAGE, vote_iou=vote_iou, max_detections=most)
            assert rows_of(found) == [*self.KEPT][:most]
            torch.testing.assert_close(found.boxes, torch.tensor(expected).float()[:most], rtol=1e-6, atol=0)

    def test_voters_may_share_a_box_and_class_specific_boxes_vote_for_their_own_class(self) -> None:
        # NMS at 0.8 keeps A and B, which vote for each other: (0.8 * 0 + 0.6 * 4) / 1.4; C is B's voter too
        # (IoU 14 / 26 = 0.538): (0.8 * 0 + 0.6 * 4 + 0.4 * 10) / 1.8.
        found = process(self.PAGE, nms_iou=0.8, vote_iou=0.5)
        assert rows_of(found)[1:3] == [(0.8, 0), (0.6, 0)]
        torch.testing.assert_close(found.boxes[1:3, 0], torch.tensor([2.4 / 1.4, 6.4 / 1.8]))
        # Class-specific boxes, and tiny scores
        found = process(one([[0.6, 0.3], [0.2, 0.1]], [[SQUARE, FAR], [SHIFTED, FAR]]), vote_iou=0.5)
        assert rows_of(found) == [(0.6, 0), (0.3, 1)]
        # (0.6 * 10 + 0.2 * 8) / 0.8 = 9.5
        torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 9.5], [50, 50, 60, 60]]))
        found = process(one([[1e-30], [1e-30]], [SQUARE, SHIFTED]), score_threshold=0.0, vote_iou=0.5)
        torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 10, 9]]))


def test_rescale_by_hand() -> None:
    keypoints, scores = torch.tensor([[[10.0, 20, 0.5], [30, 40, 0.25]]]), torch.rand(1)
    found = Detections(torch.tensor([[10.0, 20, 30, 40]]), scores, torch.zeros(1).long(), keypoints=keypoints)
    moved = rescale(found, (100, 200), (50, 600))  # half as high, three times as wide
    torch.testing.assert_close(moved.boxes, torch.tensor([[30.0, 10, 90, 20]]))
    assert (moved.scores is found.scores, moved.labels is found.labels) == (True, True)
    torch.testing.assert_close(moved.keypoints, torch.tensor([[[30.0, 10, 0.5], [90, 20, 0.25]]]))
    assert found.boxes.tolist() == [[10, 20, 30, 40]]
    whole = rescale(replace(found, boxes=torch.tensor([[0.0, 0, 1000, 750]])), (750, 1000), (333, 499))
    torch.testing.assert_close(whole.boxes, torch.tensor([[0.0, 0, 499, 333]]))
    assert rescale(found[:0], (10, 10), (20, 20)).boxes.shape == (0, 4)


def random_boxes(number: int, classes: int) -> ScoredBoxes:
    """Boxes that overlap a good deal, each of one class."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(number, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + 20 + 20 * torch.rand(number, 2, generator=random)], dim=1)
    scores = torch.zeros(number, classes)
    scores[torch.arange(number), torch.arange(number) % classes] = torch.rand(number, generator=random)
    return one(scores, boxes)


@pytest.mark.parametrize(("most", "sigma"), [(10, 0.5), (1000, 0.5), (1000, 2.0), (1000, 1e-4)])
def test_soft_nms_equals_the_whole_matrix_worked_through(most, sigma) -> None:
    given = random_boxes(150, 3)
    boxes, scores = given.boxes[0, :, 0], given.scores[0].max(dim=1).values
    waiting = set((scores > 0.05).nonzero().flatten().tolist())
    pairs = torch.exp(-iou(boxes, boxes).square() / sigma)
    while waiting:
        best = max(waiting, key=lambda row: float(scores[row]))
        waiting.remove(best)
        for row in waiting:
            scores[row] *= pairs[best, row] if row % 3 == best % 3 else 1
    order = [row for row in scores.argsort(descending=True).tolist() if scores[row] > 0.05][:most]
    found = process(given, soft_nms_sigma=sigma, max_detections=most)
    assert torch.equal(found.boxes, boxes[order])
    torch.testing.assert_close(found.scores, scores[order])


def test_soft_nms_of_many_boxes_needs_no_matrix_of_them() -> None:
    # 40,000 boxes with each other: 6.4 GB per float, several times.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    assert len(process(random_boxes(40_000, 1), soft_nms_sigma=0.5)) == 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def batch(*images: ScoredBoxes) -> ScoredBoxes:
    """Several images, of which those with fewer regions are padded by the best that there is: it must not count."""
    valid = pad_sequence([image.valid[0] for image in images], batch_first=True)
    scores = pad_sequence([image.scores[0] for image in images], batch_first=True, padding_value=1.0)
    boxes = pad_sequence([image.boxes[0] for image in images], batch_first=True)
    return ScoredBoxes(scores, torch.where(valid[..., None, None], boxes, torch.tensor(SQUARE)), valid)


LOOSE = {"score_threshold": 0.0, "max_detections": 1000, "vote_iou": 0.3}


@pytest.mark.parametrize("options", [{}, {"max_detections": 2}, {"vote_iou": 0.5}, {"soft_nms_sigma": 0.5}, LOOSE])
def test_each_image_of_a_batch_is_as_if_alone(options) -> None:
    page = one([[*row, 0] for row in TestVoting.SCORES], TestVoting.BOXES)  # with a third class, of which there is none
    images = [random_boxes(90, 3), one([[0.0, 0.0, 0.0]], [SQUARE]), page, random_boxes(7, 3)]
    alone = [process(image, **options) for image in images]
    assert len(alone[1]) == 0 < len(alone[3])
    for path in (nullcontext, as_on_gpu):
        with path():
            found = Postprocessor(**options)(batch(*images))
        assert found.boxes.isfinite().all()
        assert (found.scores[~found.valid] == -torch.inf).all()
        for own, expected in zip(found.ragged(), alone, strict=True):
            assert torch.equal(own.labels, expected.labels)
            assert torch.equal(own.scores, expected.scores)
            torch.testing.assert_close(own.boxes, expected.boxes, rtol=1e-6, atol=0)


def test_one_box_for_all_classes_is_that_of_each() -> None:
    given = random_boxes(50, 3)
    for vote_iou in (None, 0.5):
        boxes = (given.boxes, given.boxes[:, :, :1])
        wanted, found = (process(replace(given, boxes=each), vote_iou=vote_iou) for each in boxes)
        assert torch.equal(found.boxes, wanted.boxes)
        assert torch.equal(found.labels, wanted.labels)
