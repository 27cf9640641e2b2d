"""Mirrors detection/localization/regions.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

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

MakeIndex = Callable[..., AnnotationIndex]
SIDE = 32
OBJECT = (20.0, 10.0, 50.0, 40.0)


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class TestImageLabels:
    """One class per image."""

    def test_by_hand(self, make_index: MakeIndex) -> None:
        box = (0, 0, 10, 10)
        index = make_index([[(box, 1, False)], [], [(box, 0, False), (box, 0, False)], [(box, 1, True)]])
        assert image_labels(index).tolist() == [1, -1, 0, -1]

    def test_ignored_objects_have_no_say(self, make_index: MakeIndex) -> None:
        box = (0, 0, 10, 10)
        assert image_labels(make_index([[(box, 1, True), (box, 0, False)]])).tolist() == [0]

    def test_no_image(self, make_index: MakeIndex) -> None:
        assert image_labels(make_index([])).tolist() == []

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_two_classes_are_refused(self, make_index: MakeIndex, order: tuple[int, int]) -> None:
        box = (0, 0, 10, 10)
        index = make_index([[(box, 1, False)], [(box, label, False) for label in order]])
        with pytest.raises(ValueError, match=r"1\.jpg has objects of the classes cat, dog; .* one class"):
            image_labels(index)


class TestWarp:
    """Where the pixels of a warped region come from."""

    def test_whole_pixels_are_copied(self) -> None:
        image = noise(60, 80)
        (warped,) = warp(image, torch.tensor([[20.0, 8.0, 52.0, 40.0]]), SIDE)
        assert torch.equal(warped, image[:, 8:40, 20:52])

    def test_enlarging_is_that_of_opencv(self) -> None:
        image = noise(20, 28)
        (warped,) = warp(image, torch.tensor([[0.0, 0.0, 28.0, 20.0]]), 48)
        expected = cv2.resize(image.permute(1, 2, 0).numpy(), (48, 48), interpolation=cv2.INTER_LINEAR)
        assert (
            np.abs(warped.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
        )  # OpenCV has fixed-point weights

    def test_fractions_of_pixels(self) -> None:
        ramp = torch.arange(80, dtype=torch.uint8).expand(3, 60, 80)
        (warped,) = warp(ramp, torch.tensor([[10.5, 0.0, 74.5, 60.0]]), SIDE)
        # Pixel u is centred at 10.5 + 2 (u + 1/2) of the image, whose own pixel v is centred at v + 1/2.
        expected = 10.5 + 2 * (torch.arange(SIDE) + 0.5) - 0.5
        assert torch.equal(warped[0, 0].float(), expected)

    def test_an_object_lands_where_its_box_does(self) -> None:
        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        image[:, 10:40, 20:50] = 255
        region = torch.tensor([11.0, 4.0, 61.0, 52.0])
        (warped,) = warp(image, region[None], 96)
        rows, columns = (warped[0] >= 128).nonzero().unbind(1)
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(found, to_region(torch.tensor(OBJECT), region, 96), atol=1.0, rtol=0)

    def test_no_region(self) -> None:
        assert warp(noise(60, 80), torch.zeros(0, 4), SIDE).shape == (0, 3, SIDE, SIDE)


def test_to_region_by_hand() -> None:
    region = torch.tensor([10.0, 20.0, 30.0, 60.0])  # 20 x 40 pixels become 32 x 32
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [15.0, 30.0, 20.0, 40.0], [0.0, 0.0, 40.0, 80.0]])
    expected = [[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 16.0, 16.0], [-16.0, -16.0, 48.0, 48.0]]
    assert to_region(boxes, region, SIDE).tolist() == expected


def test_a_box_comes_back_from_its_region() -> None:
    # As training and test do: encoded against the warped square, decoded against the region.
    coder, generator = BoxCoder((10.0, 10.0, 5.0, 5.0)), torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, 2, generator=generator) * 100
    regions = torch.cat([corners[:, 0], corners[:, 0] + corners[:, 1] + 1], dim=1)
    box, whole = torch.tensor(OBJECT), torch.tensor([0.0, 0.0, SIDE, SIDE])
    for region in regions:
        deltas = coder.encode(to_region(box, region, SIDE), whole)
        torch.testing.assert_close(coder.decode(deltas, region), box, atol=1e-3, rtol=1e-4)


def stored(*images: list[tuple[float, ...]]) -> StoredProposals:
    boxes = torch.tensor([box for image in images for box in image], dtype=torch.float32).reshape(-1, 4)
    ends = torch.tensor([len(image) for image in images]).cumsum(0)
    return StoredProposals(ends, boxes, torch.zeros(len(boxes)))


class TestDataset:
    """Samples of two pictures with a white object on black, and of one without objects or proposals."""

    HALF = (20.0, 10.0, 50.0, 25.0)  # IoU 0.5 with the object
    LESS = (20.0, 10.0, 50.0, 24.0)
    FAR = (60.0, 0.0, 80.0, 60.0)

    @pytest.fixture
    def index(self, make_index: MakeIndex, tmp_path: Path) -> AnnotationIndex:
        picture = np.zeros((60, 80, 3), np.uint8)
        picture[10:40, 20:50] = 255
        for number in range(3):
            Image.fromarray(picture).save(tmp_path / f"{number}.png")
        objects = [[(OBJECT, 1, False)], [], [((0, 0, 5, 5), 1, False), (OBJECT, 1, False), (self.HALF, 1, True)]]
        return make_index(objects, paths=[str(tmp_path / f"{number}.png") for number in range(3)])

    @pytest.fixture
    def dataset(self, index: AnnotationIndex) -> RegionDataset:
        proposals = stored([OBJECT, self.HALF, self.LESS, self.FAR], [], [self.HALF, (0, 0, 5, 5)])
        return RegionDataset(index, proposals, side=SIDE, positive_iou=0.5, seed=3)

    @pytest.mark.parametrize(("number", "row"), [(0, 0), (3, 0), (4, 2), (5, 2)])
    def test_number_runs_over_all_images(self, dataset: RegionDataset, number: int, row: int) -> None:
        sample = dataset[0, number]
        assert (sample.row, sample.path) == (row, dataset.index.paths[row])
        assert sample.image.shape == (3, SIDE, SIDE)
        assert len(dataset) == 6

    @pytest.mark.parametrize(("number", "found"), [(0, 1), (1, 1), (2, 0), (3, 0)])
    def test_positives_have_the_object(self, dataset: RegionDataset, number: int, found: int) -> None:
        assert dataset[0, number].target.labels.tolist() == [1] * found

    def test_object_is_not_cut_at_the_regions_border(self, dataset: RegionDataset) -> None:
        for position in range(4):
            assert dataset[position, 1].target.boxes.tolist() == [[0.0, 0.0, 32.0, 64.0]]

    def test_the_object_of_the_largest_overlap_that_is_not_ignored(self, dataset: RegionDataset) -> None:
        half, corner = dataset[0, 4].target, dataset[0, 5].target
        assert half.boxes.tolist() == [[0.0, 0.0, 32.0, 64.0]]
        assert (half.ignore.tolist(), corner.boxes.tolist()) == ([False], [[0.0, 0.0, 32.0, 32.0]])

    def mirrored(self, index: AnnotationIndex, seed: int) -> list[bool]:
        """Whether a region whose left 20 of 28 columns are the object's is mirrored, position by position."""
        dataset = RegionDataset(index, stored([(30, 10, 58, 40)], [], []), side=SIDE, positive_iou=0.5, seed=seed)
        return [bool(dataset[position, 0].image[0, 0, 0] == 0) for position in range(24)]

    def test_mirrored_box_lies_on_the_mirrored_object(self, index: AnnotationIndex) -> None:
        dataset = RegionDataset(index, stored([(30, 10, 58, 40)], [], []), side=SIDE, positive_iou=0.5, seed=0)
        mirrored = self.mirrored(index, 0)
        plain, other = (dataset[mirrored.index(value), 0] for value in (False, True))
        assert torch.equal(other.image, plain.image.flip(2))
        left, right = -10 / 28 * SIDE, 20 / 28 * SIDE
        assert plain.target.boxes[0].tolist() == pytest.approx([left, 0, right, SIDE])
        assert other.target.boxes[0].tolist() == pytest.approx([SIDE - right, 0, SIDE - left, SIDE])

    def test_seed_and_position_decide_what_is_mirrored(self, index: AnnotationIndex) -> None:
        first = self.mirrored(index, 0)
        assert 6 <= sum(first) <= 18
        assert self.mirrored(index, 0) == first
        assert self.mirrored(index, 1) != first

    def test_no_proposals_are_refused(self, index: AnnotationIndex) -> None:
        with pytest.raises(ValueError, match="no region to train on"):
            RegionDataset(index, stored([], [], []), side=SIDE, positive_iou=0.5, seed=0)

    def test_batches_do_not_depend_on_workers_or_start(self, dataset: RegionDataset) -> None:
        whole = list(islice(region_loader(dataset, 0, batch_size=3, seed=7), 3))
        for workers, start in ((1, 0), (0, 2)):
            loader = iter(region_loader(dataset, workers, batch_size=3, seed=7, start=start))
            for expected in whole[start:]:
                batch = next(loader)
                assert batch.rows == expected.rows
                assert torch.equal(batch.images.pixels, expected.images.pixels)
                assert torch.equal(batch.targets.boxes, expected.targets.boxes)
                assert torch.equal(batch.targets.valid, expected.targets.valid)


class TestBatches:
    """Keys of the samples."""

    def keys(self, seed: int, start: int = 0, batches: int = 3) -> list[list[tuple[int, int]]]:
        return list(islice(RegionBatches(1000, batch_size=4, seed=seed, start=start), batches))

    def test_positions_run_on_from_the_start(self) -> None:
        assert [position for batch in self.keys(0, start=5) for position, _ in batch] == list(range(20, 32))

    def test_a_later_start_gives_the_same_batches(self) -> None:
        assert self.keys(0, start=1, batches=2) == self.keys(0)[1:]

    def test_seeds_differ(self) -> None:
        assert self.keys(0) != self.keys(1)

    def test_every_region_comes(self) -> None:
        batches = islice(RegionBatches(10, batch_size=20, seed=0), 10)
        assert {number for batch in batches for _, number in batch} == set(range(10))
