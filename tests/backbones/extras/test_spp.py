"""Mirrors spp.py."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_pool

from backbones.classifier import Classifier
from backbones.extras.spp import SPP, RegionPyramid, SpatialPyramid, SPPTail, num_bins
from backbones.registry import build_backbone
from detection.model.pooler import RegionPooler

LEVELS = (1, 2, 3, 6)
BOXES = [
    torch.tensor([[0.0, 0.0, 50.0, 90.0], [33.0, 17.0, 200.0, 101.0], [8.0, 8.0, 9.0, 9.0]]),
    torch.tensor([[100.0, 3.0, 399.0, 255.0]]),
]


def make_maps(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 5, height, width, generator=torch.Generator().manual_seed(0))


def by_hand(maps: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The definition, bin by bin."""

    def cells(place: int, n: int, side: int) -> slice:
        return slice(place * side // n, math.ceil((place + 1) * side / n))

    height, width = maps.shape[-2:]
    bins = [[maps[:, :, cells(i, n, height), cells(j, n, width)] for i in range(n) for j in range(n)] for n in levels]
    return torch.cat([torch.stack([b.amax(dim=(2, 3)) for b in level], dim=2).flatten(1) for level in bins], dim=1)


def test_pyramid_of_a_small_map() -> None:
    maps = torch.arange(9.0).view(1, 1, 3, 3)
    # level 2 of 3 cells: both bins hold the middle one
    assert SpatialPyramid((1, 2))(maps).tolist() == [[8.0, 4.0, 5.0, 7.0, 8.0]]
    assert SpatialPyramid()(make_maps(4, 5, count=0)).shape == (0, 250)
    assert RegionPyramid(16)([make_maps(4, 5)], [torch.zeros(0, 4)] * 2).shape == (0, 250)


@pytest.mark.parametrize("size", [(13, 13), (10, 10), (7, 20), (6, 5), (1, 1), (3, 40)])
def test_vector_has_one_length_for_all_sizes_and_the_paper_s_bins(size: tuple[int, int]) -> None:
    maps = make_maps(*size)
    vectors = SpatialPyramid()(maps)
    assert vectors.shape == (2, 5 * num_bins(LEVELS)) == (2, 5 * 50)
    torch.testing.assert_close(vectors, by_hand(maps, LEVELS), rtol=0, atol=0)
    whole = torch.tensor([[0.0, 0.0, 16 * (size[1] - 1), 16 * (size[0] - 1)]])
    torch.testing.assert_close(RegionPyramid(16)([maps], [whole, whole]), vectors, rtol=0, atol=0)


def test_every_level_is_region_pooling_in_the_order_of_the_levels() -> None:
    maps = make_maps(16, 25)
    expected = torch.cat([roi_pool(maps, BOXES, level, 1 / 16).flatten(1) for level in (3, 1)], dim=1)
    torch.testing.assert_close(RegionPyramid(16, (3, 1))([maps], BOXES), expected, rtol=0, atol=0)


def test_regions_pooled_to_the_finest_level_and_then_the_tail_are_the_pyramid_of_regions() -> None:
    corners = torch.rand(200, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1000.0, 600.0])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    maps, tail = make_maps(38, 63, count=1), SPPTail(5)
    pooled = RegionPooler([16], tail.roi_size)([maps], boxes, torch.zeros(len(boxes)).long())
    assert (tail.roi_size, tail.out_channels) == (6, 250)
    torch.testing.assert_close(tail(pooled), RegionPyramid(16)([maps], [boxes]), rtol=0, atol=0)


def test_regions_keep_the_precision_of_the_map_and_pass_gradients() -> None:
    maps = make_maps(16, 25).to(torch.bfloat16).requires_grad_()
    vectors = RegionPyramid(16)([maps], BOXES)
    assert vectors.dtype == torch.bfloat16
    assert torch.autograd.grad(vectors.sum(), maps)[0].any()


@torch.no_grad()
def test_classifier_takes_images_of_all_sizes() -> None:
    classifier = Classifier(SPP(build_backbone("vgg11", roi_size=1), (1, 2)), 3).eval()
    assert not [name for name, _ in classifier.named_parameters() if "fc6" in name or "fc7" in name]
    for size in ((32, 32), (50, 81)):
        images = torch.rand(2, 3, *size)
        expected = classifier.fc(by_hand(classifier.backbone(images)["c5"], (1, 2)))
        torch.testing.assert_close(classifier(images), expected, rtol=1e-5, atol=1e-5)


def test_is_the_backbone_below() -> None:
    with torch.device("meta"):
        body = build_backbone("resnet18", out_features=("c3", "c5"))
        spp = SPP(body)
        shapes = {name: feature.shape[-2:] for name, feature in spp(torch.zeros(1, 3, 33, 64)).items()}
    assert (spp.specs, spp.input_stats, spp.tail().in_channels) == (body.specs, body.input_stats, 512)
    assert shapes == {"c3": (5, 8), "c5": (2, 2)}


@pytest.mark.parametrize("make", [SpatialPyramid, lambda n: RegionPyramid(16, n), lambda n: SPPTail(5, n)])
def test_impossible_levels_are_named(make) -> None:
    for levels in ((), (1, 0)):
        with pytest.raises(ValueError, match=r"levels must be some bins per side"):
            make(levels)
