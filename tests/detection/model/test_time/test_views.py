"""Mirrors detection/model/test_time/views.py and label_maps.py."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.model.test_time.label_maps import LabelTester
from detection.model.test_time.views import adjacent_scales, flip_boxes, flip_images, resize_images
from detection.structures import Detections, ImageBatch

SCALES = (200, 400, 600, 800, 1000)


def noise(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def lower_of(sides: list[float], shorter: list[int], scales: tuple[int, ...] = SCALES) -> list[int]:
    """The lower scale of squares, each in an image with this shorter side."""
    boxes = torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side] for side in sides])
    return [scales[row] for row in adjacent_scales(boxes, torch.tensor(shorter), scales).tolist()]


class TestAdjacentScales:
    """An image with a shorter side of 600: a region of side s is 224 pixels large where the shorter side is 134400 / s,
    and is looked up in the two scales around that; exactly at a scale, there and below.
    """

    @pytest.mark.parametrize(
        ("sides", "lower"),
        [
            ((896, 600, 448, 337), 200),  # 150, below the lowest; 224, 300, 399
            ((335, 300, 225), 400),  # 401, 448, 597
            ((223, 192), 600),  # 603, 700
            ((150, 100, 1), 800),  # 896; 1344 and more: above the highest
            ((672, 336), 200),  # 200, 400
            ((224,), 400),
            ((168,), 600),
            ((134.4,), 800),
        ],
    )
    def test_by_hand(self, sides, lower) -> None:
        assert lower_of(sides, [600] * len(sides)) == [lower] * len(sides)

    def test_area_and_each_image_s_size_count(self) -> None:
        boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 900, 100], [100, 50, 250, 650]])
        assert adjacent_scales(boxes, torch.full((3,), 700), SCALES).tolist() == [1, 1, 1]  # 700 * 224 / 300 = 523
        assert lower_of([60] * 4, [60, 120, 200, 250]) == [200, 400, 600, 800]  # 224, 448, 747, 933
        assert lower_of([1, 50, 224, 500], [600] * 4, (400, 800)) == [400] * 4  # two scales are always both
        assert adjacent_scales(torch.tensor([[5.0, 5, 5, 9]]), torch.tensor([600]), SCALES).tolist() == [3]  # empty
        nothing = adjacent_scales(torch.zeros(0, 4), torch.zeros(0), SCALES)
        assert (nothing.shape, nothing.dtype) == ((0,), torch.int64)


class TestResizeImages:
    def test_sizes(self) -> None:
        for size, shorter, expected in (
            ((64, 80), 32, (32, 40)),
            ((80, 64), 32, (40, 32)),
            ((30, 45), 40, (40, 60)),
            ((50, 33), 20, (30, 20)),  # 50 * 20 / 33 = 30.3
            ((33, 56), 20, (20, 34)),  # 56 * 20 / 33 = 33.9
            ((10, 400), 5, (5, 200)),
        ):
            view = resize_images(ImageBatch.from_images([noise(*size)]), shorter)
            found = view.size_list(), view.pixels.shape, view.pixels.dtype
            assert found == ([expected], (1, 3, *expected), torch.uint8)

    def test_each_image_of_a_batch_has_its_own_factor_and_padding_does_not_leak_in(self) -> None:
        small, images = noise(90, 30, seed=1), ImageBatch.from_images([noise(64, 80), noise(90, 30, seed=1)])
        images.pixels[1, :, 90:], images.pixels[1, :, :, 30:] = 255, 255
        before = images.pixels.clone()
        view = resize_images(images, 60)
        assert (view.size_list(), view.pixels.shape) == ([(60, 75), (180, 60)], (2, 3, 180, 75))
        assert not view.pixels[0, :, 60:].any()
        assert not view.pixels[1, :, :, 60:].any()
        for shorter in (20, 60):
            height, width = 3 * shorter, shorter
            (alone,) = resize_images(ImageBatch.from_images([small]), shorter).pixels
            assert torch.equal(resize_images(images, shorter).pixels[1, :, :height, :width], alone)
        assert torch.equal(images.pixels, before)

    def test_pixels_are_those_of_the_float_image_rounded(self) -> None:
        images = ImageBatch.from_images([noise(64, 80), noise(90, 64)])
        assert torch.equal(resize_images(images, 64).pixels, images.pixels)  # its own size is the identity
        # Growing, bilinear, twice as large: points at quarters between two pixels, the outer ones at the border.
        image = torch.tensor([[0, 100], [0, 100]], dtype=torch.uint8).expand(3, -1, -1)
        assert resize_images(ImageBatch.from_images([image]), 4).pixels[0, 0].tolist() == [[0, 25, 75, 100]] * 4
        image = noise(32, 40)  # shrinking averages
        (view,) = resize_images(ImageBatch.from_images([image]), 16).pixels
        expected = F.interpolate(image[None].float(), size=(16, 20), mode="bilinear", antialias=True)[0]
        assert (view - expected).abs().max() <= 0.5 + 1e-3


class TestFlip:
    def test_boxes_of_each_image_in_its_own_width(self) -> None:
        boxes = torch.tensor([[[10.0, 20, 30, 50], [0, 0, 40, 5]], [[0, 0, 10, 5], [0, 0, 40, 5]]])
        expected = [[[70, 20, 90, 50], [60, 0, 100, 5]], [[30, 0, 40, 5], [0, 0, 40, 5]]]
        assert flip_boxes(boxes, torch.tensor([100, 40])).tolist() == expected
        for shape in ((2, 5, 4), (2, 5, 3, 4), (2, 0, 4), (2, 0, 3, 4)):
            corners, widths = torch.randint(0, 50, shape).float(), torch.tensor([120, 50])
            assert torch.equal(flip_boxes(flip_boxes(corners, widths), widths), corners)

    def test_images_within_their_own_width(self) -> None:
        wide, narrow = noise(20, 40), noise(30, 25, seed=1)
        images = ImageBatch.from_images([wide, narrow])
        before, flipped = images.pixels.clone(), flip_images(images)
        assert torch.equal(flipped.sizes, images.sizes)
        assert torch.equal(flipped.pixels[0, :, :20], wide.flip(-1))
        assert torch.equal(flipped.pixels[1, :, :, :25], narrow.flip(-1))
        assert not flipped.pixels[0, :, 20:].any()
        assert not flipped.pixels[1, :, :, 25:].any()
        assert torch.equal(flip_images(flipped).pixels, before)
        assert torch.equal(images.pixels, before)


# Label maps


class Slope(nn.Module):
    """Scores of two classes, from the red of a pixel and from its place, which a flip does not turn."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: ImageBatch) -> list[Detections]:
        none, found = torch.zeros(0), []
        for pixels, (height, width) in zip(images.pixels, images.size_list(), strict=True):
            place = torch.linspace(-1, 1, width).expand(height, width)
            scores = self.weight * torch.stack([pixels[0, :height, :width] / 64, place])
            found.append(Detections(boxes=torch.zeros(0, 4), scores=none, labels=none.long(), label_scores=scores))
        return found


