"""Mirrors detection/data/label_maps.py and label_pixels.py: labels must follow their pixels through every change."""

import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detection.config.detection import DetectorDataConfig
from detection.data import kept_index
from detection.data.copy_paste import paste
from detection.data.images import ImageError
from detection.data.index import index_digest
from detection.data.label_maps import LabelMaps
from detection.data.loader import detection_loader, load_index
from detection.data.packed_strings import PackedStrings
from detection.data.slices import cut
from detection.data.transforms import PADDING, Augment, Jitter, Resize
from detection.masks import encode
from detection.structures import VOID
from detection.windows import Window

VALUES = {7: 0, 8: 1, 0: VOID, 255: VOID}
STORED = np.array([[7, 7, 8], [0, 255, 8]], np.uint8)


def maps_of(*files):
    return LabelMaps(class_names=("road", "car"), files=PackedStrings.pack([*map(str, files)]), values=VALUES)


@pytest.mark.parametrize("palette", [False, True])
def test_values_become_labels(tmp_path, palette) -> None:
    picture = Image.fromarray(STORED)
    if palette:
        picture.putpalette([*range(256)] * 3)
    picture.save(tmp_path / "a.png")
    maps = maps_of(tmp_path / "a.png", "")
    assert maps.read(0, (2, 3)).tolist() == [[0, 0, 1], [VOID, VOID, 1]]
    assert (maps.read(1, (1, 2)).tolist(), maps.labelled().tolist()) == ([[VOID, VOID]], [True, False])
    assert maps.take(torch.tensor([1, 0])).labelled().tolist() == [False, True]
    joined: Any = LabelMaps.concatenate([maps, maps])
    assert (joined.labelled().tolist(), LabelMaps.concatenate([None])) == ([True, False] * 2, None)
    for other in (None, replace(maps, class_names=("road", "tree")), replace(maps, values={7: 0, 8: 1})):
        with pytest.raises(ValueError, match="can't be joined"):
            LabelMaps.concatenate([maps, other])


def test_what_is_no_label_is_named_with_its_file(draw, tmp_path) -> None:
    for image, size, message in [
        (STORED, (3, 2), "3x2 pixels, its image 2x3"),
        (STORED + 2, (2, 3), "values 1, 2, 9, 10 are .*0, 7-8, 255"),
        (np.zeros((2, 3, 3), np.uint8), (2, 3), "RGB"),
        (STORED.astype(np.uint16), (2, 3), "I;16"),
    ]:
        with pytest.raises(ImageError, match=f"a\\.png.*{message}"):
            maps_of(draw(tmp_path / "a.png", image)).read(0, size)


def test_masks_make_label_maps_with_void_where_two_lie() -> None:
    masks = np.zeros((2, 3, 4), np.bool_)
    masks[0, :2, :2], masks[1, 1:, 1:3] = True, True
    rows = [[label, encode(mask)["counts"].decode()] for label, mask in zip((1, 2), masks, strict=True)]
    maps = replace(maps_of(""), objects=PackedStrings.pack([json.dumps(rows)]))
    assert maps.read(0, (3, 4)).tolist() == [[1, 1, 0, 0], [1, VOID, 2, 0], [0, 2, 2, 0]]
    assert maps.labelled().tolist() == [True]


def test_the_digest_and_the_kept_index_count_label_maps_but_no_folder(make_index, draw, tmp_path, monkeypatch) -> None:
    plain, files = make_index([[], []], sizes=[(2, 3)] * 2), [str(draw(tmp_path / f"{name}.png")) for name in "ab"]
    index = replace(plain, label_maps=maps_of(*files))
    same = replace(index, label_maps=maps_of("elsewhere/a.png", "b.png"))
    swapped = replace(index, label_maps=maps_of("b.png", "a.png"))
    valued = replace(index, label_maps=replace(maps_of(*files), values=VALUES | {9: 1}))
    objects = PackedStrings.pack(["[]", '[[1, "x"]]'])
    drawn = replace(index, label_maps=replace(maps_of(*files), objects=objects))
    assert index_digest(same) == index_digest(index)
    assert len({index_digest(each) for each in (index, swapped, valued, plain, drawn)}) == 5
    monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "annotations.json"
    file.write_text("{}", encoding="utf-8")
    assert kept_index.kept_index(file, [], lambda: (drawn, [], True))[1] == []
    again: Any = kept_index.kept_index(file, [], lambda: pytest.fail("it was read again"))[0]
    assert index_digest(again) == index_digest(drawn)
    assert (again.label_maps.values, [*again.label_maps.files]) == (VALUES, files)


