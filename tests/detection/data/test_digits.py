"""Mirrors detection/data/digits.py."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from detection.data.cards import load_card, load_dataset, read_split
from detection.data.digits import CLASSES, KEYPOINTS, STUFF, Scene, draw_scene, load_sources, write_digits

COUNTS = {"train": 12, "test": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("root"), num_train=COUNTS["train"], num_test=COUNTS["test"])


def test_boxes_masks_and_keypoints_of_known_scenes() -> None:
    objects = np.zeros((4, 6), np.uint8)
    objects[1, 2:5], objects[2:4, 0] = 1, 2
    scene = Scene(np.zeros((4, 6, 3), np.uint8), objects, (7, 3))
    assert (scene.boxes.tolist(), scene.masks.sum(axis=(1, 2)).tolist()) == ([[2, 1, 5, 2], [0, 2, 1, 4]], [3, 2])
    scene = Scene(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8), ())
    assert (scene.boxes.shape, scene.masks.shape) == ((0, 4), (0, 4, 6))
    objects = np.zeros((30, 30), np.uint8)
    objects[5:25, 10] = 1  # a stroke of 20 pixels down, and one of 10 to the right at its foot
    objects[24, 10:20] = 1
    # The outer tenth is 2 of 20 rows, of which the lower has 10 pixels in the last row and 1 above; 1 of 10 columns.
    scene = Scene(np.zeros((30, 30, 3), np.uint8), objects, (1,))
    assert scene.keypoints.tolist() == [[[10, 5.5], [14.1, 23.9], [10, 14.5], [19, 24]]]


def test_scenes_keep_to_their_limits_and_digits_stand_out_and_hardly_overlap() -> None:
    source = load_sources()[0]
    for seed in range(20):
        scene = draw_scene(source, np.random.default_rng(seed))
        (height, width), boxes = scene.objects.shape, scene.boxes
        assert scene.image.shape == (height, width, 3)
        assert 128 <= min(height, width) <= max(height, width) <= 192
        assert 1 <= len(scene.labels) <= 6
        sides = boxes[:, 2:] - boxes[:, :2]
        assert 20 <= sides.max(axis=1).min() <= sides.max(axis=1).max() <= 80
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= (width, height)).all()
        shared = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        areas = sides.prod(axis=1)
        shares = shared.clip(min=0).prod(axis=-1) / np.minimum(areas[:, None], areas[None])
        assert (shares[~np.eye(len(boxes), dtype=bool)] <= 0.1).all()
        luma = scene.image @ np.array([0.299, 0.587, 0.114])
        for mask in scene.masks:
            grown = mask.copy()
            for axis, shift in ((0, -2), (0, 2), (1, -2), (1, 2)):
                grown |= np.roll(mask, shift, axis)
            assert abs(luma[mask].mean() - luma[grown & (scene.objects == 0)].mean()) > 45


def test_train_and_test_digits_are_disjoint_and_cover_every_class(monkeypatch) -> None:
    train, test = load_sources()
    assert len(train.digits) + len(test.digits) == 1797
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert not {digit.tobytes() for digit in train.digits} & {digit.tobytes() for digit in test.digits}
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "resdet\[demo\]"'):
        load_sources()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 on numpy 2
@pytest.mark.parametrize("split", COUNTS)
def test_the_cards_read_the_same_out_of_both_layouts_as_pycocotools(folder, split) -> None:
    (index, problems), (voc, more) = (
        load_dataset([f"{card}:{split}"], folder.parent, fields=("masks",)) for card in ("digits", "digits_voc")
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / f"coco/annotations/instances_{split}.json"))
    assert (problems, more, len(index), len(voc)) == ([], [], COUNTS[split], COUNTS[split])
    assert (index.class_names, set(index.labels.tolist())) == (CLASSES, set(range(10)))
    for name in ("boxes", "labels", "sizes"):
        assert torch.equal(getattr(index, name), getattr(voc, name))
    for row, image in enumerate(index.image_ids.tolist()):
        own, other = Path(index.paths[row]), Path(voc.paths[row])
        assert (own.name, own.read_bytes()) == (other.name, other.read_bytes())
        assert index.stored("masks", row) == voc.stored("masks", row)
        with Image.open(folder / f"voc/SegmentationObject/{other.stem}.png") as opened:
            assert (opened.mode, (opened.getpalette() or [])[:9]) == ("P", [0, 0, 0, 128, 0, 0, 0, 128, 0])  # VOC's
            objects = np.asarray(opened)
        for number, annotation in enumerate(coco.loadAnns(coco.getAnnIds(image)), start=1):
            (x, y, width, height), mask = annotation["bbox"], coco.annToMask(annotation)
            (top, left), (bottom, right) = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0)
            assert [left, top, right + 1, bottom + 1] == [x, y, x + width, y + height]
            assert mask.sum() == annotation["area"]
            np.testing.assert_array_equal(mask, objects == number)
        assert objects.max() == len(index.target(row))


def test_keypoints_are_the_ends_of_the_ink(folder) -> None:
    content = json.loads((folder / "coco/annotations/instances_test.json").read_text())
    assert all(category["keypoints"] == list(KEYPOINTS) for category in content["categories"])
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        points = np.array(annotation["keypoints"]).reshape(4, 3)
        assert ((points[:, 2] == 2).all(), annotation["num_keypoints"]) == (True, 4)
        (_, top), (_, bottom), (left, _), (right, _) = (points[:, :2] + 0.5 - (x, y)) / (width, height)  # of its box
        assert 0 <= min(top, left) <= max(top, left) <= 0.1 + 1 / min(width, height)
        assert 0.9 - 1 / min(width, height) <= min(bottom, right) <= max(bottom, right) <= 1


def test_segments_are_the_digits_and_the_photograph(folder) -> None:
    card = replace(load_card("digits_panoptic"), root=str(folder / "coco"))
    index, problems = read_split(card, "train", folder, fields=("masks",), label_maps=True)
    maps, masks, stuff = cast(Any, index.label_maps), cast(Any, index.target(0, fields=("masks",)).masks), set()
    assert (problems, index.class_names) == ([], CLASSES)
    assert maps.class_names[maps.num_things :] == STUFF
    for row, (height, width) in enumerate(index.sizes.tolist()):
        segments = maps.read_segments(row, (height, width))
        assert (segments.ids > 0).all()
        stuff.add(segments.found[-1].label)
        if row == 0:
            assert all((mask.numpy() == (segments.ids == number)).all() for number, mask in enumerate(masks, start=1))
    assert stuff == {10, 11}


def test_the_seed_decides_every_byte_and_more_images_keep_the_first(folder, tmp_path) -> None:
    again = write_digits(tmp_path / "again", num_train=COUNTS["train"], num_test=COUNTS["test"])
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    image = Path("coco/train/000001.jpg")
    other = write_digits(tmp_path / "other", num_train=1, num_test=0, seed=1)
    fewer = write_digits(tmp_path / "fewer", num_train=1, num_test=0)
    assert (other / image).read_bytes() != (folder / image).read_bytes() == (fewer / image).read_bytes()
    empty = json.loads((fewer / "coco/annotations/instances_test.json").read_text())
    assert empty["images"] == empty["annotations"] == []
    assert (fewer / "voc/ImageSets/Main/test.txt").read_text() == ""


def test_its_own_folder_is_replaced_as_a_whole_and_that_of_somebody_else_left_alone(tmp_path) -> None:
    folders = [write_digits(tmp_path, num_train=count, num_test=1) for count in (2, 1)]
    assert folders == [tmp_path / "digits"] * 2
    assert len(list((folders[0] / "voc/JPEGImages").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    (tmp_path / "b/digits").mkdir(parents=True)
    (tmp_path / "b/digits/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"digits was not made by resdet digits.*--root"):
        write_digits(tmp_path / "b", num_train=1, num_test=1)
    assert [path.name for path in (tmp_path / "b").rglob("*")] == ["digits", "mine.txt"]
    with pytest.raises(ValueError, match="got -1"):
        write_digits(tmp_path, num_train=-1)
