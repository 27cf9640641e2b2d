"""Mirrors detection/data/readers/label_images.py and polygon_maps.py: from a card to label maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detection.data.cards import load_card, load_dataset, read_split
from detection.data.digits import write_digits
from detection.structures import VOID

ENTRY = {"images": "images", "labels": "labels"}


@pytest.fixture
def files(draw, tmp_path):
    """Writes pictures of 6x8, and label images with a column of each of some values at the left, 0 elsewhere."""

    def write(*pictures, size=(6, 8), **labels):
        for name in pictures:
            draw(tmp_path / name, size=size)
        for name, values in labels.items():
            stored = np.zeros(size, np.uint8)
            stored[:, : len(values)] = values
            draw(tmp_path / "labels" / f"{name}.png", stored)
        return tmp_path

    return write


@pytest.fixture
def load(tmp_path):
    """Loads the split train of an own card; gives index and problems."""

    def load(entry, **keys):
        values = {"format": "label_images", "root": ".", "classes": ["ground", "house"], "source": "asked of Ada"}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(values | {"splits": {"train": entry}} | keys))
        return load_dataset([f"{tmp_path / 'own.yaml'}:train"], tmp_path, label_maps=True)

    return load


def names(index):
    return [Path(path).name for path in index.paths]


def columns(index, row=0):
    return index.label_maps.read(row, (6, 8))[0].tolist()


def test_a_list_names_images_by_stem_as_vocs_do(files, load) -> None:
    root = files("JPEGImages/07_1.jpg", "JPEGImages/07_2.jpg", "JPEGImages/07_3.jpg", **{"07_3": [1, 255], "07_1": []})
    (root / "train.txt").write_text("07_3\n07_1.jpg\n", encoding="utf-8")
    index, _ = load({"images": "JPEGImages", "labels": "labels", "list": "train.txt"})
    assert (names(index), columns(index)) == (["07_3.jpg", "07_1.jpg"], [1, VOID, 0, 0, 0, 0, 0, 0])
    assert index.class_names == index.label_maps.class_names == ("ground", "house")
    assert (len(index.boxes), index.has_ground_truth) == (0, True)


def test_suffixes_and_folders_of_cities_as_cityscapes_has_them(files) -> None:
    root = files()
    for city in ("aachen", "bonn"):
        stem = f"{city}/{city}_1"
        files(f"leftImg8bit/train/{stem}_leftImg8bit.png", f"gtFine/train/{stem}_gtFine_color.png", own=[7, 8, 4, 33])
        (root / "labels/own.png").rename(root / f"gtFine/train/{stem}_gtFine_labelIds.png")
    index, problems = read_split(replace(load_card("cityscapes"), root="."), "train", root, label_maps=True)
    assert (problems, names(index)) == ([], ["aachen_1_leftImg8bit.png", "bonn_1_leftImg8bit.png"])
    shown = [index.class_names[label] if label != VOID else "void" for label in columns(index, 1)]
    assert shown == ["road", "sidewalk", "void", "bicycle", *["void"] * 4]
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


def test_images_without_a_label_image_and_label_images_beside_their_pictures(files, load) -> None:
    root = files("images/a.jpg", "images/b.jpg", b=[])
    index, (problem,) = load(ENTRY)
    assert (problem.severity, problem.file) == ("note", str(root / "images/a.jpg"))
    assert str(root / "labels/a.png") in problem.detail
    assert (columns(index), index.label_maps.labelled().tolist()) == ([VOID] * 8, [False, True])
    index, _ = load({"images": "images"})
    assert not index.has_ground_truth
    assert not index.label_maps.labelled().any()  # whose classes and values predictions are written in
    files("labels/c.png", c_mask=[1])
    index, _ = load({"images": "labels", "labels": "labels", "label_suffix": "_mask.png"})
    assert (names(index), columns(index)[0]) == (["b.png", "c.png"], VOID)
    assert columns(index, 1)[0] == 1


def test_bad_label_images_stop_before_the_first_step_and_name_the_file(files, load) -> None:
    files("images/a.jpg")
    with pytest.raises(ValueError, match=r"no folder .*labels\. Where to get it: asked of Ada"):
        load(ENTRY)
    files(a=[], size=(8, 6))
    with pytest.raises(ValueError, match=r"labels/a\.png: it is 6x8 pixels, its image 8x6"):
        load(ENTRY)
    files("images/b.jpg", a=[2], b=[1])
    assert names(load(ENTRY, bad_images="drop")[0]) == ["b.jpg"]  # which reads all


def test_wrong_keys_of_a_card(load) -> None:
    for keys, message in (
        ({"values": [1]}, "2 classes and 1 values"),
        ({"values": [1, 255]}, "given twice in values and void: .255."),
        ({"format": "coco", "values": [0, 1]}, "values is for"),
        ({"label_maps": "polygons"}, "label_maps is for the coco format"),
        ({"classes": []}, "1 to 255 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            load({"images": "images"}, **keys)


def test_polygons_make_label_maps_and_overlaps_and_crowds_are_void(make_coco, write_card, tmp_path, edit_json) -> None:
    square, beside = ([[x, 10, x + 20, 10, x + 20, 30, x, 30]] for x in (10, 20))  # half of one lies over the other
    crowd = {"size": [60, 80], "counts": [0, 60, 60 * 79]}  # the first column
    objects = [
        {"id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": square},
        {"id": 2, "category_id": 18, "bbox": [20, 10, 20, 20], "segmentation": beside},
        {"id": 3, "category_id": 3, "bbox": [0, 0, 1, 60], "segmentation": crowd, "iscrowd": 1},
        {"id": 4, "category_id": 3, "bbox": [50, 50, 4, 4]},  # without a mask
    ]
    file = make_coco({1: "a.jpg", 2: "b.jpg"}, [own | {"image_id": 1} for own in objects])
    spec = f"{write_card('coco', label_maps='polygons')}:train"
    index, _ = load_dataset([spec], tmp_path, label_maps=True)
    expected = np.zeros((60, 80), np.uint8)
    expected[10:30, 10:20], expected[10:30, 20:30], expected[10:30, 30:40] = 1, VOID, 2
    expected[:, 0], expected[50:54, 50:54] = VOID, VOID
    maps = index.label_maps
    assert maps is not None
    np.testing.assert_array_equal(maps.read(0, (60, 80)), expected)
    assert (maps.read(1, (60, 80)).any(), maps.labelled().all().item(), len(index.boxes)) == (False, True, 0)
    assert index.class_names == maps.class_names == ("background", "cat", "dog")
    plain, _ = load_dataset([spec], tmp_path, fields=("masks",))
    assert (len(plain.boxes), plain.class_names, plain.label_maps) == (4, ("cat", "dog"), None)
    edit_json(file, lambda content: content.pop("annotations"))
    index, _ = load_dataset([spec], tmp_path, label_maps=True)
    assert (index.class_names, index.has_ground_truth) == (("background", "cat", "dog"), False)


def test_digits_have_label_images_as_their_masks_say(tmp_path) -> None:
    write_digits(tmp_path, num_train=1, num_test=2)
    index, _ = load_dataset(["digits_labels:test"], tmp_path, label_maps=True)
    masks, _ = read_split(replace(load_card("digits"), label_maps="polygons"), "test", tmp_path, label_maps=True)
    assert index.class_names == masks.class_names
    assert index.label_maps is not None
    assert masks.label_maps is not None
    for row, (height, width) in enumerate(index.sizes.tolist()):
        read = index.label_maps.read(row, (height, width))
        assert read.any()
        np.testing.assert_array_equal(read, masks.label_maps.read(row, (height, width)))
    with Image.open(index.label_maps.files[1]) as image:
        assert image.mode == "P"
