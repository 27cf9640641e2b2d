"""Mirrors detection/model/fcos.py."""

import math

import pytest
import torch

from detection.model import fcos
from detection.model.fcos import FCOSHead, PointMatcher, Points
from detection.model.one_stage import Dense
from detection.padded import Targets

ALL = (0, math.inf)


@pytest.mark.parametrize(
    ("centers", "levels", "boxes", "ignore", "objects", "negative"),
    [
        # Centre (50, 10), radius 12 along both axes: at it, at the bound, beyond it, and near it but outside.
        ([(50, 10), (61, 10), (62, 10), (50, 21)], ALL, [[0, 0, 100, 20]], [], [0, 0, None, None], [0, 0, 1, 1]),
        # The farthest side of a point at the centre is 50 pixels away.
        ([(50, 50)], (0, 64), [[0, 0, 100, 100]], [], [0], [0]),
        ([(50, 50)], (0, 50), [[0, 0, 100, 100]], [], [None], [1]),
        ([(50, 50)], (50, 99), [[0, 0, 100, 100]], [], [None], [1]),
        ([(50, 50)], (49, 51), [[0, 0, 100, 100]], [], [0], [0]),
        # The smallest object wins.
        (
            [(20, 20), (25, 20), (50, 50)],
            ALL,
            [[0, 0, 40, 40], [10, 10, 30, 30], [5, 5, 35, 35]],
            [],
            [1, 1, None],
            [0, 0, 1],
        ),
        # Points in an ignored object are no negatives.
        (
            [(20, 20), (40, 40), (70, 70)],
            ALL,
            [[0, 0, 40, 40], [20, 20, 60, 60]],
            [True, False],
            [None, 1, None],
            [0, 0, 1],
        ),
        ([(20, 20)], ALL, [], [], [None], [1]),
    ],
)
def test_points_by_hand(centers, levels, boxes, ignore, objects, negative, make_target, monkeypatch) -> None:
    sides = (torch.full((len(centers),), float(value)) for value in (8, *levels))
    where, targets = Points(torch.tensor(centers).float(), *sides), Targets.pad([make_target(boxes, ignore=ignore)])
    for elements in (fcos.MAX_ELEMENTS, 1):  # however many objects are compared at a time
        monkeypatch.setattr(fcos, "MAX_ELEMENTS", elements)
        found = PointMatcher(1.5)(where, targets, torch.ones(1, len(centers), dtype=torch.bool))
        pairs = zip(found.positive[0].tolist(), found.indices[0].tolist(), strict=True)
        assert [index if positive else None for positive, index in pairs] == objects
        assert found.negative[0].tolist() == list(map(bool, negative))


@pytest.fixture
def head() -> FCOSHead:
    torch.manual_seed(0)
    settings = Dense(convs=1, normalizer="batch")
    return FCOSHead(8, (8, 16, 32), num_classes=2, settings=settings, matcher=PointMatcher(), offset=0.5)


FEATURES = [torch.zeros(1, 8, *size) for size in ((4, 8), (2, 4), (1, 2))]


@torch.no_grad()
def test_distances_are_cells_from_the_point(head) -> None:
    head.deltas.bias.copy_(torch.tensor([1.0, 0.5, 2.0, -3.0]))  # what is below 0 is cut
    found = head(FEATURES, (32, 64))
    assert found.boxes.shape == (1, 2 * (32 + 8 + 2), 4)
    # The first point of each level, at half its stride: left, top, right and bottom.
    expected = [[side - 2 * side, side - side, side + 4 * side, side] for side in (4, 8, 16)]
    assert found.boxes[0, [0, 64, 80]].tolist() == expected
    # Probability of a class 0.01, centerness 0.5
    assert found.scores.unique().item() == pytest.approx((0.01 * 0.5) ** 0.5)


def test_losses_by_hand(head, make_target) -> None:
    """An object of 16 x 8 around the point (28, 20) of the finest level, which alone is near enough and inside."""
    target = make_target([[20, 16, 36, 24]], labels=[1])
    losses = head.losses(FEATURES, torch.tensor([[32, 64]]), (32, 64), Targets.pad([target]))
    assert losses["centerness"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["box"].item() == pytest.approx(1, rel=1e-3)  # a box without an area inside the object: IoU 0
    background, own = 0.75 * 0.01**2 * -math.log(0.99), 0.25 * 0.99**2 * -math.log(0.01)
    assert losses["class"].item() == pytest.approx((2 * 42 - 1) * background + own, rel=1e-4)
