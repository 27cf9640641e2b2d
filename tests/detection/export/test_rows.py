"""Graphs that compute only the rows that count give what those of fixed shapes give, and take images without any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detection.export.rows import keep_counted_rows
from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.pooler import PoolKind, RegionPooler
from detection.model.select import as_on_gpu
from detection.padded import Found

STRIDES = 4, 8, 16
SIDES = 6.0, 250.0, 600.0  # pixels of boxes of each level


def make_levels(images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(images, 3, 256 // stride, 320 // stride, generator=generator) for stride in STRIDES]


def make_found(sides: Sequence[float], counts: Sequence[int]) -> Found:
    """Rows of boxes of ``sides``, of which the first ``counts`` of each image are valid."""
    generator = torch.Generator().manual_seed(1)
    corners = 40 * torch.rand(len(counts), len(sides), 2, generator=generator)
    boxes = torch.cat([corners, corners + torch.tensor(sides)[:, None]], dim=2)
    valid = torch.arange(len(sides)) < torch.tensor(counts)[:, None]
    return Found(
        boxes, valid, torch.rand(valid.shape, generator=generator), torch.arange(valid.numel()).view_as(valid) % 2
    )


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("sides", [SIDES, SIDES[:1]])
def test_regions_are_pooled_as_with_fixed_shapes(sides: Sequence[float], kind: PoolKind) -> None:
    holder = nn.ModuleList([RegionPooler(STRIDES, 7, kind=kind)])
    boxes, images = make_found(sides, (1, 1)).boxes.flatten(0, 1), torch.arange(2).repeat_interleave(len(sides))
    with as_on_gpu():
        expected = holder[0](make_levels(), boxes, images)
        keep_counted_rows(holder)
        assert torch.equal(holder[0](make_levels(), boxes, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(0, 0), (2, 3)])
@torch.no_grad()
def test_masks_are_those_of_detections_in_every_runtime(counts: Sequence[int], run: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    holder = nn.ModuleList([MaskStage(RegionPooler(STRIDES, 4, kind="roi_align"), MaskHead(3, num_classes=2, convs=1))])
    levels, found = make_levels(), make_found(SIDES, counts)
    expected = torch.where(found.valid[..., None, None], holder[0](levels, found).masks, 0.0)
    keep_counted_rows(holder)

    def masks(boxes: Tensor, valid: Tensor, labels: Tensor, *levels: Tensor) -> Tensor:
        return holder[0](levels, replace(found, boxes=boxes, valid=valid, labels=labels)).masks

    assert torch.equal(masks(found.boxes, found.valid, found.labels, *levels) > 0, expected > 0)
    for (own,) in run(masks, found.boxes, found.valid, found.labels, *levels):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(0, 0), (2, 3)])
@torch.no_grad()
def test_keypoints_are_those_of_detections_in_every_runtime(counts: Sequence[int], run: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    head = KeypointHead(3, num_keypoints=2, convs=1, channels=4)
    holder = nn.ModuleList([KeypointStage(RegionPooler(STRIDES, 4, kind="roi_align"), head)])
    levels, found = make_levels(), make_found(SIDES, counts)
    expected = torch.where(found.valid[..., None, None], holder[0](levels, found).keypoints, 0.0)
    keep_counted_rows(holder)

    def keypoints(boxes: Tensor, valid: Tensor, labels: Tensor, *levels: Tensor) -> Tensor:
        return holder[0](levels, replace(found, boxes=boxes, valid=valid, labels=labels)).keypoints

    torch.testing.assert_close(keypoints(found.boxes, found.valid, found.labels, *levels), expected)
    for (own,) in run(keypoints, found.boxes, found.valid, found.labels, *levels):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-3)
