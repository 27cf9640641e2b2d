"""Mirrors label_images.py, polygon_maps.py, label_layouts.py and label_check.py: from files to label maps and pages."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from PIL import Image

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card, load_dataset, read_split
from detection.data.digits import write_digits
from detection.data.label_check import check_label_maps
from detection.data.label_layouts import OPENED
from detection.data.recognise import recognise
from detection.engine.checkpoint import Checkpoint
from detection.structures import VOID
from detection.tasks import init
from detection.tasks.check import check_card
from detection.tasks.init import Wishes, init_folder
from detection.tasks.recipe import Machine

ENTRY, RNG = {"images": "images", "labels": "labels"}, np.random.default_rng(0)


@pytest.fixture
def files(draw, tmp_path):
    """Writes noisy pictures, or label images whose values stand side by side in equal parts, of 32x40."""

    def write(*names, values=None, size=(32, 40), grey=False):
        for name in names:
            noise = RNG.integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
            parts = np.repeat(values or [0], size[1] // len(values or [0]))
            draw(tmp_path / name, noise if values is None else np.tile(parts.astype(np.uint8), (size[0], 1)))
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


def eighths(index, row=0):
    return index.label_maps.read(row, (32, 40))[0, ::5].tolist()


def test_a_list_names_images_by_stem_as_vocs_do(files, load) -> None:
    root = files(*(f"JPEGImages/07_{number}.jpg" for number in (1, 2, 3)))
    files("labels/07_1.png", values=[0])
    files("labels/07_3.png", values=[1, 255, 0, 0, 0, 0, 0, 0])
    (root / "train.txt").write_text("07_3\n07_1.jpg\n", encoding="utf-8")
    index, _ = load({"images": "JPEGImages", "labels": "labels", "list": "train.txt"})
    assert (names(index), eighths(index)) == (["07_3.jpg", "07_1.jpg"], [1, VOID, 0, 0, 0, 0, 0, 0])
    assert index.class_names == index.label_maps.class_names == ("ground", "house")
    assert (len(index.boxes), index.has_ground_truth) == (0, True)


def test_suffixes_and_folders_of_cities_as_cityscapes_has_them(files) -> None:
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm")):
        stem = f"{split}/{city}/{city}_000000_000019"
        root = files(f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_color.png")
        kinds = ("instanceIds", "labelIds", "labelTrainIds")
        files(*(f"gtFine/{stem}_gtFine_{kind}.png" for kind in kinds), values=[7, 8, 4, 33, 0, 0, 0, 0])
    suffixes = {"image_suffix": "_leftImg8bit.png", "label_suffix": "_gtFine_labelIds.png"}
    splits = {s: [{"images": f"leftImg8bit/{s}", "labels": f"gtFine/{s}", **suffixes}] for s in ("train", "val")}
    assert recognise(root).layout.splits == splits
    index, problems = read_split(replace(load_card("cityscapes"), root="."), "train", root, label_maps=True)
    assert (problems, [name.partition("_")[0] for name in names(index)]) == ([], ["aachen", "bonn"])
    shown = [index.class_names[label] if label != VOID else "void" for label in eighths(index, 1)]
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
    root = files("images/a.jpg", "images/b.jpg")
    files("labels/b.png", values=[0])
    index, (problem,) = load(ENTRY)
    assert (problem.severity, problem.file) == ("note", str(root / "images/a.jpg"))
    assert str(root / "labels/a.png") in problem.detail
    assert (eighths(index), index.label_maps.labelled().tolist()) == ([VOID] * 8, [False, True])
    index, _ = load({"images": "images"})
    assert not index.has_ground_truth
    assert not index.label_maps.labelled().any()  # whose classes and values predictions are written in
    files("labels/c.png")
    files("labels/c_mask.png", values=[1])
    index, _ = load({"images": "labels", "labels": "labels", "label_suffix": "_mask.png"})
    assert (names(index), eighths(index), eighths(index, 1)) == (["b.png", "c.png"], [VOID] * 8, [1] * 8)


def test_bad_label_images_stop_before_the_first_step_and_name_the_file(files, load) -> None:
    files("images/a.jpg")
    with pytest.raises(ValueError, match=r"no folder .*labels\. Where to get it: asked of Ada"):
        load(ENTRY)
    files("labels/a.png", values=[0], size=(40, 32))
    with pytest.raises(ValueError, match=r"labels/a\.png: it is 32x40 pixels, its image 40x32"):
        load(ENTRY)
    files("images/b.jpg")
    files("labels/a.png", values=[2])
    files("labels/b.png", values=[1])
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
    maps: Any = index.label_maps
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
    maps, expected = cast(Any, (index.label_maps, masks.label_maps))
    for row, size in enumerate(map(tuple, index.sizes.tolist())):
        assert maps.read(row, size).any()
        np.testing.assert_array_equal(maps.read(row, size), expected.read(row, size))
    with Image.open(maps.files[1]) as image:
        assert image.mode == "P"


def test_two_folders_of_equal_names(files) -> None:
    files("images/0.jpg", grey=True)
    files("images/1.jpg", "images/2.jpg")
    found = recognise(files("masks/0.png", "masks/1.png", "masks/2.png", values=[0, 1, 3, 255]))
    splits = {"all": [{"images": "images", "labels": "masks"}]}
    assert (found.format, found.layout.splits) == ("label_images", splits)
    assert found.layout.card == {"classes": ("background", "class_1", "class_3"), "values": (0, 1, 3)}


def test_label_images_of_colours_among_others_are_named(files) -> None:
    numbers = [f"{number:03}" for number in range(2 * OPENED)]
    files(*(f"images/{number}.jpg" for number in numbers))
    files(*(f"masks/{number}.png" for number in numbers), values=[0, 1])
    found = recognise(files("masks/001.png"))
    assert any("masks/001.png" in line and "dropped" in line for line in found.lines)


def test_pictures_with_masks_beside_them_of_0_and_255(files) -> None:
    files("train/a.png", "valid/a.png")
    layout = recognise(files("train/a_mask.png", "valid/a_mask.png", values=[0, 255])).layout
    for name, folder in (("train", "train"), ("val", "valid")):
        assert layout.splits[name] == [{"images": folder, "labels": folder, "label_suffix": "_mask.png"}]
    assert len(layout.splits) == 2
    assert layout.card == {"classes": ("background", "class_255"), "values": (0, 255), "void": ()}


def test_vocs_lists_and_classes_not_objects(files) -> None:
    root = files()
    for number in range(3):
        files(f"JPEGImages/2007_{number}.jpg")
        kinds = ("Class", "Object")
        files(*(f"Segmentation{kind}/2007_{number}.png" for kind in kinds), values=[0, 1, 15, 255])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, text in (("train", "2007_0\n2007_1\n"), ("val", "2007_2\n")):
        (root / f"ImageSets/Segmentation/{name}.txt").write_text(text)
    names = tuple(f"name{number}" for number in range(21))
    (root / "labels.txt").write_text("\n".join(names) + "\n")
    layout = recognise(root).layout
    entry = {"images": "JPEGImages", "labels": "SegmentationClass"}
    expected = {name: entry | {"list": f"ImageSets/Segmentation/{name}.txt"} for name in ("train", "val")}
    assert {name: entries[0] for name, entries in layout.splits.items()} == expected
    assert layout.card == {"classes": names}


def test_grey_photographs_are_no_label_images(files) -> None:
    files(*(f"left/{number}.jpg" for number in range(3)))
    assert recognise(files(*(f"right/{number}.png" for number in range(3)), grey=True)).format == "image_folder"


@pytest.fixture
def own(files):
    files(*(f"own/images/{number}.jpg" for number in range(12)))
    return files(*(f"own/labels/{number}.png" for number in range(12)), values=[0, 2, 4, 255]) / "own"


@pytest.mark.parametrize("machine", [Machine("cpu", 0.0, 2), Machine("cuda", 80.0, 16)])
def test_a_folder_gets_a_card_and_a_config_of_a_semantic_network(own, tmp_path, machine) -> None:
    project = init_folder(own, tmp_path / "run", wishes=Wishes(start="none"), machine=machine, say=lambda _: None)
    card, config = load_card(str(project.card)), load_config(DetectionConfig, project.config)
    assert card.labels_of_values == {0: 0, 2: 1, 4: 2, 255: VOID}
    assert (config.architecture, config.solver.best_metric) == ("deeplabv3", "semseg.mIoU")
    assert config.data.jitter is not None
    sets = (config.data.train, config.data.val)
    train, val = (cast(Any, load_dataset([*specs], Path(), label_maps=True)[0]) for specs in sets)
    assert (len(train) + len(val), len(val)) == (12, 2)
    assert train.label_maps.class_names == ("background", "class_2", "class_4")


def test_a_detector_of_objects_is_no_start_for_label_images(own, tmp_path, monkeypatch) -> None:
    origin = Checkpoint(tmp_path / "a.safetensors", {}, DetectionConfig(), ("cat",), iteration=0)
    monkeypatch.setattr(init, "read_origin", lambda *_, **__: origin)
    with pytest.raises(ValueError, match="finds objects, and the data set has label images"):
        init_folder(own, tmp_path / "run", wishes=Wishes(start="some"), say=lambda _: None)


@pytest.fixture
def card(files, tmp_path):
    """Three pictures: one half ground and half house, one with a void half, one without a label image."""
    files(*(f"images/{number}.png" for number in range(3)))
    files("labels/0.png", values=[0, 1])
    files("labels/1.png", values=[0, 255])
    values = {"format": "label_images", "root": ".", "classes": ["ground", "house", "river"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values | {"splits": {"train": ENTRY}}), encoding="utf-8")
    return str(tmp_path / "own.yaml")


def titles(page):
    return re.findall(r"<h2[^>]*>([^<]+)</h2>", page.read_text())


def test_pixels_are_counted_by_class(card, tmp_path) -> None:
    counts, problems = check_label_maps(load_dataset([f"{card}:train"], tmp_path, label_maps=True)[0])
    assert (counts.pixels.tolist(), counts.void, counts.labelled) == ([1280, 640, 0], 640, 2)
    assert counts.present.tolist() == [[True, True, False], [True, False, False], [False, False, False]]
    assert [(problem.kind, problem.detail) for problem in problems] == [("class without a pixel", "river")]
    rows = [("ground", "50.00", "2"), ("house", "25.00", "1"), ("river", "0.00", "0"), ("void", "25.00", "")]
    assert counts.rows == rows


def test_a_bad_label_image_is_an_error_with_its_name(resdet, card, files, tmp_path) -> None:
    for options, message in (
        ({"values": [0, 77]}, r"value 77 .*0-2, 255"),
        ({"values": [0, 1], "size": (20, 40)}, r"40x20 pixels, its image 40x32"),
        ({}, r"mode is RGB.*labels\[\(image == colour\)"),
    ):
        files("labels/1.png", **options)
        outcome = resdet("check", card, "--root", tmp_path)
        (error,) = [line for line in (outcome.out + outcome.err).splitlines() if line.startswith("error: ")]
        assert (outcome.status, re.search(rf"labels/1\.png.*{message}", error) is not None) == (1, True)


def test_what_is_no_error_is_noted_and_the_page_shows_label_maps(card, files, tmp_path, capsys, inspect_page) -> None:
    page = tmp_path / "page.html"
    check_card(card, tmp_path, page=page)
    assert titles(page) == ["Findings", "Label maps of train", "Label maps"]
    assert page.read_text().count("with its label map") >= 2
    files("labels/0.png", "labels/1.png", values=[255])
    assert check_card(card, tmp_path) == 0
    printed = capsys.readouterr().out
    for kind in ("void everywhere", "mostly void", "class without a pixel", "image without a label image"):
        assert kind in printed
    for width in (390, 1280):
        assert inspect_page(page, width) == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}


def test_masks_of_a_coco_card_are_counted_as_label_maps_too(make_coco, write_card, tmp_path, capsys) -> None:
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    record = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": square}
    make_coco({1: "a.jpg"}, [record])
    assert check_card(write_card("coco", label_maps="polygons"), tmp_path, page=tmp_path / "page.html") == 0
    assert re.search(r"cat +8\.33 +1\n", capsys.readouterr().out)  # 400 of 4,800 pixels
    assert {"Samples of train", "Label maps of train", "Label maps", "Masks"} <= set(titles(tmp_path / "page.html"))
