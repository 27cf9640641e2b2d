"""Mirrors detection/model/matcher.py."""

from typing import Any, NamedTuple

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

POSITIVE, NEGATIVE, IGNORED = P, N, X = 1, 0, -1
RPN = {"match_best": True}


class Labelled(NamedTuple):
    states: Tensor  # each one of three
    indices: Tensor


def label(matches: Matches) -> Labelled:
    assert not (matches.positive & matches.negative).any()
    states = torch.where(matches.positive, POSITIVE, torch.where(matches.negative, NEGATIVE, IGNORED))
    return Labelled(states, matches.indices)


def match(matcher: Matcher, boxes: Any, target: Any) -> Labelled:
    """The matches of one image, all of whose boxes may be matched: (M,) each."""
    rows = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    found = label(matcher(rows[None], Targets.pad([target]), torch.ones(1, len(rows), dtype=torch.bool)))
    return Labelled(found.states[0], found.indices[0])


def cut(*heights: float) -> list[list[float]]:
    """Boxes whose IoU with (0, 0, 10, 10) is a tenth of each height."""
    return [[0.0, 0.0, 10.0, height] for height in heights]


TEN, FIFTY, FAR = [0.0, 0, 10, 10], [50.0, 50, 60, 60], [80.0, 80, 90, 90]
HEIGHTS = cut(10, 7.5, 7.4, 5, 4.9, 2.5, 2.4, 0.1)
CROWD = ([[0, 0, 100, 100], [200, 0, 210, 10]], [True, False])
# inside, half inside, three quarters inside, outside, the other object itself
AROUND = [[10.0, 10, 20, 20], [95, 0, 105, 10], [92.5, 0, 102.5, 10], [300, 300, 310, 310], [200, 0, 210, 10]]
IN_CROWD = ([CROWD[0][0], AROUND[0]], [True, False])


@pytest.mark.parametrize(
    ("matcher", "boxes", "objects", "states"),
    [
        (Matcher(0.75, 0.5), HEIGHTS, ([TEN], []), [P, P, X, X, N, N, N, N]),
        (Matcher(0.75, 0.5, negative_iou_low=0.25), HEIGHTS, ([TEN], []), [P, P, X, X, N, N, X, X]),
        # The best box of an object is positive however low its IoU, and all that tie for it; below the bound too.
        (Matcher(0.7, 0.3), [*cut(2, 1), [50, 50, 60, 51], FAR], ([TEN, FIFTY], []), [N, N, N, N]),
        (Matcher(0.7, 0.3, **RPN), [*cut(2, 1), [50, 50, 60, 51], FAR], ([TEN, FIFTY], []), [P, N, P, N]),
        (Matcher(0.9, 0.1, **RPN), [*cut(5), [0, 5, 10, 10], *cut(4), [0, 0, 5, 10]], ([TEN], []), [P, P, X, P]),
        (Matcher(0.7, 0.3, negative_iou_low=0.1, **RPN), [*cut(0.5), FIFTY], ([TEN], []), [P, X]),
        (Matcher(0.7, 0.3, **RPN), [TEN, [20, 20, 30, 30]], ([FIFTY], []), [N, N]),  # nothing touches the object
        # Ignored objects are never matched, and boxes inside them are no negatives; a wanted one stays positive.
        (Matcher(0.7, 0.3, **RPN), cut(10, 9), ([TEN, *cut(9)], [True, False]), [P, P]),
        (Matcher(0.5, 0.5, ignore_overlap=0.75), AROUND, CROWD, [X, N, X, N, P]),
        (Matcher(0.5, 0.5), [AROUND[0], [10, 10, 20, 14]], IN_CROWD, [P, X]),
        (Matcher(0.5, 0.3, **RPN), [[10, 10, 20, 14]], IN_CROWD, [P]),
        (Matcher(0.7, 0.3, **RPN), [TEN, FIFTY], ([TEN], [True]), [X, N]),
        (Matcher(0.7, 0.3), [TEN, FIFTY], ([TEN], [True]), [X, N]),
        # No objects, no boxes
        (Matcher(0.7, 0.3, **RPN), AROUND, ([], []), [N] * 5),
        (Matcher(0.7, 0.3), AROUND, ([], []), [N] * 5),
        (Matcher(0.5, 0.5, negative_iou_low=0.1), AROUND, ([], []), [X] * 5),
        (Matcher(0.7, 0.3, **RPN), [], ([TEN], []), []),
        (Matcher(0.7, 0.3, **RPN), [], ([], []), []),
        # Boxes tie up to one ten-thousandth: of the height 100, a part in 20,000 less than 50, then one in 5,000.
        (Matcher(0.7, 0.3, **RPN), cut(50, 50 * (1 - 5e-5), 50 * (1 - 2e-4)), ([[0, 0, 10, 100]], []), [P, P, X]),
        # A tie is that of one object, not of all: 0.5 is more than the other object's best, 0.2.
        (Matcher(0.7, 0.1, **RPN), [*cut(6, 5), [50, 50, 60, 52]], ([TEN, FIFTY], []), [P, X, P]),
        # Padding of the objects and of regions is the point (0, 0, 0, 0), which matches nothing.
        (Matcher(0.5, 0.5, **RPN), [[0, 0, 0, 0], [0, 0, 5, 5], FIFTY], ([FIFTY], []), [N, N, P]),
    ],
)
def test_states_by_hand(matcher, boxes, objects, states, make_target) -> None:
    assert match(matcher, boxes, make_target(objects[0], ignore=objects[1])).states.tolist() == states


