"""Mirrors detection/data/label_layouts.py, and what resdet init makes of it (tasks/label_recipe.py)."""

from pathlib import Path

import numpy as np
import pytest

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card, load_dataset
from detection.data.label_layouts import OPENED
from detection.data.recognise import recognise
from detection.engine.checkpoint import Checkpoint
from detection.structures import VOID
from detection.tasks import init
from detection.tasks.init import Wishes, init_folder
from detection.tasks.recipe import Machine

RNG = np.random.default_rng(0)


@pytest.fixture
def files(draw, tmp_path):
    """Writes noisy pictures, or label images with four columns of each value, of 32x40."""

    def write(*names, values=None, grey=False):
        stored = np.zeros((32, 40), np.uint8)
        for number, value in enumerate(values or ()):
            stored[:, 4 * number : 4 * number + 4] = value
        for name in names:
            noise = RNG.integers(0, 256, (32, 40) if grey else (32, 40, 3), dtype=np.uint8)
            draw(tmp_path / name, noise if values is None else stored)
        return tmp_path

    return write


def test_two_folders_of_equal_names(files) -> None:
    files("images/0.jpg", grey=True)
    files("images/1.jpg", "images/2.jpg")
    found = recognise(files("masks/0.png", "masks/1.png", "masks/2.png", values=(1, 3, 255)))
    splits = {"all": [{"images": "images", "labels": "masks"}]}
    assert (found.format, found.layout.splits) == ("label_images", splits)
    assert found.layout.card == {"classes": ("background", "class_1", "class_3"), "values": (0, 1, 3)}


def test_label_images_of_colours_among_others_are_named(files) -> None:
    numbers = [f"{number:03}" for number in range(2 * OPENED)]
    files(*(f"images/{number}.jpg" for number in numbers))
    files(*(f"masks/{number}.png" for number in numbers), values=(1,))
    found = recognise(files("masks/001.png"))
    assert any("masks/001.png" in line and "dropped" in line for line in found.lines)


def test_pictures_with_masks_beside_them_of_0_and_255(files) -> None:
    files("train/a.png", "valid/a.png")
    layout = recognise(files("train/a_mask.png", "valid/a_mask.png", values=(255,))).layout
    entries = {
        name: {"images": folder, "labels": folder, "label_suffix": "_mask.png"}
        for name, folder in (("train", "train"), ("val", "valid"))
    }
    assert layout.splits == {name: [entry] for name, entry in entries.items()}
    assert layout.card == {"classes": ("background", "class_255"), "values": (0, 255), "void": ()}


def test_folders_of_cities_as_cityscapes_has_them(files) -> None:
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm")):
        stem = f"{split}/{city}/{city}_000000_000019"
        root = files(f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_color.png")
        kinds = ("instanceIds", "labelIds", "labelTrainIds")
        files(*(f"gtFine/{stem}_gtFine_{kind}.png" for kind in kinds), values=(7, 8))
    suffixes = {"image_suffix": "_leftImg8bit.png", "label_suffix": "_gtFine_labelIds.png"}
    assert recognise(root).layout.splits == {
        split: [{"images": f"leftImg8bit/{split}", "labels": f"gtFine/{split}", **suffixes}]
        for split in ("train", "val")
    }


def test_vocs_lists_and_classes_not_objects(files) -> None:
    root = files()
    for number in range(3):
        files(f"JPEGImages/2007_{number}.jpg")
        kinds = ("Class", "Object")
        files(*(f"Segmentation{kind}/2007_{number}.png" for kind in kinds), values=(1, 15, 255))
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
    return files(*(f"own/labels/{number}.png" for number in range(12)), values=(2, 4, 255)) / "own"


@pytest.mark.parametrize("machine", [Machine("cpu", 0.0, 2), Machine("cuda", 80.0, 16)])
def test_a_folder_gets_a_card_and_a_config_of_a_semantic_network(own, tmp_path, machine) -> None:
    project = init_folder(own, tmp_path / "run", wishes=Wishes(start="none"), machine=machine, say=lambda _: None)
    card, config = load_card(str(project.card)), load_config(DetectionConfig, project.config)
    assert card.labels_of_values == {0: 0, 2: 1, 4: 2, 255: VOID}
    assert (config.architecture, config.solver.best_metric) == ("deeplabv3", "semseg.mIoU")
    assert config.data.jitter is not None
    sets = (config.data.train, config.data.val)
    train, val = (load_dataset([*specs], Path(), label_maps=True)[0] for specs in sets)
    assert (len(train) + len(val), len(val)) == (12, 2)
    assert train.label_maps is not None
    assert train.label_maps.class_names == ("background", "class_2", "class_4")


def test_a_detector_of_objects_is_no_start_for_label_images(own, tmp_path, monkeypatch) -> None:
    origin = Checkpoint(tmp_path / "a.safetensors", {}, DetectionConfig(), ("cat",), iteration=0)
    monkeypatch.setattr(init, "read_origin", lambda *_, **__: origin)
    with pytest.raises(ValueError, match="finds objects, and the data set has label images"):
        init_folder(own, tmp_path / "run", wishes=Wishes(start="some"), say=lambda _: None)
