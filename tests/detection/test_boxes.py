"""Mirrors detection/boxes.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

from detection.boxes import areas, clip, inside, intersection, intersection_over_area, iou, not_empty, scale

NONE = torch.zeros(0, 4)


def random_boxes(count: int, seed: int) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_areas_by_hand() -> None:
    assert areas(boxes([0, 0, 3, 4], [1, 1, 1, 9], [2, 3, 2.5, 5])).tolist() == [12, 0, 1]


def test_areas_of_any_shape() -> None:
    assert areas(random_boxes(6, 0).reshape(2, 3, 4)).shape == (2, 3)


def test_iou_by_hand() -> None:
    first = boxes([0, 0, 10, 10])
    # the same; a quarter of it; half beside it; touching; far away
    others = boxes([0, 0, 10, 10], [0, 0, 5, 5], [5, 0, 15, 10], [10, 0, 20, 10], [50, 50, 60, 60])
    torch.testing.assert_close(iou(first, others), torch.tensor([[1.0, 0.25, 50 / 150, 0.0, 0.0]]))


def test_iou_agrees_with_torchvision() -> None:
    first, second = random_boxes(40, 0), random_boxes(30, 1)
    torch.testing.assert_close(iou(first, second), box_iou(first, second))
    torch.testing.assert_close(areas(first), box_area(first))


def test_iou_of_boxes_without_area_is_zero() -> None:
    point = boxes([5, 5, 5, 5])
    assert iou(point, torch.cat([point, boxes([0, 0, 10, 10])])).tolist() == [[0, 0]]


def test_intersection_over_area_by_hand() -> None:
    regions = boxes([0, 0, 10, 10], [5, 0, 100, 100])
    shares = intersection_over_area(boxes([0, 0, 10, 10], [8, 8, 12, 12], [3, 3, 3, 3]), regions)
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.5], [0.25, 1.0], [0.0, 0.0]]))


def test_clip_takes_height_and_width() -> None:
    assert clip(boxes([-5, -6, 200, 300]), (50, 80)).tolist() == [[0, 0, 80, 50]]


def test_clip_agrees_with_torchvision_and_leaves_its_argument() -> None:
    wide = random_boxes(40, 0) * 3 - 100
    before = wide.clone()
    torch.testing.assert_close(clip(wide, (50, 80)), clip_boxes_to_image(wide, (50, 80)))
    assert torch.equal(wide, before)


def test_inside_is_all_of_the_box_and_borders_belong_to_the_image() -> None:
    rows = boxes([0, 0, 80, 50], [-0.1, 0, 8, 5], [0, -0.1, 8, 5], [0, 0, 80.1, 5], [0, 0, 8, 50.1])
    assert inside(rows, torch.tensor([[50, 80]])).tolist() == [[True, False, False, False, False]]


def test_inside_asks_every_image() -> None:
    sizes, rows = torch.tensor([[50, 80], [80, 50]]), boxes([0, 0, 80, 50], [0, 0, 50, 80], [1, 1, 50, 50])
    expected = [[True, False, True], [False, True, True]]
    assert inside(rows, sizes).tolist() == expected
    assert inside(rows.expand(2, -1, -1), sizes).tolist() == expected
    assert inside(torch.stack([rows, rows.flip(0)]), sizes).tolist() == [expected[0], expected[1][::-1]]


def test_clip_takes_the_size_of_each_image() -> None:
    sizes, wide = torch.tensor([[50, 80], [20, 30]]), random_boxes(40, 0).view(2, 5, 4, 4) * 3 - 100
    expected = torch.stack([clip(wide[0], (50, 80)), clip(wide[1], (20, 30))])
    assert torch.equal(clip(wide, sizes), expected)


def test_a_point_and_a_line_are_empty() -> None:
    rows = boxes([0, 0, 1, 1], [5, 5, 5, 5], [5, 5, 9, 5], [5, 5, 5, 9], [9, 0, 5, 9], [0, 9, 5, 5])
    assert not_empty(rows).tolist() == [True] + [False] * 5
    assert not_empty(rows.view(2, 3, 4)).shape == (2, 3)


@pytest.mark.parametrize("function", [iou, intersection, intersection_over_area])
def test_pairs_of_each_image_of_a_batch(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    first, second = random_boxes(24, 0).view(2, 3, 4, 4), random_boxes(30, 1).view(2, 3, 5, 4)
    found = function(first, second)
    assert found.shape == (2, 3, 4, 5)
    for row in range(2):
        for column in range(3):
            assert torch.equal(found[row, column], function(first[row, column], second[row, column]))
    assert torch.equal(function(first[:1], second)[1], function(first[0], second[1]))  # the same boxes in every image


@pytest.mark.parametrize("function", [iou, intersection, intersection_over_area])
def test_pairs_leave_their_arguments(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    first, second = random_boxes(4, 0), random_boxes(5, 1)
    function(first, second)
    assert torch.equal(first, random_boxes(4, 0))
    assert torch.equal(second, random_boxes(5, 1))


def test_scale_by_hand() -> None:
    assert scale(boxes([10, 20, 30, 40]), (100, 200), (50, 400)).tolist() == [[20, 10, 60, 20]]


def test_scale_and_back() -> None:
    rows = random_boxes(20, 0)
    torch.testing.assert_close(scale(scale(rows, (375, 500), (600, 800)), (600, 800), (375, 500)), rows)


@pytest.mark.parametrize("function", [iou, intersection_over_area])
def test_pairs_of_no_boxes(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    some = random_boxes(3, 0)
    assert function(NONE, some).shape == (0, 3)
    assert function(some, NONE).shape == (3, 0)
    assert function(NONE, NONE).shape == (0, 0)


def test_no_boxes() -> None:
    assert areas(NONE).shape == (0,)
    assert inside(NONE, torch.tensor([[5, 5]])).shape == (1, 0)
    assert inside(NONE, torch.tensor([[5, 5]])).dtype == torch.bool
    assert not_empty(NONE).shape == (0,)
    assert clip(NONE, (5, 5)).shape == scale(NONE, (5, 5), (6, 6)).shape == (0, 4)
