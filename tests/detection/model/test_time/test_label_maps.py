"""Mirrors detection/model/test_time/label_maps.py."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.model.test_time.label_maps import LabelTester
from detection.structures import Detections, ImageBatch


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


@pytest.fixture
def images() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    sizes = (9, 12), (12, 7)
    return ImageBatch.from_images([torch.randint(256, (3, *s), generator=generator).byte() for s in sizes])


def test_mirrored_images_and_ensembles_are_averaged_as_probabilities(images) -> None:
    networks = Slope(), Slope(3.0)
    found = scores_of(LabelTester(networks, flip=True)(images))
    for row, (height, width) in enumerate(images.size_list()):
        image = ImageBatch.from_images([images.pixels[row, :, :height, :width]])
        mirrored = ImageBatch.from_images([images.pixels[row, :, :height, :width].flip(-1)])
        views = [scores_of(network(image))[0] for network in networks]
        views += [scores_of(network(mirrored))[0].flip(-1) for network in networks]
        wanted = torch.stack([view.softmax(dim=0) for view in views]).mean(dim=0)
        torch.testing.assert_close(found[row].exp(), wanted)


def test_scales_are_brought_back_to_the_image_before_they_are_averaged(images) -> None:
    found = scores_of(LabelTester([Slope()], scales=(6, 14))(images))
    assert [tuple(image.shape) for image in found] == [(2, 9, 12), (2, 12, 7)]
    torch.testing.assert_close(found[0].exp().sum(dim=0), torch.ones(9, 12))
    flat = ImageBatch.from_images([torch.full((3, 9, 12), 128).byte()])  # the place alone varies, linearly
    (own,) = scores_of(LabelTester([Slope()], scales=(18, 36))(flat))
    (plain,) = scores_of(Slope()(flat))
    inner = slice(2, -2)
    torch.testing.assert_close(own.exp()[:, :, inner], F.softmax(plain, dim=0)[:, :, inner], atol=0.03, rtol=0)


def test_scores_stay_finite_where_a_class_is_certain() -> None:
    flat = ImageBatch.from_images([torch.full((3, 4, 6), 255).byte()])
    (found,) = scores_of(LabelTester([Slope(1000.0)], flip=True)(flat))
    assert found.isfinite().all()  # interpolation makes NaN of an infinite score