def scores_of(found: list[Detections]) -> list[Tensor]:
    return [image.label_scores for image in found if image.label_scores is not None]


def test_mirrored_images_and_ensembles_are_averaged_as_finite_probabilities() -> None:
    networks, images = (Slope(), Slope(3.0)), ImageBatch.from_images([noise(9, 12), noise(12, 7, seed=1)])
    found = scores_of(LabelTester(networks, flip=True)(images))
    for row, (height, width) in enumerate(images.size_list()):
        image = ImageBatch.from_images([images.pixels[row, :, :height, :width]])
        mirrored = ImageBatch.from_images([images.pixels[row, :, :height, :width].flip(-1)])
        views = [scores_of(network(image))[0] for network in networks]
        views += [scores_of(network(mirrored))[0].flip(-1) for network in networks]
        wanted = torch.stack([view.softmax(dim=0) for view in views]).mean(dim=0)
        torch.testing.assert_close(found[row].exp(), wanted)
    flat = ImageBatch.from_images([torch.full((3, 4, 6), 255).byte()])
    (sure,) = scores_of(LabelTester([Slope(1000.0)], flip=True)(flat))
    assert sure.isfinite().all()  # interpolation makes NaN of an infinite score


def test_scales_are_brought_back_to_the_image_before_they_are_averaged() -> None:
    images = ImageBatch.from_images([noise(9, 12), noise(12, 7, seed=1)])
    found = scores_of(LabelTester([Slope()], scales=(6, 14))(images))
    assert [tuple(image.shape) for image in found] == [(2, 9, 12), (2, 12, 7)]
    torch.testing.assert_close(found[0].exp().sum(dim=0), torch.ones(9, 12))
    flat = ImageBatch.from_images([torch.full((3, 9, 12), 128).byte()])  # the place alone varies, linearly
    (own,) = scores_of(LabelTester([Slope()], scales=(18, 36))(flat))
    (plain,) = scores_of(Slope()(flat))
    inner = slice(2, -2)
    torch.testing.assert_close(own.exp()[:, :, inner], F.softmax(plain, dim=0)[:, :, inner], atol=0.03, rtol=0)
