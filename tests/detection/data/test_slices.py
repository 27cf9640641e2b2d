"""Mirrors detection/data/slices.py, and the rows of dataset.py and loader.py that are windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detection.config.detection import DetectorDataConfig
from detection.data.dataset import DetectionDataset
from detection.data.loader import detection_loader
from detection.data.slices import cut, cut_index
from detection.data.transforms import Augment, full_size
from detection.windows import Window

PIXELS = np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)
OPTIONS = {"overlap": 0, "visible": 0.5, "whole": False}


def test_boxes_and_masks_are_clipped_and_hardly_visible_objects_ignored(make_target) -> None:
    boxes = [[60, 10, 80, 30], [40, 20, 60, 40], [32, 50, 52, 60], [0, 0, 40, 40], [110, 60, 120, 69.5]]
    image, found = cut(PIXELS, make_target(boxes, [0, 1, 2, 3, 4]), Window((0, 50), (70, 60)), visible=0.5)
    np.testing.assert_array_equal(image, PIXELS[:70, 50:110])
    assert found.boxes.tolist() == [[10, 10, 30, 30], [0, 20, 10, 40], [0, 50, 2, 60]]
    assert (found.labels.tolist(), found.ignore.tolist()) == ([0, 1, 2], [False, False, True])
    window = Window((0, 0), (50, 50))
    assert cut(PIXELS, make_target([[10, 10, 20, 20]], ignore=[True]), window, visible=0.5)[1].ignore.tolist() == [True]
    assert cut(PIXELS, make_target(), window, visible=0.5)[1].boxes.shape == (0, 4)
    masks = torch.zeros(2, 100, 200, dtype=torch.bool)
    masks[0, 20:40, 40:60] = True
    masks[1, 20:40, 40:45] = True  # left of the window, though its box is not
    boxes = [[40, 20, 60, 40], [40, 20, 60, 40]]
    found = cut(PIXELS, make_target(boxes, masks=masks), Window((10, 50), (60, 80)), visible=0.5)[1].masks
    assert found is not None
    assert found.shape == (1, 60, 80)
    assert (found.nonzero().amin(dim=0).tolist(), found.nonzero().amax(dim=0).tolist()) == ([0, 10, 0], [0, 29, 9])


def test_an_object_is_wanted_where_enough_shows_and_empty_windows_are_a_share(make_index) -> None:
    objects = [[((10, 10, 30, 30), 0, False), ((55, 0, 75, 20), 1, False)], [((70, 70, 90, 90), 0, True)], []]
    index = make_index(objects, sizes=[(64, 128), (100, 100), (20, 20)])
    slices = cut_index(index, side=64, empty=0.1, **OPTIONS)
    assert slices.images.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert slices.wanted.tolist() == [1, 1, 0, 0, 0, 0, 0]  # of the second object 9 of 20 columns lie in the first
    assert (slices.corners.tolist()[1], slices.sizes.tolist()[-1]) == ([0, 64], [20, 20])
    index = make_index([[((10, 10, 30, 30), 0, False)], []], sizes=[(64, 640), (64, 640)])
    slices = cut_index(index, side=64, empty=0.5, **OPTIONS)
    numbers, repeats = slices.of_images(torch.tensor([0]), None)
    assert numbers.tolist() == list(range(10))  # of the first image alone
    torch.testing.assert_close(repeats, torch.tensor([1.0] + [1 / 9] * 9))
    numbers, repeats = replace(slices, empty=0.0).of_images(torch.tensor([0]), torch.tensor([3.0]))
    assert (numbers.tolist(), repeats.tolist()) == ([0], [3])
    numbers, repeats = slices.of_images(torch.tensor([1]), None)
    assert repeats.tolist() == [1] * 10  # nothing but background, as data.skip_empty false lets it


@pytest.fixture
def index(make_index, draw, tmp_path):
    objects = [((10, 10, 30, 30), 1, False), ((140, 40, 160, 60), 0, False)]
    return make_index([objects], sizes=[(100, 200)], paths=[str(draw(tmp_path / "a.png", PIXELS))])


def test_a_sample_is_the_window_of_its_number(index) -> None:
    slices = cut_index(index, side=100, empty=0.1, **OPTIONS)
    augment = Augment([{"HorizontalFlip": {"p": 1.0}}])
    dataset = DetectionDataset(index, resize=full_size, augment=augment, slices=slices)
    first, second = dataset[(0, 0)], dataset[(1, 1)]
    np.testing.assert_array_equal(second.image.permute(1, 2, 0).numpy(), PIXELS[:, 100:][:, ::-1])
    assert (first.target.boxes.tolist(), second.target.boxes.tolist()) == ([[70, 10, 90, 30]], [[40, 40, 60, 60]])
    assert (len(dataset), second.row, second.path) == (2, 0, index.paths[0])
    slices = cut_index(index, side=100, empty=0.1, **OPTIONS | {"whole": True})  # beside its windows
    assert (slices.sizes.tolist(), slices.wanted.tolist()) == ([[100, 100], [100, 100], [100, 200]], [1, 1, 2])


def test_training_batches_are_windows_at_the_training_scale(index, make_index) -> None:
    config = DetectorDataConfig(slice=100, slice_whole=False, shorter_side=200, longer_side=300, workers=0, augment=())
    config = replace(config, slice_overlap=0.0)
    batch = next(iter(detection_loader(index, config, batch_size=2, seed=0)))
    assert batch.images.size_list() == [(200, 200)] * 2
    boxes = [own[valid].tolist() for own, valid in zip(batch.targets.boxes, batch.targets.valid, strict=True)]
    assert sorted(boxes) == [[[20, 20, 60, 60]], [[80, 80, 120, 120]]]
    large = make_index([[((0, 0, 200, 100), 0, False)]], sizes=[(100, 200)], paths=[index.paths[0]])
    with pytest.raises(ValueError, match=r"data\.slice"):  # whose windows are too small for all objects
        detection_loader(large, replace(config, slice=64), batch_size=1, seed=0)
