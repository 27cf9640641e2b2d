"""Mirrors detection/classification/views.py."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.classification.views import ClassImages, ClassViews, class_view_loader
from detection.config.sections import DataConfig
from detection.data.class_labels import whole_images
from detection.data.images import ORIENTATION
from detection.data.index import AnnotationIndex
from detection.data.loader import build_train_loader
from detection.data.transforms import Augment, RandomResize, Resize

CIFAR = ({"Pad": {"padding": 4}}, {"RandomCrop": {"height": 32, "width": 32}}, {"HorizontalFlip": {"p": 0.5}})


@pytest.fixture
def index(make_index, tmp_path) -> AnnotationIndex:
    """Five pictures of noise, 32 x 32 pixels; each with an object at the edge, which a crop may leave out."""
    random, paths = np.random.default_rng(0), [str(tmp_path / f"{row}.png") for row in range(5)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    images = [[((0.0, 0.0, 2.0, 2.0), row % 2, False)] for row in range(5)]
    return whole_images(make_index(images, sizes=[(32, 32)] * 5, paths=paths))


def pixels_of(path: str) -> Tensor:
    return torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1)


def ramp(height: int, width: int) -> Tensor:
    """An image (3, height, width) whose value is 10 y + x in every channel."""
    return (10 * torch.arange(height)[:, None] + torch.arange(width)).expand(3, height, width).to(torch.uint8)


def make_views(kind: Any, **options: Any) -> ClassViews:
    return ClassViews(kind=kind, **{"crop": 2, "shorter_side": 5, "scales": (5,), **options})


def test_the_recipe_of_cifar_pads_crops_and_mirrors(index) -> None:
    dataset = ClassImages(index, resize=Resize(32, 32), augment=Augment(CIFAR))
    padded, places = torch.nn.functional.pad(pixels_of(index.paths[1]), (4, 4, 4, 4)), set()
    crops = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    for position in range(40):
        image = dataset[position, 1].image
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
        shown = {False: image, True: image.flip(2)}
        (found,) = [(*at, m) for at, crop in crops.items() for m in shown if torch.equal(crop, shown[m])]
        places.add(found)
    assert len({place[:2] for place in places}) > 20  # of 81
    assert {mirrored for *_, mirrored in places} == {False, True}


def test_the_object_is_the_whole_augmented_image_turned_as_its_tag_says(index, make_index, tmp_path) -> None:
    steps = ({"CenterCrop": {"height": 20, "width": 10}},)  # without the object's own box
    dataset = ClassImages(index, resize=Resize(30, 100), augment=Augment(steps))
    for row in range(5):
        sample = dataset[0, row]
        assert sample.image.shape == (3, 60, 30)
        assert sample.target.boxes.tolist() == [[0, 0, 30, 60]]
        assert (sample.target.labels.tolist(), sample.target.ignore.tolist()) == ([row % 2], [False])
        assert (sample.row, sample.path, sample.proposals) == (row, index.paths[row], None)
    for augment in (None, Augment(())):
        plain = ClassImages(index, resize=Resize(32, 32), augment=augment)[7, 2]
        assert torch.equal(plain.image, pixels_of(index.paths[2]))
    tag, path = Image.Exif(), str(tmp_path / "turned.png")
    tag[ORIENTATION] = 6
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path, exif=tag)
    turned = make_index([[((0, 0, 6, 8), 0, False)]], sizes=[(8, 6)], paths=[path])
    assert ClassImages(turned, resize=Resize(6, 8))[0, 0].image.shape == (3, 8, 6)


def test_a_sample_depends_on_seed_and_position_alone(index) -> None:
    def dataset(seed: int) -> ClassImages:
        return ClassImages(index, resize=RandomResize((32, 40), 100), augment=Augment(CIFAR), seed=seed)

    first, again = dataset(0), dataset(0)
    again[5, 1]
    for position in range(10):
        one, other = first[position, 1], again[position, 1]
        assert torch.equal(one.image, other.image)
        assert one.seed == other.seed
    assert len({dataset(seed)[0, 1].image.numpy().tobytes() for seed in range(5)}) > 1
    assert len({first[position, 1].image.numpy().tobytes() for position in range(5)}) > 1
    assert len({first[position, 1].seed for position in range(5)}) == 5


def test_batches_are_the_same_with_workers_and_from_a_later_start(index) -> None:
    def batches(*, workers: int = 0, start: int = 0) -> list[Any]:
        config = DataConfig(augment=CIFAR, shorter_side=32, longer_side=32, workers=workers)
        loader = build_train_loader(index, config, batch_size=4, seed=3, start=start, kind=ClassImages)
        return list(islice(loader, 3 - start))

    alone = batches()
    for found, expected in ((batches(workers=2), alone), (batches(start=1), alone[1:])):
        for batch, own in zip(found, expected, strict=True):
            assert batch.rows == own.rows
            assert torch.equal(batch.images.pixels, own.images.pixels)
            assert torch.equal(batch.images.seeds, own.images.seeds)
            assert batch.targets.labels[batch.targets.valid].tolist() == [row % 2 for row in batch.rows]
    assert sorted([row for batch in alone for row in batch.rows][:5]) == list(range(5))  # one pass


def test_crops_by_hand() -> None:
    # 5 x 8 pixels: 3 rows are left over, 1 of them above; 6 columns, 3 of them at the left.
    (view,) = make_views("crop").of(ramp(5, 8))
    assert view[1].tolist() == [[13, 14], [23, 24]]
    corners = [view[0, 0].tolist() for view in make_views("ten_crop").of(ramp(5, 8))]
    assert corners[:5] == [[13, 14], [0, 1], [6, 7], [30, 31], [36, 37]]
    assert corners[5:] == [[14, 13], [1, 0], [7, 6], [31, 30], [37, 36]]
    whole = make_views("ten_crop", crop=5).of(ramp(5, 5))
    assert all(torch.equal(view, ramp(5, 5)) for view in whole[:5])
    assert all(torch.equal(view, ramp(5, 5).flip(2)) for view in whole[5:])


def test_images_are_resized_where_their_shorter_side_differs() -> None:
    image = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8)
    (view,), (crop,) = make_views("dense").of(image), make_views("crop", crop=5).of(image)
    assert view is image
    assert torch.equal(crop, image[:, 1:6])
    halves = torch.zeros(3, 12, 20, dtype=torch.uint8)
    halves[:, :, 10:] = 200
    (view,) = make_views("crop", crop=6, shorter_side=6).of(halves)  # of 6 x 10 pixels
    assert view.shape == (3, 6, 6)
    assert (view[0, :, :2] == 0).all()
    assert (view[0, :, -2:] == 200).all()
    for size, sizes in (((12, 20), [(6, 10), (12, 20), (18, 30)]), ((9, 3), [(18, 6), (36, 12), (54, 18)])):
        views = make_views("dense", scales=(6, 12, 18)).of(torch.full((3, *size), 77, dtype=torch.uint8))
        assert [tuple(view.shape[1:]) for view in views] == sizes
        assert all((view == 77).all() for view in views)
    for size in ((1, 1), (1, 300), (37, 31)):
        views = make_views("ten_crop", crop=7, shorter_side=9).of(torch.zeros(3, *size, dtype=torch.uint8))
        assert {tuple(view.shape) for view in views} == {(3, 7, 7)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_one_view_of_every_image(index, workers: int) -> None:
    views = make_views("ten_crop", crop=28, shorter_side=32)
    (batch,) = class_view_loader(index, views, rows=[4, 1], workers=workers)
    assert (batch.rows, len(batch.batches)) == ((4, 1), 10)
    for place, row in enumerate(batch.rows):
        for shown, expected in zip(batch.batches, views.of(pixels_of(index.paths[row])), strict=True):
            assert torch.equal(shown.pixels[place], expected)


def test_whole_images_come_one_by_one_and_none_is_no_batch(index) -> None:
    found = list(class_view_loader(index, make_views("dense", scales=(32, 48)), rows=range(3), workers=0))
    assert [batch.rows for batch in found] == [(0,), (1,), (2,)]
    assert [shown.size_list() for shown in found[0].batches] == [[(32, 32)], [(48, 48)]]
    assert torch.equal(found[2].batches[0].pixels[0], pixels_of(index.paths[2]))
    assert list(class_view_loader(index, make_views("crop"), rows=[], workers=0)) == []
