"""Mirrors detection/data/label_layouts.py, and what resdet init makes of it (tasks/label_recipe.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card, load_dataset
from detection.data.label_layouts import OPENED
from detection.data.recognise import recognise
from detection.structures import VOID
from detection.tasks.init import Wishes, init_folder
from detection.tasks.recipe import Machine

RNG = np.random.default_rng(0)


def picture(path: Path, *, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (32, 40) if grey else (32, 40, 3)
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)


def labels(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.zeros((32, 40), np.uint8)
    for number, value in enumerate(values):
        stored[:, 4 * number : 4 * number + 4] = value
    Image.fromarray(stored).save(path)


def test_two_folders_of_equal_names(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "images" / f"photo_{number}.jpg", grey=number == 0)
        labels(tmp_path / "masks" / f"photo_{number}.png", 1, 3, 255)
    found = recognise(tmp_path)
    assert found.format == "label_images"
    assert found.layout.splits == {"all": [{"images": "images", "labels": "masks"}]}
    assert found.layout.card == {"classes": ("background", "class_1", "class_3"), "values": (0, 1, 3)}


def test_label_images_of_colours_among_others_are_named(tmp_path: Path) -> None:
    for number in range(2 * OPENED):
        picture(tmp_path / "images" / f"{number:03}.jpg")
        labels(tmp_path / "masks" / f"{number:03}.png", 1)
    picture(tmp_path / "masks" / "001.png")
    assert any("masks/001.png" in line and "dropped" in line for line in recognise(tmp_path).lines)


def test_pictures_with_masks_beside_them_of_0_and_255(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "a.png")
        labels(tmp_path / split / "a_mask.png", 255)
    found = recognise(tmp_path)
    assert found.layout.splits == {
        "train": [{"images": "train", "labels": "train", "label_suffix": "_mask.png"}],
        "val": [{"images": "valid", "labels": "valid", "label_suffix": "_mask.png"}],
    }
    assert found.layout.card == {"classes": ("background", "class_255"), "values": (0, 255), "void": ()}


def test_folders_of_cities_as_cityscapes_has_them(tmp_path: Path) -> None:
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        picture(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        picture(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_color.png")
        for kind in ("instanceIds", "labelIds", "labelTrainIds"):
            labels(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", 7, 8)
    suffixes = {"image_suffix": "_leftImg8bit.png", "label_suffix": "_gtFine_labelIds.png"}
    assert recognise(tmp_path).layout.splits == {
        split: [{"images": f"leftImg8bit/{split}", "labels": f"gtFine/{split}", **suffixes}]
        for split in ("train", "val")
    }


def test_vocs_lists_and_classes_not_objects(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "JPEGImages" / f"2007_{number}.jpg")
        for kind in ("Class", "Object"):
            labels(tmp_path / f"Segmentation{kind}" / f"2007_{number}.png", 1, 15, 255)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n", encoding="utf-8")
    (lists / "val.txt").write_text("2007_2\n", encoding="utf-8")
    (tmp_path / "labels.txt").write_text("".join(f"name{number}\n" for number in range(21)), encoding="utf-8")
    layout = recognise(tmp_path).layout
    assert {name: entries[0] for name, entries in layout.splits.items()} == {
        name: {"images": "JPEGImages", "labels": "SegmentationClass", "list": f"ImageSets/Segmentation/{name}.txt"}
        for name in ("train", "val")
    }
    assert layout.card == {"classes": tuple(f"name{number}" for number in range(21))}


def test_grey_photographs_are_no_label_images(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "left" / f"{number}.jpg")
        picture(tmp_path / "right" / f"{number}.png", grey=True)
    assert recognise(tmp_path).format == "image_folder"


@pytest.mark.parametrize("machine", [Machine("cpu", 0.0, 2), Machine("cuda", 80.0, 16)])
def test_a_folder_gets_a_card_and_a_config_of_a_semantic_network(tmp_path: Path, machine: Machine) -> None:
    for number in range(12):
        picture(tmp_path / "own" / "images" / f"{number}.jpg")
        labels(tmp_path / "own" / "labels" / f"{number}.png", 2, 4, 255)
    project = init_folder(
        tmp_path / "own", tmp_path / "run", wishes=Wishes(start="none"), machine=machine, say=lambda _: None
    )
    card, config = load_card(str(project.card)), load_config(DetectionConfig, project.config)
    assert card.labels_of_values == {0: 0, 2: 1, 4: 2, 255: VOID}
    assert (config.architecture, config.solver.best_metric) == ("deeplabv3", "semseg.mIoU")
    assert config.data.jitter is not None
    sets = (config.data.train, config.data.val)
    train, val = (load_dataset([*specs], Path(), label_maps=True)[0] for specs in sets)
    assert (len(train) + len(val), len(val)) == (12, 2)
    assert train.label_maps is not None
    assert train.label_maps.class_names == ("background", "class_2", "class_4")


def test_a_detector_of_objects_is_no_start_for_label_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detection.engine.checkpoint import Checkpoint
    from detection.tasks import init

    origin = Checkpoint(tmp_path / "a.safetensors", {}, DetectionConfig(), ("cat",), iteration=0)
    monkeypatch.setattr(init, "read_origin", lambda *_, **__: origin)
    picture(tmp_path / "own" / "images" / "a.jpg")
    picture(tmp_path / "own" / "images" / "b.jpg")
    for name in "ab":
        labels(tmp_path / "own" / "labels" / f"{name}.png", 2, 4)
    with pytest.raises(ValueError, match="finds objects, and the data set has label images"):
        init_folder(tmp_path / "own", tmp_path / "run", wishes=Wishes(start="some"), say=lambda _: None)
