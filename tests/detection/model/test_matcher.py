"""Mirrors detection/model/matcher.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from detection import boxes as boxes_module
from detection.model.matcher import IGNORED, NEGATIVE, POSITIVE, Matcher
from detection.structures import Target

Box = Sequence[float]


def make_target(boxes: Sequence[Box], ignore: Sequence[bool] | None = None) -> Target:
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        ignore=torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
    )


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def slices_of_ten(height: float) -> list[float]:
    """A box whose IoU with (0, 0, 10, 10) is ``height`` / 10."""
    return [0.0, 0.0, 10.0, height]


def test_thresholds_by_hand() -> None:
    heights = [10, 7.5, 7.4, 5, 4.9, 2.5, 2.4, 0.1]
    boxes = torch.tensor([slices_of_ten(height) for height in heights])
    target = make_target([[0, 0, 10, 10]])
    matches = Matcher(0.75, 0.5)(boxes, target)
    assert matches.states.tolist() == [POSITIVE] * 2 + [IGNORED] * 2 + [NEGATIVE] * 4
    assert matches.states.dtype == torch.int8
    hard = Matcher(0.75, 0.5, negative_iou_low=0.25)(boxes, target)
    assert hard.states.tolist() == [POSITIVE] * 2 + [IGNORED] * 2 + [NEGATIVE] * 2 + [IGNORED] * 2


def test_index_is_the_object_of_the_highest_iou() -> None:
    target = make_target([[100, 100, 110, 110], [0, 0, 10, 10], [0, 0, 10, 7]])
    boxes = torch.tensor([slices_of_ten(9.5), slices_of_ten(7.2), [100, 100, 110, 109]])
    assert Matcher(0.5, 0.5)(boxes, target).indices.tolist() == [1, 2, 0]


def test_best_box_of_an_object_is_positive_however_low_its_iou() -> None:
    target = make_target([[0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([slices_of_ten(2), slices_of_ten(1), [50, 50, 60, 51], [80, 80, 90, 90]])
    matches = Matcher(0.7, 0.3, match_best=True)(boxes, target)
    assert matches.states.tolist() == [POSITIVE, NEGATIVE, POSITIVE, NEGATIVE]
    assert matches.indices[:3].tolist() == [0, 0, 1]
    assert Matcher(0.7, 0.3)(boxes, target).states.tolist() == [NEGATIVE] * 4


def test_all_boxes_that_tie_for_the_best_are_positive() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 5, 10, 10], [0, 0, 10, 4], [0, 0, 5, 10]])
    states = Matcher(0.9, 0.1, match_best=True)(boxes, make_target([[0, 0, 10, 10]])).states
    assert states.tolist() == [POSITIVE, POSITIVE, IGNORED, POSITIVE]


def test_best_box_below_the_hard_negative_bound_is_positive() -> None:
    boxes = torch.tensor([slices_of_ten(0.5), [50.0, 50, 60, 60]])
    states = Matcher(0.7, 0.3, negative_iou_low=0.1, match_best=True)(boxes, make_target([[0, 0, 10, 10]])).states
    assert states.tolist() == [POSITIVE, IGNORED]


def test_object_that_no_box_touches_makes_nothing_positive() -> None:
    boxes = torch.tensor([slices_of_ten(10), [20.0, 20, 30, 30]])
    states = Matcher(0.7, 0.3, match_best=True)(boxes, make_target([[50, 50, 60, 60]])).states
    assert states.tolist() == [NEGATIVE, NEGATIVE]


def test_ignored_objects_are_never_matched() -> None:
    target = make_target([[0, 0, 10, 10], [0, 0, 10, 9]], ignore=[True, False])
    boxes = torch.tensor([slices_of_ten(10), slices_of_ten(9)])
    matches = Matcher(0.7, 0.3, match_best=True)(boxes, target)
    assert matches.states.tolist() == [POSITIVE, POSITIVE]  # both by the second object
    assert matches.indices.tolist() == [1, 1]


def test_indices_count_all_rows_of_the_target() -> None:
    target = make_target([[50, 50, 60, 60], [0, 0, 10, 10], [20, 20, 30, 30]], ignore=[True, False, False])
    matches = Matcher(0.7, 0.3)(torch.tensor([[20.0, 20, 30, 30], [0, 0, 10, 10]]), target)
    assert matches.indices.tolist() == [2, 1]


def test_boxes_inside_an_ignored_object_are_no_negatives() -> None:
    crowd = make_target([[0, 0, 100, 100], [200, 0, 210, 10]], ignore=[True, False])
    boxes = torch.tensor(
        [
            [10.0, 10, 20, 20],  # inside
            [95, 0, 105, 10],  # half inside
            [92.5, 0, 102.5, 10],  # three quarters inside
            [300, 300, 310, 310],
            [200, 0, 210, 10],
        ]
    )
    states = Matcher(0.5, 0.5, ignore_overlap=0.75)(boxes, crowd).states
    assert states.tolist() == [IGNORED, NEGATIVE, IGNORED, NEGATIVE, POSITIVE]


def test_wanted_object_inside_an_ignored_one_stays_positive() -> None:
    target = make_target([[0, 0, 100, 100], [10, 10, 20, 20]], ignore=[True, False])
    boxes = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 14]])
    assert Matcher(0.5, 0.5)(boxes, target).states.tolist() == [POSITIVE, IGNORED]
    low = Matcher(0.5, 0.3, match_best=True)(boxes[1:], target)
    assert low.states.tolist() == [POSITIVE]


@pytest.mark.parametrize("match_best", [False, True])
def test_no_objects_make_every_box_negative(match_best: bool) -> None:
    matches = Matcher(0.7, 0.3, match_best=match_best)(random_boxes(5, seed=0), make_target([]))
    assert matches.states.tolist() == [NEGATIVE] * 5
    assert matches.indices.tolist() == [0] * 5


def test_no_objects_make_no_hard_negatives() -> None:
    states = Matcher(0.5, 0.5, negative_iou_low=0.1)(random_boxes(5, seed=0), make_target([])).states
    assert states.tolist() == [IGNORED] * 5


@pytest.mark.parametrize("match_best", [False, True])
def test_only_ignored_objects_match_nothing(match_best: bool) -> None:
    boxes = torch.tensor([slices_of_ten(10), [50.0, 50, 60, 60]])
    target = make_target([[0, 0, 10, 10]], ignore=[True])
    assert Matcher(0.7, 0.3, match_best=match_best)(boxes, target).states.tolist() == [IGNORED, NEGATIVE]


@pytest.mark.parametrize("boxes", [[], [[0, 0, 10, 10]]])
def test_no_boxes(boxes: list[Box]) -> None:
    matches = Matcher(0.7, 0.3, match_best=True)(torch.zeros(0, 4), make_target(boxes))
    assert matches.states.shape == matches.indices.shape == (0,)


@pytest.mark.parametrize("elements", [1, 7, 100])
@pytest.mark.parametrize("match_best", [False, True])
def test_slices_change_nothing(match_best: bool, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, objects = random_boxes(200, seed=0), random_boxes(6, seed=1)
    target = make_target(objects.tolist(), ignore=[False, True, False, False, True, False])
    matcher = Matcher(0.5, 0.3, match_best=match_best)
    whole = matcher(boxes, target)
    monkeypatch.setattr(boxes_module, "MAX_ELEMENTS", elements)
    sliced = matcher(boxes, target)
    assert torch.equal(sliced.states, whole.states)
    assert torch.equal(sliced.indices, whole.indices)
    assert set(whole.states.tolist()) == {POSITIVE, NEGATIVE, IGNORED}


@pytest.mark.parametrize("match_best", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchvision(seed: int, match_best: bool) -> None:
    boxes, objects = random_boxes(300, seed=2 * seed), random_boxes(5, seed=2 * seed + 1)
    theirs = TorchvisionMatcher(0.7, 0.3, allow_low_quality_matches=match_best)(box_iou(objects, boxes))
    ours = Matcher(0.7, 0.3, match_best=match_best)(boxes, make_target(objects.tolist()))
    positive = ours.states == POSITIVE
    assert torch.equal(positive, theirs >= 0)
    assert torch.equal(ours.indices[positive], theirs[positive])
    assert torch.equal(ours.states == NEGATIVE, theirs == TorchvisionMatcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(ours.states == IGNORED, theirs == TorchvisionMatcher.BETWEEN_THRESHOLDS)


@pytest.mark.parametrize(("positive", "negative", "low"), [(0.3, 0.7, 0.0), (0.5, 0.5, 0.6), (1.1, 0.5, 0.0)])
def test_thresholds_out_of_order_are_refused(positive: float, negative: float, low: float) -> None:
    with pytest.raises(ValueError, match="negative_iou_low <= negative_iou <= positive_iou"):
        Matcher(positive, negative, negative_iou_low=low)
