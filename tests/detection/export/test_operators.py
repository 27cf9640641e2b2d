"""Operators translated to ONNX give in ONNX Runtime and OpenVINO what PyTorch gives."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from backbones.deformable import DeformableConv
from detection.model.select import nms, select_top

NUM_CLASSES = 3  # as in conftest.py


def boxes_and_scores(count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Dense boxes of two groups, with many equal scores, equal boxes, and some that do not count."""
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(2, count, 2, generator=generator) * 20).round()
    sides = 5 + (torch.rand(2, count, 2, generator=generator) * 10).round()
    scores = (torch.rand(2, count, generator=generator) * 8).round() / 8
    scores[:, ::7] = -torch.inf
    classes = torch.randint(NUM_CLASSES, (2, count), generator=generator)
    return torch.cat([corners, corners + sides], dim=2), scores, classes


@pytest.mark.parametrize("iou", [0.5, pytest.param(0.7, marks=pytest.mark.slow)])
def test_nms_of_classes_keeps_what_ours_keeps(iou: float, run) -> None:
    inputs = boxes_and_scores()
    expected = nms(*inputs, iou, 60)
    assert 0 < int((expected > -torch.inf).sum()) < int((inputs[1] > -torch.inf).sum())
    for (found,) in run(lambda boxes, scores, classes: nms(boxes, scores, classes, iou, 60), *inputs):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_nms_without_classes_or_candidates(run) -> None:
    boxes, scores, _ = boxes_and_scores()
    scores[1] = -torch.inf
    for (found,) in run(lambda boxes, scores: nms(boxes, scores, None, 0.7, 60), boxes, scores):
        np.testing.assert_array_equal(found, nms(boxes, scores, None, 0.7, 60))


def test_ties_go_by_position(run) -> None:
    scores = (torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) * 4).round()
    for found in run(lambda scores: select_top(scores, 100), scores):
        for own, expected in zip(found, select_top(scores, 100), strict=True):
            np.testing.assert_array_equal(own, expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(2, True), (2, False), (0, True), None], ids=str)
def test_regions_are_pooled(options, run) -> None:
    """Over the border, tiny and empty ones, of two images; by RoIAlign with these options, or RoIPool."""

    def pool(feature: Tensor, regions: Tensor) -> Tensor:
        return roi_align(feature, regions, 7, 0.25, *options) if options else roi_pool(feature, regions, 7, 0.25)

    feature = torch.rand(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 64, 48], [3.3, 2.1, 30.9, 40.2], [60, 40, 64, 48], [10, 10, 10, 10], [5, 5, 6, 7.5]])
    regions = torch.cat([torch.tensor([0.0, 1, 0, 1, 1])[:, None], boxes], dim=1)
    if options and options[0] == 0:  # without a sample in an empty region, a runtime may give NaN
        regions = regions[regions[:, 3] > regions[:, 1]]
    for (found,) in run(pool, feature, regions):
        tolerance: Any = {"rtol": 1e-4, "atol": 1e-5} if options else {"rtol": 1e-6, "atol": 1e-6}
        np.testing.assert_allclose(found, pool(feature, regions), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution(run, groups: int, modulated: bool) -> None:
    torch.manual_seed(0)
    layer = DeformableConv(4, 6, 3, 2, 2, groups, modulated=modulated).requires_grad_(False)
    layer.offset.weight.normal_(std=0.3)  # moves of some cells, over the border too
    feature = torch.randn(2, 4, 11, 14)
    for (found,) in run(layer, feature):
        np.testing.assert_allclose(found, layer(feature), rtol=1e-4, atol=1e-5)
