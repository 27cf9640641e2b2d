"""Mirrors detection/boxes.py and windows.py."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

from detection.boxes import areas, clip, inside, intersection, intersection_over_area, iou, not_empty, scale
from detection.windows import Window, windows

NONE = torch.zeros(0, 4)
WINDOWS = [((1000, 1700), 400, 0.2), ((401, 400), 400, 0.5), ((90, 5), 64, 0)]


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_areas_by_hand_of_boxes_empty_ones_and_none() -> None:
    assert areas(boxes([0, 0, 3, 4], [1, 1, 1, 9], [2, 3, 2.5, 5])).tolist() == [12, 0, 1]
    rows = boxes([0, 0, 1, 1], [5, 5, 5, 5], [5, 5, 9, 5], [5, 5, 5, 9], [9, 0, 5, 9], [0, 9, 5, 5])
    assert not_empty(rows).tolist() == [True] + [False] * 5
    assert not_empty(rows.view(2, 3, 4)).shape == areas(rows.view(2, 3, 4)).shape == (2, 3)
    assert areas(NONE).shape == not_empty(NONE).shape == (0,)
    none_inside = inside(NONE, torch.tensor([[5, 5]]))
    assert (none_inside.shape, none_inside.dtype) == ((1, 0), torch.bool)
    assert clip(NONE, (5, 5)).shape == scale(NONE, (5, 5), (6, 6)).shape == (0, 4)


def test_iou_by_hand_and_torchvisions_and_intersection_over_area(random_boxes) -> None:
    # the same; a quarter of it; half beside it; touching; far away
    others = boxes([0, 0, 10, 10], [0, 0, 5, 5], [5, 0, 15, 10], [10, 0, 20, 10], [50, 50, 60, 60])
    torch.testing.assert_close(iou(boxes([0, 0, 10, 10]), others), torch.tensor([[1.0, 0.25, 50 / 150, 0.0, 0.0]]))
    point = boxes([5, 5, 5, 5])
    assert iou(point, torch.cat([point, boxes([0, 0, 10, 10])])).tolist() == [[0, 0]]
    first, second = random_boxes(40), random_boxes(30, seed=1)
    torch.testing.assert_close(iou(first, second), box_iou(first, second))
    torch.testing.assert_close(areas(first), box_area(first))
    regions = boxes([0, 0, 10, 10], [5, 0, 100, 100])
    shares = intersection_over_area(boxes([0, 0, 10, 10], [8, 8, 12, 12], [3, 3, 3, 3]), regions)
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.5], [0.25, 1.0], [0.0, 0.0]]))


def test_clip_takes_height_and_width_of_one_image_or_of_each_and_scale_comes_back(random_boxes) -> None:
    assert clip(boxes([-5, -6, 200, 300]), (50, 80)).tolist() == [[0, 0, 80, 50]]
    wide = random_boxes(40) * 3 - 100
    before = wide.clone()
    torch.testing.assert_close(clip(wide, (50, 80)), clip_boxes_to_image(wide, (50, 80)))
    assert torch.equal(wide, before)
    several = wide.view(2, 5, 4, 4)
    expected = torch.stack([clip(several[0], (50, 80)), clip(several[1], (20, 30))])
    assert torch.equal(clip(several, torch.tensor([[50, 80], [20, 30]])), expected)
    assert scale(boxes([10, 20, 30, 40]), (100, 200), (50, 400)).tolist() == [[20, 10, 60, 20]]
    rows = random_boxes(20)
    torch.testing.assert_close(scale(scale(rows, (375, 500), (600, 800)), (600, 800), (375, 500)), rows)


def test_inside_is_all_of_the_box_and_borders_belong_to_the_image() -> None:
    rows = boxes([0, 0, 80, 50], [-0.1, 0, 8, 5], [0, -0.1, 8, 5], [0, 0, 80.1, 5], [0, 0, 8, 50.1])
    assert inside(rows, torch.tensor([[50, 80]])).tolist() == [[True, False, False, False, False]]
    sizes, rows = torch.tensor([[50, 80], [80, 50]]), boxes([0, 0, 80, 50], [0, 0, 50, 80], [1, 1, 50, 50])
    expected = [[True, False, True], [False, True, True]]
    assert inside(rows, sizes).tolist() == inside(rows.expand(2, -1, -1), sizes).tolist() == expected
    assert inside(torch.stack([rows, rows.flip(0)]), sizes).tolist() == [expected[0], expected[1][::-1]]


@pytest.mark.parametrize("function", [iou, intersection, intersection_over_area])
def test_pairs_of_each_image_of_a_batch_and_of_no_boxes(function, random_boxes) -> None:
    first, second = random_boxes(2, 3, 4), random_boxes(2, 3, 5, seed=1)
    found = function(first, second)
    assert found.shape == (2, 3, 4, 5)
    for row in range(2):
        for column in range(3):
            assert torch.equal(found[row, column], function(first[row, column], second[row, column]))
    assert torch.equal(function(first[:1], second)[1], function(first[0], second[1]))  # the same boxes in every image
    assert torch.equal(first, random_boxes(2, 3, 4))  # arguments stay as they are
    assert torch.equal(second, random_boxes(2, 3, 5, seed=1))
    some = random_boxes(3)
    shapes = [tuple(function(*pair).shape) for pair in ((NONE, some), (some, NONE), (NONE, NONE))]
    assert shapes == [(0, 3), (3, 0), (0, 0)]


@pytest.mark.parametrize(("size", "side", "overlap"), WINDOWS)
def test_windows_cover_every_pixel_and_share_the_overlap(size, side: int, overlap: float) -> None:
    found, covered = windows(size, side, overlap), np.zeros(size, np.int64)
    for window in found:
        covered[window.slices] += 1
    assert covered.min() == 1
    assert {window.size for window in found} == {(min(side, size[0]), min(side, size[1]))}
    for axis in (0, 1):
        starts = sorted({window.corner[axis] for window in found})
        assert all(later - start <= side * (1 - overlap) for start, later in pairwise(starts))
    assert windows((64, 30), 64, 0.2) == [Window((0, 0), (64, 30))]  # no larger than a window
