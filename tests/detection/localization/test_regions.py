"""Mirrors detection/localization/regions.py, and detection/data/class_labels.py."""

from itertools import islice
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.data.class_labels import image_labels
from detection.data.index import AnnotationIndex
from detection.data.proposals import StoredProposals
from detection.localization.regions import RegionBatches, RegionDataset, region_loader, to_region, warp
from detection.model.box_coder import BoxCoder

SIDE = 32
OBJECT = (20.0, 10.0, 50.0, 40.0)
HALF, LESS, FAR = (20.0, 10.0, 50.0, 25.0), (20.0, 10.0, 50.0, 24.0), (60.0, 0.0, 80.0, 60.0)  # the first: IoU 0.5


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_each_image_has_one_class(make_index) -> None:
    cat, dog, ignored = ((OBJECT, label, ignore) for label, ignore in ((0, False), (1, False), (1, True)))
    assert image_labels(make_index([[dog], [], [cat, cat], [ignored], [ignored, cat]])).tolist() == [1, -1, 0, -1, 0]
    assert image_labels(make_index([])).tolist() == []
    for objects in ([cat, dog], [dog, cat]):
        with pytest.raises(ValueError, match=r"1\.jpg has objects of the classes cat, dog; .* one class"):
            image_labels(make_index([[dog], objects]))


def test_warping_copies_whole_pixels_and_enlarges_as_opencv() -> None:
    image = noise(60, 80)
    (warped,) = warp(image, torch.tensor([[20.0, 8.0, 52.0, 40.0]]), SIDE)
    assert torch.equal(warped, image[:, 8:40, 20:52])
    (warped,) = warp(image, torch.tensor([[0.0, 0.0, 80.0, 60.0]]), 120)
    expected = cv2.resize(image.permute(1, 2, 0).numpy(), (120, 120), interpolation=cv2.INTER_LINEAR)
    found = warped.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1  # OpenCV has fixed-point weights
    assert warp(image, torch.zeros(0, 4), SIDE).shape == (0, 3, SIDE, SIDE)
    # Fractions of pixels
    ramp = torch.arange(80, dtype=torch.uint8).expand(3, 60, 80)
    (warped,) = warp(ramp, torch.tensor([[10.5, 0.0, 74.5, 60.0]]), SIDE)
    # Pixel u is centred at 10.5 + 2 (u + 1/2) of the image, whose own pixel v is centred at v + 1/2.
    assert torch.equal(warped[0, 0].float(), 10.5 + 2 * (torch.arange(SIDE) + 0.5) - 0.5)


def test_a_box_comes_back_from_its_region() -> None:
    region = torch.tensor([10.0, 20.0, 30.0, 60.0])  # 20 x 40 pixels become 32 x 32
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [15.0, 30.0, 20.0, 40.0], [0.0, 0.0, 40.0, 80.0]])
    expected = [[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 16.0, 16.0], [-16.0, -16.0, 48.0, 48.0]]
    assert to_region(boxes, region, SIDE).tolist() == expected
    # As training and test do: encoded against the warped square, decoded against the region.
    coder, generator = BoxCoder((10.0, 10.0, 5.0, 5.0)), torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, 2, generator=generator) * 100
    box, whole = torch.tensor(OBJECT), torch.tensor([0.0, 0.0, SIDE, SIDE])
    for region in torch.cat([corners[:, 0], corners[:, 0] + corners[:, 1] + 1], dim=1):
        deltas = coder.encode(to_region(box, region, SIDE), whole)
        torch.testing.assert_close(coder.decode(deltas, region), box, atol=1e-3, rtol=1e-4)


def stored(*images: list[tuple[float, ...]]) -> StoredProposals:
    boxes = torch.tensor([box for image in images for box in image], dtype=torch.float32).reshape(-1, 4)
    return StoredProposals(torch.tensor([len(image) for image in images]).cumsum(0), boxes, torch.zeros(len(boxes)))


