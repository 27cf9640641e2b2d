"""Mirrors detection/model/test_time/views.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.model.test_time.views import adjacent_scales, flip_boxes, flip_images, resize_images
from detection.structures import ImageBatch

SCALES = (200, 400, 600, 800, 1000)


def noise(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def lower_of(boxes: Tensor, size: tuple[int, int], scales: tuple[int, ...] = SCALES) -> Tensor:
    """``adjacent_scales`` of the ``boxes`` of one image of ``size``."""
    return adjacent_scales(boxes, torch.full((len(boxes),), min(size)), scales)


def flipped_boxes(boxes: Tensor, width: int) -> Tensor:
    """``boxes`` of one image, mirrored."""
    return flip_boxes(boxes[None], torch.tensor([width]))[0]


def square(side: float) -> list[float]:
    return [10.0, 20.0, 10.0 + side, 20.0 + side]


class TestAdjacentScales:
    """An image with a shorter side of 600: a region of side s is 224 pixels large where the shorter side is 134400 / s,
    and is looked up in the two scales around that.
    """

    @pytest.mark.parametrize("size", [(600, 1000), (1000, 600)])
    @pytest.mark.parametrize(
        ("side", "pair"),
        [
            (896, (200, 400)),  # 150: below the lowest
            (600, (200, 400)),  # 224
            (448, (200, 400)),  # 300
            (337, (200, 400)),  # 399
            (335, (400, 600)),  # 401
            (300, (400, 600)),  # 448
            (225, (400, 600)),  # 597
            (223, (600, 800)),  # 603
            (192, (600, 800)),  # 700
            (150, (800, 1000)),  # 896
            (100, (800, 1000)),  # 1344: above the highest
            (1, (800, 1000)),
        ],
    )
    def test_by_hand(self, side: float, pair: tuple[int, int], size: tuple[int, int]) -> None:
        (lower,) = lower_of(torch.tensor([square(side)]), size).tolist()
        assert (SCALES[lower], SCALES[lower + 1]) == pair

    @pytest.mark.parametrize(
        ("side", "pair"),
        [(672, (200, 400)), (336, (200, 400)), (224, (400, 600)), (168, (600, 800)), (134.4, (800, 1000))],
    )
    def test_region_that_is_224_pixels_at_a_scale_is_looked_up_there_and_below(
        self, side: float, pair: tuple[int, int]
    ) -> None:
        (lower,) = lower_of(torch.tensor([square(side)]), (600, 1000)).tolist()
        assert (SCALES[lower], SCALES[lower + 1]) == pair

    def test_area_counts_not_the_shape(self) -> None:
        boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 900, 100], [100, 50, 250, 650]])
        assert lower_of(boxes, (700, 1000)).tolist() == [1, 1, 1]  # 700 * 224 / 300 = 523

    def test_size_of_the_image_counts(self) -> None:
        boxes = torch.tensor([square(60)])
        lower = [lower_of(boxes, (side, 500)).item() for side in (60, 120, 200, 250)]
        assert lower == [0, 1, 2, 3]  # 224, 448, 747, 933

    def test_each_region_has_the_size_of_its_own_image(self) -> None:
        boxes = torch.tensor([square(60)] * 4)
        assert adjacent_scales(boxes, torch.tensor([60, 120, 200, 250]), SCALES).tolist() == [0, 1, 2, 3]

    def test_two_scales_are_always_both(self) -> None:
        boxes = torch.tensor([square(side) for side in (1, 50, 224, 500)])
        assert lower_of(boxes, (600, 600), (400, 800)).tolist() == [0, 0, 0, 0]

    def test_empty_region_is_looked_up_in_the_highest(self) -> None:
        assert lower_of(torch.tensor([[5.0, 5, 5, 9]]), (600, 600)).tolist() == [3]

    def test_no_regions(self) -> None:
        lower = lower_of(torch.zeros(0, 4), (600, 600))
        assert lower.shape == (0,)
        assert lower.dtype == torch.int64


class TestResizeImages:
    """The same images at another scale."""

    @pytest.mark.parametrize(
        ("size", "shorter", "expected"),
        [
            ((64, 80), 32, (32, 40)),
            ((80, 64), 32, (40, 32)),
            ((30, 45), 40, (40, 60)),
            ((50, 33), 20, (30, 20)),  # 50 * 20 / 33 = 30.3
            ((33, 56), 20, (20, 34)),  # 56 * 20 / 33 = 33.9
            ((10, 400), 5, (5, 200)),
            ((7, 7), 9, (9, 9)),
        ],
    )
    def test_sizes(self, size: tuple[int, int], shorter: int, expected: tuple[int, int]) -> None:
        view = resize_images(ImageBatch.from_images([noise(*size)]), shorter)
        assert view.size_list() == [expected]
        assert view.pixels.shape == (1, 3, *expected)
        assert view.pixels.dtype == torch.uint8

    def test_each_image_of_a_batch_has_its_own_factor(self) -> None:
        images = ImageBatch.from_images([noise(64, 80), noise(90, 30)])
        view = resize_images(images, 60)
        assert view.size_list() == [(60, 75), (180, 60)]
        assert view.pixels.shape == (2, 3, 180, 75)
        assert not view.pixels[0, :, 60:].any()
        assert not view.pixels[1, :, :, 60:].any()

    def test_padding_does_not_leak_in(self) -> None:
        small = noise(40, 30, seed=1)
        images = ImageBatch.from_images([noise(64, 80), small])
        images.pixels[1, :, 40:], images.pixels[1, :, :, 30:] = 255, 255
        for shorter in (20, 45):
            (alone,) = resize_images(ImageBatch.from_images([small]), shorter).pixels
            batched = resize_images(images, shorter)
            height, width = batched.size_list()[1]
            assert torch.equal(batched.pixels[1, :, :height, :width], alone)

    def test_own_size_is_the_identity(self) -> None:
        images = ImageBatch.from_images([noise(64, 80), noise(90, 64)])
        view = resize_images(images, 64)
        assert torch.equal(view.sizes, images.sizes)
        assert torch.equal(view.pixels, images.pixels)

    def test_shrinking_averages(self) -> None:
        # Every fourth column is 200, so the mean is 50; the two pixels next to each new one's centre are 0.
        stripes = (torch.arange(48) % 4 == 0).to(torch.uint8).mul(200).expand(3, 32, -1)
        (view,) = resize_images(ImageBatch.from_images([stripes]), 8).pixels
        assert view.shape == (3, 8, 12)
        assert (view.int()[..., 1:-1] - 50).abs().max() <= 10

    def test_growing_interpolates_between_pixels(self) -> None:
        # Bilinear, twice as large: points at quarters between two pixels, the outer ones at the border.
        image = torch.tensor([[0, 100], [0, 100]], dtype=torch.uint8).expand(3, -1, -1)
        (view,) = resize_images(ImageBatch.from_images([image]), 4).pixels
        assert view[0].tolist() == [[0, 25, 75, 100]] * 4

    def test_arguments_stay(self) -> None:
        images = ImageBatch.from_images([noise(20, 30)])
        before = images.pixels.clone()
        resize_images(images, 10)
        assert torch.equal(images.pixels, before)

    def test_stays_near_the_float_image(self) -> None:
        image = noise(32, 40)
        (view,) = resize_images(ImageBatch.from_images([image]), 16).pixels
        expected = F.interpolate(image[None].float(), size=(16, 20), mode="bilinear", antialias=True)[0]
        assert (view - expected).abs().max() <= 0.5 + 1e-3  # rounded, not cut off


class TestFlip:
    """Left to right."""

    def test_boxes_by_hand(self) -> None:
        boxes = torch.tensor([[10.0, 20, 30, 50], [0, 0, 100, 5]])
        assert flipped_boxes(boxes, 100).tolist() == [[70, 20, 90, 50], [0, 0, 100, 5]]

    def test_boxes_of_each_image_in_its_own_width(self) -> None:
        boxes = torch.tensor([[[10.0, 20, 30, 50]], [[0, 0, 10, 5]]])
        assert flip_boxes(boxes, torch.tensor([100, 40])).tolist() == [[[70, 20, 90, 50]], [[30, 0, 40, 5]]]

    @pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (0, 4), (0, 3, 4)])
    def test_boxes_twice_is_the_identity(self, shape: tuple[int, ...]) -> None:
        corners = torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(0)).float()
        corners[..., 2:] += corners[..., :2]
        flipped = flipped_boxes(corners, 120)
        assert torch.equal(flipped_boxes(flipped, 120), corners)
        assert (flipped[..., 2:] >= flipped[..., :2]).all()

    def test_images_within_their_own_width(self) -> None:
        wide, narrow = noise(20, 40), noise(30, 25, seed=1)
        images = ImageBatch.from_images([wide, narrow])
        flipped = flip_images(images)
        assert torch.equal(flipped.sizes, images.sizes)
        assert torch.equal(flipped.pixels[0, :, :20], wide.flip(-1))
        assert torch.equal(flipped.pixels[1, :, :, :25], narrow.flip(-1))
        assert not flipped.pixels[0, :, 20:].any()
        assert not flipped.pixels[1, :, :, 25:].any()

    def test_images_twice_is_the_identity_and_arguments_stay(self) -> None:
        images = ImageBatch.from_images([noise(20, 40), noise(30, 25)])
        before = images.pixels.clone()
        assert torch.equal(flip_images(flip_images(images)).pixels, before)
        assert torch.equal(images.pixels, before)

    def test_symmetric_image_stays(self) -> None:
        half = noise(20, 15)
        images = ImageBatch.from_images([torch.cat([half, half.flip(-1)], dim=-1), noise(25, 40)])
        assert torch.equal(flip_images(images).pixels[0], images.pixels[0])

    def test_boxes_follow_their_pixels(self) -> None:
        image = torch.zeros(3, 20, 40, dtype=torch.uint8)
        image[:, 3:9, 5:17] = 255
        (flipped,) = flip_images(ImageBatch.from_images([image])).pixels
        x1, y1, x2, y2 = (int(v) for v in flipped_boxes(torch.tensor([5.0, 3, 17, 9]), 40))
        assert (flipped[:, y1:y2, x1:x2] == 255).all()
        assert math.isclose(flipped.sum().item(), image.sum().item())
