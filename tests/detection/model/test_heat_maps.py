"""Mirrors detection/model/heat_maps.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from detection.model.heat_maps import cells_of, find_peaks

SIDE = 56


def smooth_maps(regions: int, keypoints: int, *, seed: int) -> Tensor:
    """Random logits, bilinear between every second cell, as the head gives them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 3 * torch.randn(regions, keypoints, SIDE // 2, SIDE // 2, generator=generator, dtype=torch.float64)
    return F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)


def random_boxes(count: int, *, least: float, most: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = 100 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    sides = least + (most - least) * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corners, corners + sides], dim=1)


def test_cells_are_torchvisions() -> None:
    boxes = random_boxes(40, least=5, most=200, seed=1).float()
    shares = 1.4 * torch.rand(40, 9, 2, generator=torch.Generator().manual_seed(0)) - 0.2
    places = boxes[:, None, :2] + shares * (boxes[:, 2:] - boxes[:, :2]).unsqueeze(1)
    places[:, 0], places[:, 1] = boxes[:, :2], boxes[:, 2:]  # on both borders
    keypoints = torch.cat([places, torch.arange(9).remainder(3).expand(40, 9)[..., None].float()], dim=2)
    expected, valid = keypoints_to_heatmap(keypoints, boxes, SIDE)
    cells, learnt = cells_of(keypoints, boxes, SIDE)
    assert learnt.equal(valid.bool())
    assert cells[learnt].equal(expected[learnt])
    assert 0 < int(learnt.sum()) < 40 * 6
    assert cells_of(keypoints[:, 1:2, :] + torch.tensor([0, 0, 2]), boxes, SIDE)[0].eq(SIDE**2 - 1).all()


@pytest.mark.parametrize(("least", "most"), [(0.3, 30), (30, 112), (112, 300), (300, 1333)])
def test_peaks_are_torchvisions(least, most) -> None:
    """At all sizes of regions, also where the maps have many maxima of about the same height."""
    maps, boxes = smooth_maps(8, 6, seed=0), random_boxes(8, least=least, most=most, seed=1)
    points, logits = heatmaps_to_keypoints(maps, boxes)
    found = find_peaks(maps, boxes, longest=1344)
    torch.testing.assert_close(found[..., :2], points[..., :2].double(), rtol=0, atol=1e-3)  # theirs are in float32
    expected = (logits.double() - maps.flatten(2).logsumexp(dim=2)).exp()
    torch.testing.assert_close(found[..., 2], expected, rtol=1e-4, atol=0)


def test_peaks_of_float32_are_within_a_pixel() -> None:
    maps, boxes = smooth_maps(20, 5, seed=2).float(), random_boxes(20, least=20, most=500, seed=3).float()
    points, _ = heatmaps_to_keypoints(maps, boxes)
    assert (find_peaks(maps, boxes, longest=512)[..., :2] - points[..., :2]).abs().max() <= 1


def test_the_place_and_the_score_of_a_single_cell_and_of_none() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 2] = 5.0
    x, y, score = find_peaks(maps, torch.tensor([[10.0, 20.0, 14.0, 24.0]]), longest=4)[0, 0].tolist()
    assert (x, y) == (10 + 2.5, 20 + 1.5)  # the middle of the cell
    assert score == pytest.approx(math.exp(5) / (math.exp(5) + 15), rel=1e-6)
    assert find_peaks(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4), longest=100).shape == (0, 3, 3)
