"""Mirrors detection/model/pooler.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detection.model.pooler import PoolKind, RegionPooler
from detection.model.select import as_on_gpu

Kind = Literal["roi_pool", "roi_align"]
AlignKind = Literal["roi_align", "roi_align_unaligned"]
KINDS: list[Kind] = ["roi_pool", "roi_align"]
both_paths = pytest.mark.parametrize("path", [nullcontext, as_on_gpu], ids=["cpu", "gpu"])


def pool(pooler: RegionPooler, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """Pools the ``boxes`` (R_i, 4) of each image."""
    counts = torch.tensor([len(image) for image in boxes])
    return pooler(features, torch.cat(list(boxes)), torch.arange(len(boxes)).repeat_interleave(counts))


def numbered_map(height: int, width: int) -> Tensor:
    """(1, 1, H, W) counting from 0, row by row."""
    return torch.arange(float(height * width)).reshape(1, 1, height, width)


def test_roi_pool_by_hand() -> None:
    # Cells 0..3 by 0..3 in four bins of two by two; the last cell of a region belongs to it, as in Fast R-CNN.
    pooled = pool(RegionPooler([2], 2), [numbered_map(4, 4)], [torch.tensor([[0.0, 0, 6, 6]])])
    torch.testing.assert_close(pooled, torch.tensor([[[[5.0, 7.0], [13.0, 15.0]]]]))


def test_roi_pool_rounds_regions_to_cells() -> None:
    # x from 1.2 / 2 to 4.8 / 2, that is from cell 1 to cell 2; y from cell 0 to cell 1.
    pooled = pool(RegionPooler([2], 1), [numbered_map(4, 4)], [torch.tensor([[1.2, 0.0, 4.8, 2.0]])])
    assert pooled.item() == 4 + 2


def test_roi_pool_of_the_whole_image_into_one_cell_is_the_maximum() -> None:
    feature = torch.rand(1, 7, 5, 6, generator=torch.Generator().manual_seed(0))
    pooled = pool(RegionPooler([16], 1), [feature], [torch.tensor([[0.0, 0, 6 * 16, 5 * 16]])])
    torch.testing.assert_close(pooled.flatten(), feature.amax(dim=(2, 3)).flatten())


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_roi_align_is_exact_on_a_linear_ramp(sampling_ratio: int) -> None:
    stride, size = 8, 3
    x, y = (torch.arange(10.0) + 0.5) * stride, (torch.arange(8.0) + 0.5) * stride  # centres of the cells, pixels
    ramp = (2 * x[None, :] - 3 * y[:, None] + 5)[None, None]
    box = torch.tensor([[11.0, 9.5, 53.0, 47.0]])
    pooled = pool(RegionPooler([stride], size, kind="roi_align", sampling_ratio=sampling_ratio), [ramp], [box])
    bins = (torch.arange(3.0) + 0.5) / size
    bin_x, bin_y = 11 + bins * (53 - 11), 9.5 + bins * (47 - 9.5)
    torch.testing.assert_close(pooled[0, 0], 2 * bin_x[None, :] - 3 * bin_y[:, None] + 5)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_come_image_by_image(kind: Kind) -> None:
    feature = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 2, 4, 4)
    boxes = [torch.tensor([[0.0, 0, 20, 20]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 30, 30], [8, 8, 40, 40]])]
    pooled = pool(RegionPooler([16], 2, kind=kind), [feature], boxes)
    assert pooled.shape == (3, 2, 2, 2)
    torch.testing.assert_close(pooled.mean(dim=(1, 2, 3)), torch.tensor([1.0, 3.0, 3.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_comes_out_as_it_went_in(kind: Kind) -> None:
    feature = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    boxes = [torch.tensor([[3.0, 5.0, 70.0, 81.0]])]
    pooler = RegionPooler([16], 2, kind=kind)
    pooled = pool(pooler, [feature], boxes)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, pool(pooler, [feature.float()], boxes).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_no_regions(kind: Kind) -> None:
    feature = torch.rand(2, 3, 4, 4, requires_grad=True)
    pooled = pool(RegionPooler([16], 5, kind=kind), [feature], [torch.zeros(0, 4)] * 2)
    assert pooled.shape == (0, 3, 5, 5)
    pooled.sum().backward()
    assert feature.grad is not None
    assert not feature.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_only_the_region(kind: Kind) -> None:
    feature = torch.rand(1, 1, 8, 8, requires_grad=True)
    pool(RegionPooler([16], 2, kind=kind), [feature], [torch.tensor([[32.0, 32, 63, 63]])]).sum().backward()
    assert feature.grad is not None
    assert feature.grad[0, 0, 2:5, 2:5].any()
    assert not feature.grad[0, 0, 6:].any()


@pytest.mark.parametrize("kind", ["roi_align", "roi_align_unaligned"])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_roi_align_and_its_gradient_are_torchvisions(kind: AlignKind, sampling_ratio: int) -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.rand(3, 5, 12, 17, generator=generator).requires_grad_()
    corners = 160 * torch.rand(3, 60, 2, generator=generator) - 30  # some lie outside the map
    sides = 150 * torch.rand(3, 60, 2, generator=generator) ** 3
    boxes = list(torch.cat([corners, corners + sides], dim=2).float())
    boxes[0][:3] = torch.tensor([[40.0, 40, 40, 40], [-500, -500, -400, -400], [0, 0, 17 * 8, 12 * 8]])
    ours = pool(RegionPooler([8], 4, kind=kind, sampling_ratio=sampling_ratio), [feature], boxes)
    rows = torch.cat([torch.full((60, 1), float(row)) for row in range(3)])
    regions, aligned = torch.cat([rows, torch.cat(boxes)], dim=1), kind == "roi_align"
    theirs = roi_align(feature, regions, 4, 1 / 8, sampling_ratio, aligned)
    torch.testing.assert_close(ours, theirs)
    weights = torch.rand(ours.shape, generator=generator)
    gradients = [torch.autograd.grad(pooled, feature, weights) for pooled in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# Several levels


def make_levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 256 // 2**level, 320 // 2**level, generator=generator) for level in range(2, 7)]


@pytest.mark.parametrize(
    ("side", "level"),
    [(1.0, 0), (111.9, 0), (112.0, 1), (223.9, 1), (224.0, 2), (447.9, 2), (448.0, 3), (2000.0, 3)],
)
@both_paths
def test_a_region_is_pooled_from_the_level_of_its_size(
    side: float, level: int, path: Callable[[], AbstractContextManager[None]]
) -> None:
    # FPN, equation 1: 4 + log2(side / 224), stride 16 at 224 pixels; the levels here have the strides 4 to 32.
    features = [torch.full((1, 1, 64, 64), float(number)) for number in range(4)]
    for kind in KINDS:
        with path():
            pooled = pool(RegionPooler([4, 8, 16, 32], 1, kind=kind), features, [torch.tensor([[0.0, 0, side, side]])])
        assert pooled.item() == pytest.approx(level)


@both_paths
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_levels_are_torchvisions(sampling_ratio: int, path: Callable[[], AbstractContextManager[None]]) -> None:
    levels, generator = make_levels(), torch.Generator().manual_seed(1)
    corners = 200 * torch.rand(2, 40, 2, generator=generator)
    sides = 1000 * torch.rand(2, 40, 2, generator=generator) ** 3
    boxes = list(torch.cat([corners, corners + sides], dim=2))
    pooler = RegionPooler([4, 8, 16, 32], 3, kind="roi_align_unaligned", sampling_ratio=sampling_ratio)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, sampling_ratio or -1)
    named = {str(number): level for number, level in enumerate(levels)}
    with path():
        ours = pool(pooler, levels, boxes)
    torch.testing.assert_close(ours, theirs(named, boxes, [(256, 320)] * 2))


@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "roi_align_unaligned"])
def test_the_path_of_a_gpu_and_its_gradient_are_those_of_a_cpu(kind: PoolKind) -> None:
    levels, generator = [level.requires_grad_() for level in make_levels()[:4]], torch.Generator().manual_seed(1)
    corners = 200 * torch.rand(80, 2, generator=generator)
    boxes = torch.cat([corners, corners + 1000 * torch.rand(80, 2, generator=generator) ** 3], dim=1)
    boxes[:4] = torch.tensor([0.0, 0, 0, 0])  # padding
    images = torch.randint(0, 2, (80,), generator=generator)
    pooler, found = RegionPooler([4, 8, 16, 32], 3, kind=kind), []
    for path in (nullcontext, as_on_gpu):
        with path():
            pooled = pooler(levels, boxes, images)
        weights = torch.rand(pooled.shape, generator=torch.Generator().manual_seed(2))
        found.append((pooled, *torch.autograd.grad(pooled, levels, weights)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@both_paths
@pytest.mark.parametrize("kind", KINDS)
def test_regions_come_in_the_order_of_the_boxes(kind: Kind, path: Callable[[], AbstractContextManager[None]]) -> None:
    levels, pooler = make_levels(), RegionPooler([4, 8, 16, 32], 2, kind=kind)
    boxes = torch.tensor([[3.0, 5, 90, 80], [3, 5, 290, 250], [0, 0, 9, 9], [100, 100, 240, 250]])
    images, order = torch.tensor([1, 0, 1, 0]), torch.tensor([2, 0, 3, 1])
    with path():
        torch.testing.assert_close(pooler(levels, boxes[order], images[order]), pooler(levels, boxes, images)[order])


def test_levels_beyond_its_own_are_left_aside() -> None:
    levels, boxes = make_levels(), [torch.tensor([[3.0, 5, 90, 80]]), torch.tensor([[3.0, 5, 290, 250]])]
    pooler = RegionPooler([4, 8, 16, 32], 2)
    torch.testing.assert_close(pool(pooler, levels, boxes), pool(pooler, levels[:4], boxes))


def test_no_regions_on_any_level() -> None:
    levels = [level.requires_grad_() for level in make_levels()[:4]]
    pooled = pool(RegionPooler([4, 8, 16, 32], 5), levels, [torch.zeros(0, 4)] * 2)
    assert pooled.shape == (0, 3, 5, 5)
    pooled.sum().backward()


def test_gradient_reaches_the_level_of_each_region_only() -> None:
    levels = [level.requires_grad_() for level in make_levels()[:4]]
    boxes = [torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([[0.0, 0, 300, 250]])]
    pool(RegionPooler([4, 8, 16, 32], 2, kind="roi_align"), levels, boxes).sum().backward()
    reached = [[bool(image.any()) for image in level.grad] for level in levels if level.grad is not None]
    assert reached == [[True, False], [False, False], [False, True], [False, False]]


def test_strides_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match=r"double from level to level, got \(4, 16\)"):
        RegionPooler([4, 16], 2)
