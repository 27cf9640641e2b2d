"""Mirrors detection/model/fcos.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detection.model import fcos
from detection.model.fcos import FCOSHead, PointMatcher, Points
from detection.model.matcher import Matches
from detection.model.one_stage import Dense
from detection.padded import Targets
from detection.structures import Target

MakeTarget = Callable[..., Target]
INF = math.inf


def points(*rows: tuple[float, float], stride: float = 8, near: float = 0, far: float = INF) -> Points:
    centers = torch.tensor(rows)
    return Points(centers, *(torch.full((len(rows),), float(value)) for value in (stride, near, far)))


def match(where: Points, target: Target, radius: float = 1.5) -> Matches:
    usable = torch.ones(1, len(where.centers), dtype=torch.bool)
    return PointMatcher(radius)(where, Targets.pad([target]), usable)


def positives(matches: Matches) -> list[int | None]:
    """The object of each point of the first image, None for those without."""
    pairs = zip(matches.positive[0].tolist(), matches.indices[0].tolist(), strict=True)
    return [index if positive else None for positive, index in pairs]


def test_points_are_near_the_centre_and_in_the_object(make_target: MakeTarget) -> None:
    target = make_target([[0, 0, 100, 20]])
    # Centre (50, 10), radius 12 along both axes: at it, at the bound, beyond it, and near it but outside.
    found = match(points((50, 10), (61, 10), (62, 10), (50, 21)), target)
    assert positives(found) == [0, 0, None, None]
    assert found.negative[0].tolist() == [False, False, True, True]


def test_a_level_is_for_objects_of_its_size(make_target: MakeTarget) -> None:
    target = make_target([[0, 0, 100, 100]])  # the farthest side of a point at the centre is 50 pixels away
    for near, far, fits in ((0, 64, True), (0, 50, False), (50, 99, False), (49, 51, True)):
        assert positives(match(points((50, 50), near=near, far=far), target)) == [0 if fits else None]


@pytest.mark.parametrize("elements", [1 << 26, 1])
def test_the_smallest_object_wins(elements: int, make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many objects are compared at a time."""
    monkeypatch.setattr(fcos, "MAX_ELEMENTS", elements)
    target = make_target([[0, 0, 40, 40], [10, 10, 30, 30], [5, 5, 35, 35]])
    found = match(points((20, 20), (25, 20), (50, 50)), target)
    assert positives(found) == [1, 1, None]
    assert found.negative[0].tolist() == [False, False, True]


def test_points_in_an_ignored_object_are_no_negatives(make_target: MakeTarget) -> None:
    target = make_target([[0, 0, 40, 40], [20, 20, 60, 60]], ignore=[True, False])
    found = match(points((20, 20), (40, 40), (70, 70)), target)
    assert positives(found) == [None, 1, None]
    assert found.negative[0].tolist() == [False, False, True]


def test_no_objects_make_every_point_negative(make_target: MakeTarget) -> None:
    assert match(points((20, 20)), make_target()).negative.all()


@pytest.fixture
def head() -> FCOSHead:
    torch.manual_seed(0)
    settings = Dense(convs=1, normalizer="batch")
    return FCOSHead(8, (8, 16, 32), num_classes=2, settings=settings, matcher=PointMatcher(), offset=0.5)


def make_features() -> list[Tensor]:
    return [torch.zeros(1, 8, *size) for size in ((4, 8), (2, 4), (1, 2))]


@torch.no_grad()
def test_distances_are_cells_from_the_point(head: FCOSHead) -> None:
    assert head.deltas.bias is not None
    head.deltas.bias.copy_(torch.tensor([1.0, 0.5, 2.0, -3.0]))  # what is below 0 is cut
    found = head(make_features(), (32, 64))
    assert found.boxes.shape == (1, 2 * (32 + 8 + 2), 4)
    # The first point of each level, at half its stride: left, top, right and bottom.
    assert found.boxes[0, 0].tolist() == [4 - 8, 4 - 4, 4 + 16, 4]
    assert found.boxes[0, 64].tolist() == [8 - 16, 8 - 8, 8 + 32, 8]
    assert found.boxes[0, 80].tolist() == [16 - 32, 16 - 16, 16 + 64, 16]
    # Probability of a class 0.01, centerness 0.5
    assert found.scores.unique().item() == pytest.approx((0.01 * 0.5) ** 0.5)


def test_losses_by_hand(head: FCOSHead, make_target: MakeTarget) -> None:
    """An object of 16 x 8 around the point (28, 20) of the finest level, which alone is near enough and inside."""
    target = make_target([[20, 16, 36, 24]], labels=[1])
    losses = head.losses(make_features(), torch.tensor([[32, 64]]), (32, 64), Targets.pad([target]))
    assert losses["centerness"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["box"].item() == pytest.approx(1, rel=1e-3)  # a box without an area inside the object: IoU 0
    rest = 2 * 42 - 1
    background, own = 0.75 * 0.01**2 * -math.log(0.99), 0.25 * 0.99**2 * -math.log(0.01)
    assert losses["class"].item() == pytest.approx(rest * background + own, rel=1e-4)
