"""Mirrors detection/model/points.py."""

import torch

from detection.model.points import drawn_points, grid_points, on_image, sample_features, sample_masks, sample_regions


def test_a_grid_holds_the_centres_of_cells_row_by_row() -> None:
    assert grid_points(2, torch.zeros(1)).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_points_lie_in_their_box() -> None:
    boxes = torch.tensor([[[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 0.0, 0.0]]])
    places = on_image(torch.tensor([[0.0, 0.0], [0.5, 0.25]]), boxes)
    assert places[0, 0].tolist() == [[10.0, 20.0], [20.0, 30.0]]
    assert places[0, 1].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_features_are_interpolated_between_the_centres_of_cells() -> None:
    # Cells of 4 pixels have their centres at 2, 6, 10 and 14, where a ramp is what the place is.
    ramp = torch.tensor([2.0, 6.0, 10.0, 14.0]).expand(1, 1, 3, 4)
    places = torch.tensor([[[[2.0, 6.0], [7.5, 6.0], [14.0, 2.0], [16.0, 6.0], [30.0, 6.0]]]])
    # At the border half of a zero outside, and nothing beyond.
    assert sample_features(ramp, places, 4).tolist() == [[[[2.0, 7.5, 14.0, 7.0, 0.0]]]]


def test_each_region_has_points_of_its_own() -> None:
    maps = torch.tensor([[[[0.0, 1.0]]], [[[5.0, 5.0]]]])
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.5]], [[0.75, 0.5], [0.5, 0.5]]])
    assert sample_regions(maps, points).tolist() == [[[0.0, 0.5]], [[5.0, 5.0]]]


def test_masks_are_interpolated_between_the_centres_of_pixels() -> None:
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[1, :, 3:] = True
    places = torch.tensor([[[3.5, 2.0], [3.0, 2.0], [2.5, 2.0], [5.75, 0.5], [9.0, 2.0]]] * 2)
    found = sample_masks(masks, places, torch.tensor([1, 0]))
    assert found.tolist() == [[1.0, 0.5, 0.0, 0.75, 0.0], [0.0] * 5]
    assert sample_masks(masks[:0], places, torch.tensor([0, 0])).tolist() == [[0.0] * 5] * 2


def test_random_points_depend_on_the_image_s_seed_and_the_region_s_place_alone() -> None:
    both = drawn_points(torch.tensor([3, 4]), 5, 40, torch.zeros(1))
    assert both.shape == (2, 5, 40, 2)
    assert torch.equal(both[1:, :2], drawn_points(torch.tensor([4]), 2, 40, torch.zeros(1)))
    assert ((both >= 0) & (both < 1)).all()
    assert abs(both.mean().item() - 0.5) < 0.03
    assert len(both.flatten().unique()) > 390
