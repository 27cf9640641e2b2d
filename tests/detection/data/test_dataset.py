"""Mirrors detection/data/dataset.py and slices.py, and the rows of loader.py that are windows."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from detection.config.detection import DetectorDataConfig
from detection.data.dataset import DetectionDataset, Sample, collate
from detection.data.images import ImageError, read_image
from detection.data.loader import detection_loader, make_loader
from detection.data.proposals import StoredProposals
from detection.data.samplers import TestBatches
from detection.data.slices import cut, cut_index
from detection.data.transforms import Augment, Jitter, RandomResize, Resize, full_size
from detection.windows import Window

AS_STORED, FLIP = Resize(60, 1000), Augment([{"HorizontalFlip": {"p": 1}}])
MASKS = torch.zeros(2, 60, 80, dtype=torch.bool)  # they fill the boxes of the index's objects but for their left half
MASKS[0, 20:40, 20:30] = MASKS[1, :, 40:] = True


@pytest.fixture
def index(make_index, draw, tmp_path):
    """Two noisy pictures of 60x80, the second without objects."""
    rng = np.random.default_rng(0)
    paths = [str(draw(tmp_path / name, rng.integers(0, 256, (60, 80, 3), np.uint8))) for name in ("a.png", "b.png")]
    return make_index([[((10, 20, 30, 40), 1, False), ((0, 0, 80, 60), 0, True)], []], paths=paths)


def test_a_sample_is_pixels_and_target_at_the_detectors_scale(index) -> None:
    dataset = DetectionDataset(index, resize=Resize(120, 1000))
    got = dataset[(5, 0)]
    assert (len(dataset), got.row, got.path) == (2, 0, index.paths[0])
    assert (got.image.shape, got.image.dtype) == ((3, 120, 160), torch.uint8)
    assert got.image.permute(1, 2, 0).is_contiguous()  # as decoded
    assert got.target.boxes.tolist() == [[20, 40, 60, 80], [0, 0, 160, 120]]
    assert (got.target.labels.tolist(), got.target.ignore.tolist()) == ([1, 0], [False, True])
    got = DetectionDataset(index, resize=AS_STORED)[(0, 0)]
    np.testing.assert_array_equal(got.image.permute(1, 2, 0), read_image(index.paths[0]))
    assert DetectionDataset(index, resize=AS_STORED, augment=FLIP)[(0, 1)].target.boxes.shape == (0, 4)
    crop = Augment([{"Crop": {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 40, "p": 1}}])
    got = DetectionDataset(index, resize=Resize(120, 1000), augment=crop)[(0, 0)]  # resized after augmentation
    assert got.image.shape == (3, 120, 120)
    torch.testing.assert_close(got.target.boxes[0], torch.tensor([30.0, 60.0, 90.0, 120.0]))


def test_seed_and_position_decide_the_augmentation_and_the_draws_among_anchors(index) -> None:
    def got(seed, position):
        augment = Augment([{"ColorJitter": {"p": 1}}])
        return DetectionDataset(index, resize=AS_STORED, augment=augment, seed=seed)[(position, 0)]

    assert torch.equal(got(0, 3).image, got(0, 3).image)
    assert not torch.equal(got(0, 3).image, got(0, 4).image)
    assert not torch.equal(got(0, 3).image, got(1, 3).image)
    assert len({got(0, 3).seed, got(0, 4).seed, got(1, 3).seed}) == 3
    seeds: Any = collate([got(0, 3), got(0, 4)]).images.seeds
    assert seeds.tolist() == [got(0, 3).seed, got(0, 4).seed]
    assert ((seeds >= 0) & (seeds < 2**31)).all()


def test_the_exif_policy_of_each_image_holds(make_index, draw, tmp_path) -> None:
    path = draw(tmp_path / "a.jpg", size=(40, 60), orientation=6)
    for apply_exif, size in ((True, (60, 40)), (False, (40, 60))):
        index = make_index([[]], paths=[str(path)], sizes=[size])
        index.apply_exif[0] = apply_exif
        assert DetectionDataset(index, resize=Resize(min(size), 1000))[(0, 0)].image.shape == (3, *size)
        index.apply_exif[0] = not apply_exif
        with pytest.raises(ValueError, match=r"a\.jpg is .* pixels, its annotation says"):
            DetectionDataset(index, resize=AS_STORED)[(0, 0)]


def test_a_batch_keeps_samples_in_their_order_and_moves_as_a_whole(make_target) -> None:
    def sample(size, count, row):
        return Sample(row, f"{row}.jpg", torch.full((3, *size), row, dtype=torch.uint8), make_target([[0] * 4] * count))

    batch = collate([sample((4, 6), 2, row=5), sample((5, 3), 0, row=2)])
    assert (batch.rows, batch.paths, batch.images.size_list()) == ((5, 2), ("5.jpg", "2.jpg"), [(4, 6), (5, 3)])
    assert (batch.images.pixels.shape, batch.targets.valid.sum(dim=1).tolist()) == ((2, 3, 5, 6), [2, 0])
    moved = batch.to("meta")
    tensors = (moved.images.pixels, moved.images.sizes, moved.images.seeds, moved.targets.boxes, moved.targets.valid)
    assert all(tensor is not None and tensor.is_meta for tensor in tensors)
    assert moved.rows == (5, 2)


def test_an_augmentation_that_fails_names_the_image_in_one_line_from_a_worker_too(index) -> None:
    crop = Augment([{"RandomCrop": {"height": 61, "width": 50, "p": 1}}])
    dataset = DetectionDataset(index, resize=AS_STORED, augment=crop)
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"^image [^\n]*b\.png: data\.augment, step 1, [^\n]*RandomCrop[^\n]*$"):
            next(iter(make_loader(dataset, TestBatches([1], batch_size=1), workers=workers, pin=False)))


@pytest.mark.parametrize("resize", [Resize(50, 90), RandomResize((40, 60), 90), Jitter(64, 0.5, 1.5)])
def test_samples_of_a_batch_are_the_same_together_and_alone(resize, index) -> None:
    crop = Augment([{"RandomCrop": {"height": 30, "width": 60, "p": 0.5}}])
    dataset = DetectionDataset(index, resize=resize, augment=crop, seed=3)
    keys = [(position, position % 2) for position in range(8)]
    together, alone = collate(dataset.__getitems__(keys)), collate([dataset[key] for key in keys])
    assert together.paths == alone.paths
    assert together.images.pixels.is_contiguous(memory_format=torch.channels_last)
    for part, names in (("images", ("pixels", "sizes", "seeds")), ("targets", ("boxes", "labels", "ignore", "valid"))):
        for name in names:
            assert torch.equal(getattr(getattr(together, part), name), getattr(getattr(alone, part), name))


def test_masks_come_on_request_and_follow_the_pixels(index, with_masks) -> None:
    masked = with_masks(index, MASKS)
    assert DetectionDataset(masked, resize=AS_STORED)[(0, 0)].target.masks is None
    dataset = DetectionDataset(masked, resize=Resize(120, 1000), augment=FLIP, fields=("masks",))
    got, nothing = cast(Any, (dataset[(0, 0)].target.masks, dataset[(0, 1)].target.masks))
    assert torch.equal(got, MASKS.flip(2).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    assert nothing.shape == (0, 120, 160)
    with pytest.raises(ValueError, match="no masks, or they were not read"):
        DetectionDataset(index, resize=AS_STORED, fields=("masks",))
    proposals = StoredProposals(ends=torch.tensor([0, 0]), boxes=torch.zeros(0, 4), scores=torch.zeros(0))
    with pytest.raises(ValueError, match=r"masks .*data\.proposals"):
        DetectionDataset(masked, resize=AS_STORED, fields=("masks",), proposals=proposals)


def pasting(index, probability=1.0, *, seed=0):
    flip = Augment([{"HorizontalFlip": {"p": 0.5}}])
    return DetectionDataset(index, resize=AS_STORED, augment=flip, seed=seed, fields=("masks",), copy_paste=probability)


def test_objects_of_another_image_are_pasted_but_not_the_ignored(index, with_masks) -> None:
    pixels, source, boxes = read_image(index.paths[1]), read_image(index.paths[0]), set()
    dataset = pasting(with_masks(index, MASKS))
    for position in range(12):
        got = dataset[(position, 1)]
        assert got.target.labels.tolist() == [1]
        boxes.add(tuple(got.target.boxes[0].tolist()))
        assert got.target.masks is not None
        mask, found = got.target.masks[0].numpy(), got.image.permute(1, 2, 0).numpy()
        own, other = (
            next(image for image in (array, array[:, ::-1]) if (image[where] == found[where]).all())
            for array, where in ((pixels, ~mask), (source, mask))
        )
        assert torch.equal(torch.from_numpy(mask), MASKS[0] if other is source else MASKS[0].flip(1))
        assert own.shape == found.shape
    assert boxes == {(10, 20, 30, 40), (50, 20, 70, 40)}  # the other image is augmented as well


def test_nothing_is_pasted_from_the_image_itself_or_without_a_mask(index, with_masks) -> None:
    masked, unknown = with_masks(index, MASKS), with_masks(index, torch.zeros_like(MASKS))
    for position in range(4):
        plain, got = (pasting(masked, probability)[(position, 0)] for probability in (0.0, 1.0))
        assert torch.equal(got.image, plain.image)
        assert torch.equal(got.target.boxes, plain.target.boxes)
    assert len(pasting(unknown)[(0, 1)].target) == 0


def test_one_to_all_objects_are_pasted_as_often_as_asked_and_by_the_seed(make_index, index, with_masks) -> None:
    boxes = [(0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)]
    objects = [[(box, number % 2, False) for number, box in enumerate(boxes)], []]
    stack = torch.zeros(3, 60, 80, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(stack, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    three = with_masks(make_index(objects, paths=list(index.paths.all())), stack)

    def counts(probability, seed, images):
        dataset = pasting(three, probability, seed=seed)
        return [len(dataset[(position, 1)].target) for position in range(images)]

    whole = counts(1.0, 0, 60)
    assert all(8 <= whole.count(number) <= 32 for number in (1, 2, 3))  # 20 expected, deviation 3.7
    first = counts(0.25, 0, 120)
    assert 15 <= 120 - first.count(0) <= 45  # 30 expected, deviation 4.7
    assert first[:40] == counts(0.25, 0, 40) != counts(0.25, 1, 40)


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
    found: Any = cut(PIXELS, make_target(boxes, masks=masks), Window((10, 50), (60, 80)), visible=0.5)[1].masks
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
def wide(make_index, draw, tmp_path):
    objects = [((10, 10, 30, 30), 1, False), ((140, 40, 160, 60), 0, False)]
    return make_index([objects], sizes=[(100, 200)], paths=[str(draw(tmp_path / "a.png", PIXELS))])


def test_a_sample_is_the_window_of_its_number(wide) -> None:
    slices = cut_index(wide, side=100, empty=0.1, **OPTIONS)
    dataset = DetectionDataset(wide, resize=full_size, augment=FLIP, slices=slices)
    first, second = dataset[(0, 0)], dataset[(1, 1)]
    np.testing.assert_array_equal(second.image.permute(1, 2, 0).numpy(), PIXELS[:, 100:][:, ::-1])
    assert (first.target.boxes.tolist(), second.target.boxes.tolist()) == ([[70, 10, 90, 30]], [[40, 40, 60, 60]])
    assert (len(dataset), second.row, second.path) == (2, 0, wide.paths[0])
    slices = cut_index(wide, side=100, empty=0.1, **OPTIONS | {"whole": True})  # beside its windows
    assert (slices.sizes.tolist(), slices.wanted.tolist()) == ([[100, 100], [100, 100], [100, 200]], [1, 1, 2])


def test_training_batches_are_windows_at_the_training_scale(wide, make_index) -> None:
    config = DetectorDataConfig(slice=100, slice_whole=False, slice_overlap=0.0, workers=0, augment=())
    config = replace(config, shorter_side=200, longer_side=300)
    batch = next(iter(detection_loader(wide, config, batch_size=2, seed=0)))
    assert batch.images.size_list() == [(200, 200)] * 2
    boxes = [own[valid].tolist() for own, valid in zip(batch.targets.boxes, batch.targets.valid, strict=True)]
    assert sorted(boxes) == [[[20, 20, 60, 60]], [[80, 80, 120, 120]]]
    large = make_index([[((0, 0, 200, 100), 0, False)]], sizes=[(100, 200)], paths=[wide.paths[0]])
    with pytest.raises(ValueError, match=r"data\.slice"):  # whose windows are too small for all objects
        detection_loader(large, replace(config, slice=64), batch_size=1, seed=0)
