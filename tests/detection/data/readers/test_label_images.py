"""Mirrors detection/data/readers/label_images.py and polygon_maps.py: from a card to label maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from detection.data.cards import load_card, load_dataset, read_split
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.structures import VOID

SIZE = (6, 8)


def picture(path: Path, *, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (9, 99, 200)).save(path)


def labels(path: Path, *values: int, size: tuple[int, int] = SIZE) -> None:
    """A label image with a column of each of ``values`` at its left, 0 elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.zeros(size, np.uint8)
    for column, value in enumerate(values):
        stored[:, column] = value
    Image.fromarray(stored).save(path)


def card(folder: Path, entry: dict[str, Any], **keys: Any) -> str:
    path = folder / "own.yaml"
    values = {
        "format": "label_images",
        "root": ".",
        "classes": ["ground", "house"],
        "source": "asked of Ada",
        "splits": {"train": entry},
    } | keys
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return f"{path}:train"


def load(folder: Path, entry: dict[str, Any], **keys: Any) -> AnnotationIndex:
    return load_dataset([card(folder, entry, **keys)], folder, label_maps=True)[0]


def maps_of(index: AnnotationIndex) -> LabelMaps:
    assert index.label_maps is not None
    return index.label_maps


def columns(index: AnnotationIndex, row: int = 0) -> list[int]:
    return maps_of(index).read(row, SIZE)[0].tolist()


def test_a_list_names_images_by_stem_as_vocs_do(tmp_path: Path) -> None:
    for stem in ("2007_01", "2007_02", "2007_03"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
    labels(tmp_path / "SegmentationClass" / "2007_03.png", 1, 255)
    labels(tmp_path / "SegmentationClass" / "2007_01.png")
    (tmp_path / "train.txt").write_text("2007_03\n2007_01.jpg\n", encoding="utf-8")
    index = load(tmp_path, {"images": "JPEGImages", "labels": "SegmentationClass", "list": "train.txt"})
    assert [Path(path).name for path in index.paths] == ["2007_03.jpg", "2007_01.jpg"]
    assert columns(index) == [1, VOID, 0, 0, 0, 0, 0, 0]
    assert index.class_names == maps_of(index).class_names == ("ground", "house")
    assert len(index.boxes) == 0
    assert index.has_ground_truth


def test_suffixes_and_folders_of_cities_as_cityscapes_has_them(tmp_path: Path) -> None:
    for city, name in (("aachen", "aachen_1"), ("bonn", "bonn_1")):
        picture(tmp_path / "leftImg8bit/train" / city / f"{name}_leftImg8bit.png")
        labels(tmp_path / "gtFine/train" / city / f"{name}_gtFine_labelIds.png", 7, 8, 4, 33)
        picture(tmp_path / "gtFine/train" / city / f"{name}_gtFine_color.png")
    cityscapes = replace(load_card("cityscapes"), root=".")
    index, problems = read_split(cityscapes, "train", tmp_path, label_maps=True)
    assert not problems
    assert [Path(path).name for path in index.paths] == ["aachen_1_leftImg8bit.png", "bonn_1_leftImg8bit.png"]
    names = [index.class_names[label] if label != VOID else "void" for label in columns(index, 1)]
    assert names == ["road", "sidewalk", "void", "bicycle", *["void"] * 4]
    assert index.category_ids[:3] == (7, 8, 11)


def test_values_of_the_cards_that_come_with_it() -> None:
    stuff, voc = load_card("coco_stuff"), load_card("voc2012_segmentation")
    values = stuff.labels_of_values  # of labels.txt's numbers less 1
    assert (len(stuff.classes), len(voc.classes)) == (171, 21)
    for number, name in ((1, "person"), (13, "stop sign"), (90, "toothbrush"), (92, "banner"), (182, "wood")):
        assert stuff.classes[values[number - 1]] == name
    assert 11 not in values  # street sign, which no pixel has
    assert values[255] == voc.labels_of_values[255] == VOID
    assert voc.classes[voc.labels_of_values[15]] == "person"


def test_an_image_without_a_label_image_is_noted(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "images/b.jpg")
    labels(tmp_path / "labels/b.png")
    spec = card(tmp_path, {"images": "images", "labels": "labels"})
    index, problems = load_dataset([spec], tmp_path, label_maps=True)
    assert [(problem.severity, Path(problem.file).name) for problem in problems] == [("note", "a.jpg")]
    assert str(tmp_path / "labels/a.png") in problems[0].detail
    assert columns(index, 0) == [VOID] * 8
    assert maps_of(index).labelled().tolist() == [False, True]


def test_label_images_beside_their_pictures_are_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "all/a.png")
    labels(tmp_path / "all/a_mask.png", 1)
    index = load(tmp_path, {"images": "all", "labels": "all", "label_suffix": "_mask.png"})
    assert [Path(path).name for path in index.paths] == ["a.png"]
    assert columns(index)[0] == 1