class TestDataset:
    @pytest.fixture
    def index(self, make_index, tmp_path) -> AnnotationIndex:
        picture = np.zeros((60, 80, 3), np.uint8)
        picture[10:40, 20:50] = 255
        paths = [str(tmp_path / f"{number}.png") for number in range(3)]
        for path in paths:
            Image.fromarray(picture).save(path)
        objects = [[(OBJECT, 1, False)], [], [((0, 0, 5, 5), 1, False), (OBJECT, 1, False), (HALF, 1, True)]]
        return make_index(objects, paths=paths)

    def make(self, index: Any, *images: list[tuple[float, ...]], seed: int = 3) -> RegionDataset:
        return RegionDataset(index, stored(*images), side=SIDE, positive_iou=0.5, seed=seed)

    @pytest.fixture
    def dataset(self, index) -> RegionDataset:
        return self.make(index, [OBJECT, HALF, LESS, FAR], [], [HALF, (0, 0, 5, 5)])

    def test_samples_by_hand(self, dataset, index) -> None:
        """Numbers run over all images; objects are not cut, and those of the largest overlap that are not ignored."""
        whole, twice = [[0.0, 0.0, 32.0, 32.0]], [[0.0, 0.0, 32.0, 64.0]]
        expected = [(0, whole), (0, twice), (0, []), (0, []), (2, twice), (2, whole)]
        assert len(dataset) == 6
        for number, (row, boxes) in enumerate(expected):
            for position in range(4):
                sample = dataset[position, number]
                assert (sample.row, sample.path, sample.image.shape) == (row, index.paths[row], (3, SIDE, SIDE))
                assert sample.target.boxes.tolist() == boxes
                assert (sample.target.labels.tolist(), sample.target.ignore.any()) == ([1] * len(boxes), False)
        with pytest.raises(ValueError, match="no region to train on"):
            self.make(index, [], [], [])

    def test_seed_and_position_decide_what_is_mirrored_with_its_box(self, index) -> None:
        def mirrored(seed: int) -> list[bool]:
            """Whether a region whose left 20 of 28 columns are the object's is mirrored, position by position."""
            dataset = self.make(index, [(30, 10, 58, 40)], [], [], seed=seed)
            return [bool(dataset[position, 0].image[0, 0, 0] == 0) for position in range(24)]

        first, dataset = mirrored(0), self.make(index, [(30, 10, 58, 40)], [], [], seed=0)
        assert 6 <= sum(first) <= 18
        assert mirrored(0) == first != mirrored(1)
        plain, other = (dataset[first.index(value), 0] for value in (False, True))
        assert torch.equal(other.image, plain.image.flip(2))
        left, right = -10 / 28 * SIDE, 20 / 28 * SIDE
        assert plain.target.boxes[0].tolist() == pytest.approx([left, 0, right, SIDE])
        assert other.target.boxes[0].tolist() == pytest.approx([SIDE - right, 0, SIDE - left, SIDE])

    def test_batches_do_not_depend_on_workers_or_start(self, dataset) -> None:
        whole = list(islice(region_loader(dataset, 0, batch_size=3, seed=7), 3))
        for workers, start in ((1, 0), (0, 2)):
            loader = iter(region_loader(dataset, workers, batch_size=3, seed=7, start=start))
            for expected in whole[start:]:
                batch = next(loader)
                assert batch.rows == expected.rows
                assert torch.equal(batch.images.pixels, expected.images.pixels)
                assert torch.equal(batch.targets.boxes, expected.targets.boxes)
                assert torch.equal(batch.targets.valid, expected.targets.valid)


def test_batches_of_every_region_run_on_from_the_start() -> None:
    def keys(seed: int, start: int = 0) -> list[list[tuple[int, int]]]:
        return list(islice(RegionBatches(1000, batch_size=4, seed=seed, start=start), 3))

    assert [position for batch in keys(0, start=5) for position, _ in batch] == list(range(20, 32))
    assert keys(0, start=1)[:2] == keys(0)[1:]
    assert keys(0) != keys(1)
    batches = islice(RegionBatches(10, batch_size=20, seed=0), 10)
    assert {number for batch in batches for _, number in batch} == set(range(10))
