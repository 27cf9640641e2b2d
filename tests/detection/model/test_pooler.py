"""Mirrors detection/model/pooler.py."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detection.model.pooler import RegionPooler
from detection.model.select import as_on_gpu

STRIDES = [4, 8, 16, 32]
both_kinds = pytest.mark.parametrize("kind", ["roi_pool", "roi_align"])
both_paths = pytest.mark.parametrize("path", [nullcontext, as_on_gpu], ids=["cpu", "gpu"])


def pool(pooler: RegionPooler, features: Sequence[Tensor], *images: Any) -> Tensor:
    """Pools the boxes (R_i, 4) of each image."""
    boxes = [torch.as_tensor(image, dtype=torch.float32).reshape(-1, 4) for image in images]
    counts = torch.tensor([len(image) for image in boxes])
    return pooler(features, torch.cat(boxes), torch.arange(len(boxes)).repeat_interleave(counts))


def random_boxes(images: int, count: int, sides: float, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = 200 * torch.rand(images, count, 2, generator=generator) - 30  # some reach out of the map
    return list(torch.cat([corners, corners + sides * torch.rand(images, count, 2, generator=generator) ** 3], dim=2))


def make_levels() -> list[Tensor]:
    generator, sizes = torch.Generator().manual_seed(0), [(256 // 2**level, 320 // 2**level) for level in range(2, 7)]
    return [torch.rand(2, 3, *size, generator=generator, requires_grad=True) for size in sizes]


def test_roi_pool_by_hand() -> None:
    numbers = [torch.arange(16.0).reshape(1, 1, 4, 4)]
    # Cells 0..3 by 0..3 in four bins of two by two; the last cell of a region belongs to it, as in Fast R-CNN.
    pooled = pool(RegionPooler([2], 2), numbers, [[0.0, 0, 6, 6]])
    torch.testing.assert_close(pooled, torch.tensor([[[[5.0, 7.0], [13.0, 15.0]]]]))
    # x from 1.2 / 2 to 4.8 / 2, that is from cell 1 to cell 2; y from cell 0 to cell 1.
    assert pool(RegionPooler([2], 1), numbers, [[1.2, 0.0, 4.8, 2.0]]).item() == 4 + 2


@both_kinds
def test_regions_come_image_by_image_in_their_type(kind) -> None:
    pooler = RegionPooler([16], 2, kind=kind)
    feature = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 2, 4, 4)
    pooled = pool(pooler, [feature], [[0.0, 0, 20, 20]], [], [[0.0, 0, 30, 30], [8, 8, 40, 40]])
    torch.testing.assert_close(pooled, torch.tensor([1.0, 3, 3])[:, None, None, None].expand(3, 2, 2, 2))
    feature = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    pooled, single = (pool(pooler, [part], [[3.0, 5.0, 70.0, 81.0]]) for part in (feature, feature.float()))
    assert torch.equal(pooled, single.bfloat16())


@pytest.mark.parametrize("kind", ["roi_align", "roi_align_unaligned"])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_roi_align_and_its_gradient_are_torchvisions(kind, sampling_ratio) -> None:
    generator, boxes = torch.Generator().manual_seed(0), random_boxes(3, 60, 150)
    feature = torch.rand(3, 5, 12, 17, generator=generator).requires_grad_()
    boxes[0][:3] = torch.tensor([[40.0, 40, 40, 40], [-500, -500, -400, -400], [0, 0, 17 * 8, 12 * 8]])
    ours = pool(RegionPooler([8], 4, kind=kind, sampling_ratio=sampling_ratio), [feature], *boxes)
    theirs = roi_align(feature, boxes, 4, 1 / 8, sampling_ratio, kind == "roi_align")
    torch.testing.assert_close(ours, theirs)
    weights = torch.rand(ours.shape, generator=generator)
    gradients = [torch.autograd.grad(pooled, feature, weights) for pooled in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@both_paths
@both_kinds
def test_a_region_is_pooled_from_the_level_of_its_size(kind, path) -> None:
    # FPN, equation 1: 4 + log2(side / 224), stride 16 at 224 pixels; the levels here have the strides 4 to 32.
    features = [torch.full((1, 1, 64, 64), float(number)) for number in range(4)]
    boxes = [(0.0, 0, side, side) for side in (1, 111.9, 112, 223.9, 224, 447.9, 448, 2000)]
    with path():
        pooled = pool(RegionPooler(STRIDES, 1, kind=kind), features, boxes)
    assert pooled.flatten().tolist() == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3])


@both_paths
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_levels_are_torchvisions(sampling_ratio, path) -> None:
    levels, boxes = make_levels(), random_boxes(2, 40, 1000)
    pooler = RegionPooler(STRIDES, 3, kind="roi_align_unaligned", sampling_ratio=sampling_ratio)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, sampling_ratio or -1)
    with path():
        ours = pool(pooler, levels, *boxes)  # levels beyond its own are left aside
    torch.testing.assert_close(ours, theirs(dict(zip("01234", levels, strict=True)), boxes, [(256, 320)] * 2))


@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "roi_align_unaligned"])
def test_the_path_of_a_gpu_and_its_gradient_are_those_of_a_cpu(kind) -> None:
    levels, (boxes,), found = make_levels()[:4], random_boxes(1, 80, 1000), []
    boxes[:4] = torch.tensor([0.0, 0, 0, 0])  # padding
    images = torch.randint(0, 2, (80,), generator=torch.Generator().manual_seed(1))
    pooler, order = RegionPooler(STRIDES, 3, kind=kind), torch.randperm(80)
    for path in (nullcontext, as_on_gpu):
        with path():
            pooled = pooler(levels, boxes, images)
            torch.testing.assert_close(pooler(levels, boxes[order], images[order]), pooled[order])
        weights = torch.rand(pooled.shape, generator=torch.Generator().manual_seed(2))
        found.append((pooled, *torch.autograd.grad(pooled, levels, weights)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_no_regions_have_a_gradient_of_zero_and_strides_double() -> None:
    nothing = pool(RegionPooler(STRIDES, 5), levels := make_levels()[:4], [], [])
    assert nothing.shape == (0, 3, 5, 5)
    assert not any(gradient.any() for gradient in torch.autograd.grad(nothing.sum(), levels))
    with pytest.raises(ValueError, match=r"double from level to level, got \(4, 16\)"):
        RegionPooler([4, 16], 2)