def test_images_alone_are_a_set_without_ground_truth(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    index = load(tmp_path, {"images": "images"})
    assert not index.has_ground_truth
    assert not maps_of(index).labelled().any()  # whose classes and values predictions are written in


def test_bad_label_images_stop_before_the_first_step_and_name_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    labels(tmp_path / "labels/a.png", size=(8, 6))
    entry = {"images": "images", "labels": "labels"}
    with pytest.raises(ValueError, match=r"labels/a\.png: it is 6x8 pixels, its image 8x6"):
        load(tmp_path, entry)
    labels(tmp_path / "labels/a.png", 2)
    picture(tmp_path / "images/b.jpg")
    labels(tmp_path / "labels/b.png", 1)
    index = load(tmp_path, entry, bad_images="drop")  # which reads all
    assert [Path(path).name for path in index.paths] == ["b.jpg"]


def test_a_missing_folder_and_card_says_where_data_come_from(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    with pytest.raises(ValueError, match=r"no folder .*labels\. Where to get it: asked of Ada"):
        load(tmp_path, {"images": "images", "labels": "labels"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"values": [1]}, "2 classes and 1 values"),
        ({"values": [1, 255]}, "given twice in values and void: .255."),
        ({"format": "coco", "values": [0, 1]}, "values is for"),
        ({"label_maps": "polygons"}, "label_maps is for the coco format"),
        ({"classes": []}, "1 to 255 classes"),
    ],
)
def test_wrong_keys_of_a_card(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"images": "images"}, **keys)


# polygons

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
BESIDE = [[20, 10, 40, 10, 40, 30, 20, 30]]  # half of it lies over the square
CROWD = {"size": [60, 80], "counts": [0, 60, 60 * 79]}  # the first column


def test_polygons_make_label_maps_and_overlaps_and_crowds_are_void(
    make_coco: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
) -> None:
    objects = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": SQUARE},
        {"id": 2, "image_id": 1, "category_id": 18, "bbox": [20, 10, 20, 20], "segmentation": BESIDE},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 60], "segmentation": CROWD, "iscrowd": 1},
        {"id": 4, "image_id": 1, "category_id": 3, "bbox": [50, 50, 4, 4]},  # without a mask
    ]
    make_coco({1: "a.jpg", 2: "b.jpg"}, objects)
    spec = f"{write_card('coco', label_maps='polygons')}:train"
    index, _ = load_dataset([spec], tmp_path, label_maps=True)
    expected = np.zeros((60, 80), np.uint8)
    expected[10:30, 10:20], expected[10:30, 20:30], expected[10:30, 30:40] = 1, VOID, 2
    expected[:, 0], expected[50:54, 50:54] = VOID, VOID
    assert (maps_of(index).read(0, (60, 80)) == expected).all()
    assert not maps_of(index).read(1, (60, 80)).any()
    assert maps_of(index).labelled().all()
    assert index.class_names == maps_of(index).class_names == ("background", "cat", "dog")
    assert len(index.boxes) == 0
    plain, _ = load_dataset([spec], tmp_path, fields=("masks",))
    assert (len(plain.boxes), plain.class_names, plain.label_maps) == (4, ("cat", "dog"), None)


def test_images_without_annotations_have_the_classes_of_polygons(
    make_coco: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
) -> None:
    file = make_coco({1: "a.jpg"}, [])
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    index, _ = load_dataset([f"{write_card('coco', label_maps='polygons')}:train"], tmp_path, label_maps=True)
    assert index.class_names == maps_of(index).class_names == ("background", "cat", "dog")
    assert not index.has_ground_truth


def test_digits_have_label_images_as_their_masks_say(tmp_path: Path) -> None:
    write_digits(tmp_path, num_train=3, num_test=2)
    index, _ = load_dataset(["digits_labels:test"], tmp_path, label_maps=True)
    digits = replace(load_card("digits"), label_maps="polygons")
    masks, _ = read_split(digits, "test", tmp_path, label_maps=True)
    assert index.class_names == masks.class_names
    assert len(index) == 2
    for row in range(2):
        height, width = index.sizes[row].tolist()
        read = maps_of(index).read(row, (height, width))
        assert read.any()
        assert (read == maps_of(masks).read(row, (height, width))).all()
    with Image.open(maps_of(index).files[0]) as image:
        assert image.mode == "P"