def test_index_is_the_object_of_the_highest_iou_among_all_rows(make_target) -> None:
    target = make_target([[100, 100, 110, 110], TEN, *cut(7)])
    assert match(Matcher(0.5, 0.5), [*cut(9.5, 7.2), [100, 100, 110, 109]], target).indices.tolist() == [1, 2, 0]
    target = make_target([FIFTY, TEN, FAR], ignore=[True, False, False])
    assert match(Matcher(0.7, 0.3), [FAR, TEN, FIFTY], target).indices.tolist()[:2] == [2, 1]
    assert match(Matcher(0.7, 0.3, match_best=True), [TEN], make_target()).indices.tolist() == [0]


@pytest.mark.parametrize("match_best", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchvision(seed, match_best, make_target, random_boxes) -> None:
    boxes, objects = random_boxes(300, seed=2 * seed), random_boxes(5, seed=2 * seed + 1)
    theirs = TorchvisionMatcher(0.7, 0.3, allow_low_quality_matches=match_best)(box_iou(objects, boxes))
    ours = match(Matcher(0.7, 0.3, match_best=match_best), boxes, make_target(objects.tolist()))
    assert torch.equal(ours.states, torch.where(theirs >= 0, POSITIVE, torch.where(theirs == -1, NEGATIVE, IGNORED)))
    assert torch.equal(ours.indices[theirs >= 0], theirs[theirs >= 0])


def test_thresholds_out_of_order_are_refused() -> None:
    for positive, negative, low in ((0.3, 0.7, 0.0), (0.5, 0.5, 0.6), (1.1, 0.5, 0.0)):
        with pytest.raises(ValueError, match="negative_iou_low <= negative_iou <= positive_iou"):
            Matcher(positive, negative, negative_iou_low=low)


def test_an_object_inside_several_equal_anchors_takes_them_all(make_target) -> None:
    # Exact arithmetic: the object's area over the anchor's, wherever the anchor lies. Rounded, the IoUs differ.
    anchors = AnchorGenerator(16, sizes=[64.0], ratios=[0.5, 1.0, 2.0])(12, 12)
    found = torch.tensor([[90.3, 88.6, 100.7, 99.1]])
    contains = (anchors[:, :2] <= found[:, :2]).all(dim=1) & (anchors[:, 2:] >= found[:, 2:]).all(dim=1)
    assert 10 < int(contains.sum()) < 60
    assert len(iou(anchors, found)[contains, 0].unique()) > 1
    states = match(Matcher(0.7, 0.3, match_best=True), anchors, make_target(found.tolist())).states
    assert torch.equal(states == POSITIVE, contains)


def test_unusable_boxes_are_ignored_and_nobodys_best(make_target) -> None:
    boxes, targets = torch.tensor([[*cut(10, 4, 3), FAR]]), Targets.pad([make_target([TEN])])
    for match_best, second in ((True, P), (False, N)):
        matcher, usable = Matcher(0.7, 0.5, match_best=match_best), torch.tensor([[False, True, True, False]])
        assert label(matcher(boxes, targets, usable)).states.tolist() == [[X, second, N, X]]


@pytest.mark.parametrize("match_best", [False, True])
def test_each_image_matches_its_own_objects_in_slices_too(match_best, monkeypatch, make_target, random_boxes) -> None:
    rows = [random_boxes(count, seed=seed).tolist() for seed, count in enumerate((3, 0, 11, 1))]
    targets = [make_target(own, ignore=[row % 3 == 2 for row in range(len(own))]) for own in rows]
    boxes, padded = random_boxes(4, 200, seed=10), Targets.pad(targets)
    usable = torch.arange(200).expand(4, -1) % torch.tensor([[2], [3], [5], [7]]) != 1
    matcher = Matcher(0.5, 0.3, match_best=match_best)
    whole = matches, shared = [label(matcher(rows, padded, usable)) for rows in (boxes, boxes[:1])]  # as anchors are
    for row, target in enumerate(targets):
        for found, rows in ((matches, boxes[row]), (shared, boxes[0])):
            alone = label(matcher(rows[None], Targets.pad([target]), usable[row, None]))
            assert torch.equal(found.states[row], alone.states[0])
            assert torch.equal(found.indices[row], alone.indices[0])
    assert set(matches.states.flatten().tolist()) == {POSITIVE, NEGATIVE, IGNORED}
    for elements in (1, 2400, 4000):  # one object at a time, three, five; G is 16
        monkeypatch.setattr(matcher_module, "MAX_ELEMENTS", elements)
        for rows, expected in zip((boxes, boxes[:1]), whole, strict=True):
            found = label(matcher(rows, padded, usable))
            assert torch.equal(found.states, expected.states)
            assert torch.equal(found.indices, expected.indices)
