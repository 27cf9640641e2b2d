"""Graphs that compute only the rows that count give what those of fixed shapes give, and take images without any."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detection.export.rows import keep_counted_rows
from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.pooler import RegionPooler
from detection.model.select import as_on_gpu
from detection.padded import Found

STRIDES = 4, 8, 16
SIDES = 6.0, 250.0, 600.0  # pixels of boxes of each level


def make_levels(images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(images, 3, 256 // stride, 320 // stride, generator=generator) for stride in STRIDES]


def make_found(sides: tuple[float, ...], counts: tuple[int, ...]) -> Found:
    """Rows of boxes of ``sides``, of which the first ``counts`` of each image are valid."""
    generator = torch.Generator().manual_seed(1)
    corners = 40 * torch.rand(len(counts), len(sides), 2, generator=generator)
    boxes = torch.cat([corners, corners + torch.tensor(sides)[:, None]], dim=2)
    valid = torch.arange(len(sides)) < torch.tensor(counts)[:, None]
    labels = torch.arange(valid.numel()).view_as(valid) % 2
    return Found(boxes, valid, torch.rand(valid.shape, generator=generator), labels)


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("sides", [SIDES, SIDES[:1]])
def test_regions_are_pooled_as_with_fixed_shapes(sides: tuple[float, ...], kind) -> None:
    holder = nn.ModuleList([RegionPooler(STRIDES, 7, kind=kind)])
    boxes, images = make_found(sides, (1, 1)).boxes.flatten(0, 1), torch.arange(2).repeat_interleave(len(sides))
    with as_on_gpu():
        expected = holder[0](make_levels(), boxes, images)
        keep_counted_rows(holder)
        assert torch.equal(holder[0](make_levels(), boxes, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masks", "keypoints"])
@pytest.mark.parametrize("counts", [(0, 0), (2, 3)])
@torch.no_grad()
def test_masks_and_keypoints_are_those_of_detections_in_every_runtime(counts: tuple[int, ...], kind: str, run) -> None:
    torch.manual_seed(0)
    pooler, heads = RegionPooler(STRIDES, 4, kind="roi_align"), nn.ModuleList()
    if kind == "masks":
        heads.append(MaskStage(pooler, MaskHead(3, num_classes=2, convs=1)))
    else:
        heads.append(KeypointStage(pooler, KeypointHead(3, num_keypoints=2, convs=1, channels=4)))
    levels, found = make_levels(), make_found(SIDES, counts)
    expected = torch.where(found.valid[..., None, None], getattr(heads[0](levels, found), kind), 0.0)
    keep_counted_rows(heads)

    def compute(boxes: Tensor, valid: Tensor, labels: Tensor, *levels: Tensor) -> Tensor:
        return getattr(heads[0](levels, replace(found, boxes=boxes, valid=valid, labels=labels)), kind)

    torch.testing.assert_close(compute(found.boxes, found.valid, found.labels, *levels), expected)
    for (own,) in run(compute, found.boxes, found.valid, found.labels, *levels):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5 if kind == "masks" else 1e-3)