# The red value of a pixel is its label and 1; it is 0 where nothing was, and 255 where the label is VOID.
def labels_of(height=45, width=64):
    labels = np.random.default_rng(0).integers(0, 200, (height, width), dtype=np.uint8)
    labels[:5] = VOID
    return labels


def pixels_of(labels):
    return np.stack([np.where(labels == VOID, 254, labels) + 1, *[np.zeros_like(labels)] * 2], axis=-1).astype(np.uint8)


@pytest.fixture
def labelled(make_target):
    """An image with one object, and its target."""
    target = make_target([(10, 10, 30, 30)])
    return pixels_of(labels_of()), replace(target, label_map=torch.from_numpy(labels_of()))


def labels_by_pixels(image):
    red = image[..., 0].astype(np.int64)
    return np.where((red == 0) | (red == 255) | (image[..., 1] > 0), VOID, red - 1).tolist()


def map_of(target):
    assert target.label_map.dtype == torch.uint8
    return target.label_map.tolist()


EXACT = {"interpolation": cv2.INTER_NEAREST_EXACT, "p": 1}


@pytest.mark.parametrize(
    "step",
    [
        {"HorizontalFlip": {"p": 1}},
        {"VerticalFlip": {"p": 1}},
        {"RandomCrop": {"height": 20, "width": 30, "p": 1}},
        {"PadIfNeeded": {"min_height": 80, "min_width": 90, "fill_mask": 7}},
        {"Affine": {"rotate": 25, "translate_px": 9, "scale": 0.8, "interpolation": 0, "p": 1}},
        {"Perspective": {"interpolation": 0, "p": 1}},
        {"RandomRotate90": {"p": 1}},
        {"RandomScale": {"scale_limit": [0.3, 0.7], **EXACT}},
        {"CropAndPad": {"px": -6, **EXACT}},
        {"RandomResizedCrop": {"size": [32, 32], **EXACT}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_labels_follow_their_pixels_through_albumentations(labelled, step) -> None:
    for seed in range(3):
        moved, got = Augment([step])(*labelled, seed=(seed,))
        assert moved.tobytes() != labelled[0].tobytes()
        assert map_of(got) == labels_by_pixels(moved)


def test_colours_change_no_label_and_a_set_without_objects_moves_too(labelled) -> None:
    image, target = labelled
    augment = Augment([{"ColorJitter": {"p": 1}}, {"GaussianBlur": {"p": 1}}, {"HorizontalFlip": {"p": 1}}])
    assert map_of(augment(image, target[:0], seed=(0,))[1]) == target.label_map.flip(1).tolist()
    with pytest.raises(ValueError, match="Morphological"):  # which takes a mask for objects
        Augment([{"Morphological": {"p": 1}}])(image, target, seed=(0,))


@pytest.mark.parametrize("side", [23, 45, 70, 200])
def test_a_resized_pixel_has_the_label_under_its_middle(labelled, side) -> None:
    resized, got = Resize(side, 1000)(*labelled)
    height, width = resized.shape[:2]
    rows = [int((row + 0.5) * 45 / height) for row in range(height)]
    columns = [int((column + 0.5) * 64 / width) for column in range(width)]
    assert map_of(got) == labelled[1].label_map[rows][:, columns].tolist()


def test_resized_borders_of_labels_lie_where_those_of_pixels_do(make_target) -> None:
    labels = torch.from_numpy(np.kron(np.arange(20, dtype=np.uint8).reshape(4, 5), np.ones((12, 12), np.uint8)))
    image = np.repeat((labels.numpy() + 1)[..., None] * 10, 3, axis=2).astype(np.uint8)
    resized, got = Resize(83, 1000)(image, replace(make_target(), label_map=labels))
    off = np.abs(resized[..., 0].astype(int) - 10 * (np.array(map_of(got)) + 1))
    assert off.max() <= 31  # half of a colour along each axis is its own label's: 50 / 2 + 10 / 2, and rounding


def test_a_canvas_is_void_where_no_image_is(labelled) -> None:
    for seed in range(4):
        canvas, got = Jitter(64, 0.4, 1.6)(*labelled, seed=(seed,))
        assert (np.array(map_of(got))[(canvas == np.array(PADDING)).all(axis=-1)] == VOID).all()
        chance = np.random.default_rng(np.random.SeedSequence((seed,), spawn_key=(0,)))
        side = 64 * chance.uniform(0.4, 1.6)
        height, width = max(1, round(45 * side / 64)), max(1, round(side))
        top, left = (int(chance.integers(max(0, length - 64) + 1)) for length in (height, width))
        for row, column in ((0, 0), (min(63, height - 1), min(63, width - 1)), (11, 17)):
            source = int((row + top + 0.5) * 45 / height), int((column + left + 0.5) * 64 / width)
            assert map_of(got)[row][column] == int(labelled[1].label_map[source])


def test_windows_and_pasted_objects_bring_their_labels(labelled) -> None:
    image, target = labelled
    window, got = cut(image, target, Window((7, 11), (20, 30)), visible=0.5)
    assert map_of(got) == labels_by_pixels(window)
    other, own = np.ascontiguousarray(image[:30, ::-1]), torch.zeros(1, 30, 64, dtype=torch.bool)
    own[0, 12:28, 12:28] = True
    objects = replace(target, label_map=torch.from_numpy(other[..., 0] - 1), masks=own)
    pasted, got = paste(image, replace(target, masks=torch.zeros(1, 45, 64, dtype=torch.bool)), other, objects)
    assert map_of(got) == labels_by_pixels(pasted)
    assert (pasted[12:28, 12:28] == other[12:28, 12:28]).all()


@pytest.fixture
def index(make_index, draw, tmp_path):
    """Three images without objects, of which the last has no label image."""
    labels = labels_of(100, 140)
    paths = [str(draw(tmp_path / f"{number}.png", pixels_of(labels))) for number in range(3)]
    files = PackedStrings.pack([*(str(draw(tmp_path / f"labels_{number}.png", labels)) for number in (0, 1)), ""])
    values = {value: value for value in range(200)} | {255: VOID}
    maps = LabelMaps(class_names=tuple(map(str, range(200))), files=files, values=values)
    return replace(make_index([[], [], []], paths=paths, sizes=[(100, 140)] * 3), label_maps=maps)


@pytest.mark.parametrize(
    ("keys", "images"),
    [({"longer_side": 140}, 4), ({"longer_side": 64, "slice": 64, "slice_whole": False}, 12)],
    ids=["whole", "windows"],
)
def test_batches_hold_label_maps_of_images_that_have_one(index, keys, images) -> None:
    config = DetectorDataConfig(shorter_side=min(100, keys["longer_side"]), workers=0, **keys)
    batch = next(iter(detection_loader(index, config, batch_size=images, seed=0)))
    assert set(batch.rows) == {0, 1}  # all pixels of the third would be void
    assert batch.targets.label_maps is not None
    for image, labels in zip(batch.images.pixels.permute(0, 2, 3, 1).numpy(), batch.targets.label_maps, strict=True):
        assert labels.tolist() == labels_by_pixels(image)


def test_what_label_maps_cannot_do_is_refused(index, make_voc, write_card, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"repeat_threshold.*set it to 0"):
        detection_loader(index, DetectorDataConfig(repeat_threshold=0.1, workers=0), batch_size=4, seed=0)
    make_voc({"a": [("cat", (11, 21, 40, 50), False)]})
    config = DetectorDataConfig(root=str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.train.*label_images"):
        load_index(config, [f"{write_card('voc')}:train"], key="data.train", say=print, label_maps=True)
