"""Mirrors detection/model/matcher.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from detection.boxes import iou
from detection.model import matcher as matcher_module
from detection.model.anchors import AnchorGenerator
from detection.model.matcher import Matcher, Matches
from detection.padded import Targets
from detection.structures import Target

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

Box = Sequence[float]
MakeTarget = Callable[..., Target]


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)


class Labelled(NamedTuple):
    """Matches as one of three states each."""

    states: Tensor
    indices: Tensor


def label(matches: Matches) -> Labelled:
    assert not (matches.positive & matches.negative).any()
    states = torch.where(matches.positive, POSITIVE, torch.where(matches.negative, NEGATIVE, IGNORED))
    return Labelled(states, matches.indices)


def match(matcher: Matcher, boxes: Tensor, target: Target) -> Labelled:
    """The matches of one image, all of whose boxes may be matched: (M,) each."""
    found = label(matcher(boxes[None], Targets.pad([target]), torch.ones(1, len(boxes), dtype=torch.bool)))
    return Labelled(found.states[0], found.indices[0])


def slices_of_ten(height: float) -> list[float]:
    """A box whose IoU with (0, 0, 10, 10) is ``height`` / 10."""
    return [0.0, 0.0, 10.0, height]


def test_thresholds_by_hand(make_target: MakeTarget) -> None:
    heights = [10, 7.5, 7.4, 5, 4.9, 2.5, 2.4, 0.1]
    boxes = torch.tensor([slices_of_ten(height) for height in heights])
    target = make_target([[0, 0, 10, 10]])
    matches = match(Matcher(0.75, 0.5), boxes, target)
    assert matches.states.tolist() == [POSITIVE] * 2 + [IGNORED] * 2 + [NEGATIVE] * 4
    hard = match(Matcher(0.75, 0.5, negative_iou_low=0.25), boxes, target)
    assert hard.states.tolist() == [POSITIVE] * 2 + [IGNORED] * 2 + [NEGATIVE] * 2 + [IGNORED] * 2


def test_index_is_the_object_of_the_highest_iou(make_target: MakeTarget) -> None:
    target = make_target([[100, 100, 110, 110], [0, 0, 10, 10], [0, 0, 10, 7]])
    boxes = torch.tensor([slices_of_ten(9.5), slices_of_ten(7.2), [100, 100, 110, 109]])
    assert match(Matcher(0.5, 0.5), boxes, target).indices.tolist() == [1, 2, 0]


def test_best_box_of_an_object_is_positive_however_low_its_iou(make_target: MakeTarget) -> None:
    target = make_target([[0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([slices_of_ten(2), slices_of_ten(1), [50, 50, 60, 51], [80, 80, 90, 90]])
    matches = match(Matcher(0.7, 0.3, match_best=True), boxes, target)
    assert matches.states.tolist() == [POSITIVE, NEGATIVE, POSITIVE, NEGATIVE]
    assert matches.indices[:3].tolist() == [0, 0, 1]
    assert match(Matcher(0.7, 0.3), boxes, target).states.tolist() == [NEGATIVE] * 4


def test_all_boxes_that_tie_for_the_best_are_positive(make_target: MakeTarget) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 5, 10, 10], [0, 0, 10, 4], [0, 0, 5, 10]])
    states = match(Matcher(0.9, 0.1, match_best=True), boxes, make_target([[0, 0, 10, 10]])).states
    assert states.tolist() == [POSITIVE, POSITIVE, IGNORED, POSITIVE]


def test_best_box_below_the_hard_negative_bound_is_positive(make_target: MakeTarget) -> None:
    boxes = torch.tensor([slices_of_ten(0.5), [50.0, 50, 60, 60]])
    states = match(
        Matcher(0.7, 0.3, negative_iou_low=0.1, match_best=True), boxes, make_target([[0, 0, 10, 10]])
    ).states
    assert states.tolist() == [POSITIVE, IGNORED]


def test_object_that_no_box_touches_makes_nothing_positive(make_target: MakeTarget) -> None:
    boxes = torch.tensor([slices_of_ten(10), [20.0, 20, 30, 30]])
    states = match(Matcher(0.7, 0.3, match_best=True), boxes, make_target([[50, 50, 60, 60]])).states
    assert states.tolist() == [NEGATIVE, NEGATIVE]


def test_ignored_objects_are_never_matched(make_target: MakeTarget) -> None:
    target = make_target([[0, 0, 10, 10], [0, 0, 10, 9]], ignore=[True, False])
    boxes = torch.tensor([slices_of_ten(10), slices_of_ten(9)])
    matches = match(Matcher(0.7, 0.3, match_best=True), boxes, target)
    assert matches.states.tolist() == [POSITIVE, POSITIVE]  # both by the second object
    assert matches.indices.tolist() == [1, 1]


def test_indices_count_all_rows_of_the_target(make_target: MakeTarget) -> None:
    target = make_target([[50, 50, 60, 60], [0, 0, 10, 10], [20, 20, 30, 30]], ignore=[True, False, False])
    matches = match(Matcher(0.7, 0.3), torch.tensor([[20.0, 20, 30, 30], [0, 0, 10, 10]]), target)
    assert matches.indices.tolist() == [2, 1]


def test_boxes_inside_an_ignored_object_are_no_negatives(make_target: MakeTarget) -> None:
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
    states = match(Matcher(0.5, 0.5, ignore_overlap=0.75), boxes, crowd).states
    assert states.tolist() == [IGNORED, NEGATIVE, IGNORED, NEGATIVE, POSITIVE]


def test_wanted_object_inside_an_ignored_one_stays_positive(make_target: MakeTarget) -> None:
    target = make_target([[0, 0, 100, 100], [10, 10, 20, 20]], ignore=[True, False])
    boxes = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 14]])
    assert match(Matcher(0.5, 0.5), boxes, target).states.tolist() == [POSITIVE, IGNORED]
    low = match(Matcher(0.5, 0.3, match_best=True), boxes[1:], target)
    assert low.states.tolist() == [POSITIVE]


@pytest.mark.parametrize("match_best", [False, True])
def test_no_objects_make_every_box_negative(match_best: bool, make_target: MakeTarget) -> None:
    matches = match(Matcher(0.7, 0.3, match_best=match_best), random_boxes(5, seed=0), make_target([]))
    assert matches.states.tolist() == [NEGATIVE] * 5
    assert matches.indices.tolist() == [0] * 5


def test_no_objects_make_no_hard_negatives(make_target: MakeTarget) -> None:
    states = match(Matcher(0.5, 0.5, negative_iou_low=0.1), random_boxes(5, seed=0), make_target([])).states
    assert states.tolist() == [IGNORED] * 5


@pytest.mark.parametrize("match_best", [False, True])
def test_only_ignored_objects_match_nothing(match_best: bool, make_target: MakeTarget) -> None:
    boxes = torch.tensor([slices_of_ten(10), [50.0, 50, 60, 60]])
    target = make_target([[0, 0, 10, 10]], ignore=[True])
    assert match(Matcher(0.7, 0.3, match_best=match_best), boxes, target).states.tolist() == [IGNORED, NEGATIVE]


@pytest.mark.parametrize("boxes", [[], [[0, 0, 10, 10]]])
def test_no_boxes(boxes: list[Box], make_target: MakeTarget) -> None:
    matches = match(Matcher(0.7, 0.3, match_best=True), torch.zeros(0, 4), make_target(boxes))
    assert matches.states.shape == matches.indices.shape == (0,)


@pytest.mark.parametrize("elements", [1, 700, 1000])  # one object at a time, three, five
@pytest.mark.parametrize("match_best", [False, True])
def test_slices_change_nothing(
    match_best: bool, elements: int, monkeypatch: pytest.MonkeyPatch, make_target: MakeTarget
) -> None:
    boxes, objects = random_boxes(200, seed=0), random_boxes(6, seed=1)
    target = make_target(objects.tolist(), ignore=[False, True, False, False, True, False])
    matcher = Matcher(0.5, 0.3, match_best=match_best)
    whole = match(matcher, boxes, target)
    monkeypatch.setattr(matcher_module, "MAX_ELEMENTS", elements)
    sliced = match(matcher, boxes, target)
    assert torch.equal(sliced.states, whole.states)
    assert torch.equal(sliced.indices, whole.indices)
    assert set(whole.states.tolist()) == {POSITIVE, NEGATIVE, IGNORED}


@pytest.mark.parametrize("match_best", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchvision(seed: int, match_best: bool, make_target: MakeTarget) -> None:
    boxes, objects = random_boxes(300, seed=2 * seed), random_boxes(5, seed=2 * seed + 1)
    theirs = TorchvisionMatcher(0.7, 0.3, allow_low_quality_matches=match_best)(box_iou(objects, boxes))
    ours = match(Matcher(0.7, 0.3, match_best=match_best), boxes, make_target(objects.tolist()))
    positive = ours.states == POSITIVE
    assert torch.equal(positive, theirs >= 0)
    assert torch.equal(ours.indices[positive], theirs[positive])
    assert torch.equal(ours.states == NEGATIVE, theirs == TorchvisionMatcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(ours.states == IGNORED, theirs == TorchvisionMatcher.BETWEEN_THRESHOLDS)


@pytest.mark.parametrize(("positive", "negative", "low"), [(0.3, 0.7, 0.0), (0.5, 0.5, 0.6), (1.1, 0.5, 0.0)])
def test_thresholds_out_of_order_are_refused(positive: float, negative: float, low: float) -> None:
    with pytest.raises(ValueError, match="negative_iou_low <= negative_iou <= positive_iou"):
        Matcher(positive, negative, negative_iou_low=low)


# ties


def test_an_object_inside_several_equal_anchors_takes_them_all(make_target: MakeTarget) -> None:
    # Exact arithmetic: the object's area over the anchor's, wherever the anchor lies. Rounded, the IoUs differ.
    anchors = AnchorGenerator(16, sizes=[64.0], ratios=[0.5, 1.0, 2.0])(12, 12)
    found = torch.tensor([[90.3, 88.6, 100.7, 99.1]])
    contains = (anchors[:, :2] <= found[:, :2]).all(dim=1) & (anchors[:, 2:] >= found[:, 2:]).all(dim=1)
    overlaps = iou(anchors, found)[:, 0]
    assert 10 < int(contains.sum()) < 60
    assert len(overlaps[contains].unique()) > 1
    states = match(Matcher(0.7, 0.3, match_best=True), anchors, make_target(found.tolist())).states
    assert torch.equal(states == POSITIVE, contains)


def test_boxes_tie_up_to_one_ten_thousandth(make_target: MakeTarget) -> None:
    # Of the object's height 100, boxes cover 50 and a share of it: by a part in 20,000 less, then by one in 5,000.
    boxes = torch.tensor([[0.0, 0, 10, height] for height in (50, 50 * (1 - 5e-5), 50 * (1 - 2e-4))])
    states = match(Matcher(0.7, 0.3, match_best=True), boxes, make_target([[0, 0, 10, 100]])).states
    assert states.tolist() == [POSITIVE, POSITIVE, IGNORED]


def test_a_tie_is_that_of_one_object_not_of_all(make_target: MakeTarget) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 5], [50, 50, 60, 52]])
    target = make_target([[0, 0, 10, 10], [50, 50, 60, 60]])
    states = match(Matcher(0.7, 0.1, match_best=True), boxes, target).states
    assert states.tolist() == [POSITIVE, IGNORED, POSITIVE]  # 0.5 is more than the other object's best, 0.2


# several images


def test_unusable_boxes_are_ignored_and_nobodys_best(make_target: MakeTarget) -> None:
    boxes = torch.tensor([slices_of_ten(10), slices_of_ten(4), slices_of_ten(3), [80.0, 80, 90, 90]])
    usable = torch.tensor([[False, True, True, False]])
    targets = Targets.pad([make_target([[0, 0, 10, 10]])])
    best = label(Matcher(0.7, 0.5, match_best=True)(boxes[None], targets, usable))
    assert best.states.tolist() == [[IGNORED, POSITIVE, NEGATIVE, IGNORED]]
    plain = label(Matcher(0.7, 0.5)(boxes[None], targets, usable))
    assert plain.states.tolist() == [[IGNORED, NEGATIVE, NEGATIVE, IGNORED]]


@pytest.mark.parametrize("match_best", [False, True])
def test_each_image_matches_its_own_objects(match_best: bool, make_target: MakeTarget) -> None:
    targets = [
        make_target(random_boxes(count, seed).tolist(), ignore=[row % 3 == 2 for row in range(count)])
        for seed, count in enumerate((3, 0, 11, 1))
    ]
    boxes = torch.stack([random_boxes(200, seed) for seed in range(10, 14)])
    usable = torch.arange(200).expand(4, -1) % torch.tensor([[2], [3], [5], [7]]) != 1
    matcher = Matcher(0.5, 0.3, match_best=match_best)
    matches = label(matcher(boxes, Targets.pad(targets), usable))
    shared = label(matcher(boxes[:1], Targets.pad(targets), usable))  # the same boxes in every image, as anchors are
    for row, target in enumerate(targets):
        own = Targets.pad([target])
        for found, rows in ((matches, boxes[row]), (shared, boxes[0])):
            alone = label(matcher(rows[None], own, usable[row, None]))
            assert torch.equal(found.states[row], alone.states[0])
            assert torch.equal(found.indices[row], alone.indices[0])
    assert set(matches.states.flatten().tolist()) == {POSITIVE, NEGATIVE, IGNORED}


def test_a_box_over_the_padding_of_the_objects_matches_nothing(make_target: MakeTarget) -> None:
    # Rows of padding are the point (0, 0, 0, 0); so is the box of a region that is padding.
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 5, 5], [20, 20, 30, 30]])
    matches = match(Matcher(0.5, 0.5, match_best=True), boxes, make_target([[20, 20, 30, 30]]))
    assert matches.states.tolist() == [NEGATIVE, NEGATIVE, POSITIVE]
    assert matches.indices.tolist() == [0, 0, 0]


@pytest.mark.parametrize("elements", [1, 2400, 4000])  # one object at a time, three, five; G is 16
@pytest.mark.parametrize("match_best", [False, True])
def test_slices_change_nothing_in_a_batch(
    match_best: bool, elements: int, monkeypatch: pytest.MonkeyPatch, make_target: MakeTarget
) -> None:
    boxes = torch.stack([random_boxes(200, seed) for seed in range(4)])
    ignore = [row % 4 == 3 for row in range(11)]
    targets = Targets.pad([make_target(random_boxes(11, seed).tolist(), ignore=ignore) for seed in range(4, 8)])
    usable = torch.arange(800).view(4, 200) % 3 != 1
    matcher = Matcher(0.5, 0.3, match_best=match_best)
    whole = label(matcher(boxes, targets, usable))
    monkeypatch.setattr(matcher_module, "MAX_ELEMENTS", elements)
    sliced = label(matcher(boxes, targets, usable))
    assert torch.equal(sliced.states, whole.states)
    assert torch.equal(sliced.indices, whole.indices)
