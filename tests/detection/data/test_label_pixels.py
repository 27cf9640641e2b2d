"""Mirrors detection/data/label_pixels.py, and its callers: labels must follow their pixels through every change.

The red value of a pixel is its label and 1; it is 0 where nothing was, and 255 where the label is VOID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from detection.config.detection import DetectorDataConfig
from detection.data.copy_paste import paste
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.data.loader import detection_loader, load_index
from detection.data.packed_strings import PackedStrings
from detection.data.slices import cut
from detection.data.transforms import PADDING, Augment, Jitter, Resize
from detection.structures import VOID, Target
from detection.windows import Window

Box = tuple[float, float, float, float]


def target_of(boxes: list[Box]) -> Target:
    count = len(boxes)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        ignore=torch.zeros(count, dtype=torch.bool),
    )


def labelled(height: int = 45, width: int = 64) -> tuple[NDArray[np.uint8], Target]:
    labels = np.random.default_rng(0).integers(0, 200, (height, width), dtype=np.uint8)
    labels[:5] = VOID
    image = np.stack([np.where(labels == VOID, 254, labels) + 1, *[np.zeros_like(labels)] * 2], axis=-1)
    return image.astype(np.uint8), replace(target_of([(10, 10, 30, 30)]), label_map=torch.from_numpy(labels))


def labels_by_pixels(image: NDArray[np.uint8]) -> list[list[int]]:
    red = image[..., 0].astype(np.int64)
    return np.where((red == 0) | (red == 255) | (image[..., 1] > 0), VOID, red - 1).tolist()


def map_of(target: Target) -> list[list[int]]:
    assert target.label_map is not None
    assert target.label_map.dtype == torch.uint8
    return target.label_map.tolist()


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
        {"RandomScale": {"scale_limit": [0.3, 0.7], "interpolation": cv2.INTER_NEAREST_EXACT, "p": 1}},
        {"CropAndPad": {"px": -6, "interpolation": cv2.INTER_NEAREST_EXACT, "p": 1}},
        {"RandomResizedCrop": {"size": [32, 32], "interpolation": cv2.INTER_NEAREST_EXACT, "p": 1}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_labels_follow_their_pixels_through_albumentations(step: dict[str, Any]) -> None:
    image, target = labelled()
    for seed in range(3):
        moved, got = Augment([step])(image, target, seed=(seed,))
        assert moved.tobytes() != image.tobytes()
        assert map_of(got) == labels_by_pixels(moved)


def test_colours_change_no_label_and_a_set_without_objects_moves_too() -> None:
    image, target = labelled()
    augment = Augment([{"ColorJitter": {"p": 1}}, {"GaussianBlur": {"p": 1}}, {"HorizontalFlip": {"p": 1}}])
    _, got = augment(image, target[:0], seed=(0,))
    assert target.label_map is not None
    assert map_of(got) == target.label_map.flip(1).tolist()


def test_a_step_that_takes_a_mask_for_objects_is_refused_with_label_maps() -> None:
    with pytest.raises(ValueError, match="Morphological"):
        Augment([{"Morphological": {"p": 1}}])(*labelled(), seed=(0,))


@pytest.mark.parametrize("side", [23, 45, 70, 200])
def test_a_resized_pixel_has_the_label_under_its_middle(side: int) -> None:
    image, target = labelled()
    assert target.label_map is not None
    resized, got = Resize(side, 1000)(image, target)
    height, width = resized.shape[:2]
    rows = [int((row + 0.5) * 45 / height) for row in range(height)]
    columns = [int((column + 0.5) * 64 / width) for column in range(width)]
    assert map_of(got) == target.label_map[rows][:, columns].tolist()


def test_resized_borders_of_labels_lie_where_those_of_pixels_do() -> None:
    labels = torch.from_numpy(np.kron(np.arange(20, dtype=np.uint8).reshape(4, 5), np.ones((12, 12), np.uint8)))
    image = np.repeat((labels.numpy() + 1)[..., None] * 10, 3, axis=2).astype(np.uint8)
    resized, got = Resize(83, 1000)(image, replace(target_of([]), label_map=labels))
    off = np.abs(resized[..., 0].astype(int) - 10 * (np.array(map_of(got)) + 1))
    assert off.max() <= 31  # half of a colour along each axis is its own label's: 50 / 2 + 10 / 2, and rounding


def test_a_canvas_is_void_where_no_image_is() -> None:
    image, target = labelled()
    for seed in range(4):
        jitter = Jitter(64, 0.4, 1.6)
        canvas, got = jitter(image, target, seed=(seed,))
        outside = (canvas == np.array(PADDING)).all(axis=-1)
        assert (np.array(map_of(got))[outside] == VOID).all()
        chance = np.random.default_rng(np.random.SeedSequence((seed,), spawn_key=(0,)))
        side = 64 * chance.uniform(0.4, 1.6)
        height, width = max(1, round(45 * side / 64)), max(1, round(side))
        top, left = (int(chance.integers(max(0, length - 64) + 1)) for length in (height, width))
        assert target.label_map is not None
        for row, column in ((0, 0), (min(63, height - 1), min(63, width - 1)), (11, 17)):
            source = int((row + top + 0.5) * 45 / height), int((column + left + 0.5) * 64 / width)
            assert map_of(got)[row][column] == int(target.label_map[source])


def test_a_window_cuts_labels_with_its_pixels() -> None:
    image, target = labelled()
    window, got = cut(image, target, Window((7, 11), (20, 30)), visible=0.5)
    assert map_of(got) == labels_by_pixels(window)


def test_pasted_objects_bring_their_labels() -> None:
    (image, target), (other, objects) = labelled(), labelled()
    other, own = np.ascontiguousarray(other[:30, ::-1]), torch.zeros(1, 30, 64, dtype=torch.bool)
    own[0, 12:28, 12:28] = True
    objects = replace(objects, label_map=torch.from_numpy(other[..., 0] - 1), masks=own)
    target = replace(target, masks=torch.zeros(1, 45, 64, dtype=torch.bool))
    pasted, got = paste(image, target, other, objects)
    assert map_of(got) == labels_by_pixels(pasted)
    assert (pasted[12:28, 12:28] == other[12:28, 12:28]).all()


@pytest.fixture
def index(make_index: Callable[..., AnnotationIndex], tmp_path: Path) -> AnnotationIndex:
    """Three images without objects, of which the last has no label image."""
    image, target = labelled(100, 140)
    assert target.label_map is not None
    paths, files = list[str](), ["", "", ""]
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image).save(paths[-1])
        files[number] = str(tmp_path / f"labels_{number}.png") if number < 2 else ""
        if number < 2:
            Image.fromarray(target.label_map.numpy()).save(files[number])
    values = {value: value for value in range(200)} | {255: VOID}
    maps = LabelMaps(class_names=tuple(map(str, range(200))), files=PackedStrings.pack(files), values=values)
    return replace(make_index([[], [], []], paths=paths, sizes=[(100, 140)] * 3), label_maps=maps)


def test_batches_hold_label_maps_of_images_that_have_one(index: AnnotationIndex) -> None:
    config = DetectorDataConfig(shorter_side=100, longer_side=140, workers=0)
    batch = next(iter(detection_loader(index, config, batch_size=4, seed=0)))
    assert set(batch.rows) == {0, 1}  # all pixels of the third would be void
    assert batch.targets.label_maps is not None
    pixels = batch.images.pixels.permute(0, 2, 3, 1).numpy()
    for image, labels in zip(pixels, batch.targets.label_maps, strict=True):
        assert labels.tolist() == labels_by_pixels(image)


def test_windows_of_label_maps_are_all_trained_on(index: AnnotationIndex) -> None:
    config = DetectorDataConfig(shorter_side=64, longer_side=64, slice=64, slice_whole=False, workers=0)
    batch = next(iter(detection_loader(index, config, batch_size=12, seed=0)))
    assert batch.targets.label_maps is not None
    assert set(batch.rows) == {0, 1}
    for image, labels in zip(batch.images.pixels.permute(0, 2, 3, 1).numpy(), batch.targets.label_maps, strict=True):
        assert labels.tolist() == labels_by_pixels(image)


def test_a_data_set_without_label_maps_is_refused_where_they_are_asked_for(
    make_voc: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
) -> None:
    make_voc({"a": [("cat", (11, 21, 40, 50), False)]})
    config = DetectorDataConfig(root=str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.train.*label_images"):
        load_index(config, [f"{write_card('voc')}:train"], key="data.train", say=print, label_maps=True)


def test_rare_objects_cannot_be_repeated_where_there_are_none(index: AnnotationIndex) -> None:
    with pytest.raises(ValueError, match=r"repeat_threshold.*set it to 0"):
        detection_loader(index, DetectorDataConfig(repeat_threshold=0.1, workers=0), batch_size=4, seed=0)
