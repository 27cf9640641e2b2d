"""Mirrors data/recognise.py and data/layouts.py, over the readers: the same objects come out of every format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.data.cards import Card, read_split, with_classes_of_data
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.data.recognise import Recognised, recognise

MadeFolder = Callable[..., Path]
MadeBoxes = Callable[..., dict[str, list[tuple[str, tuple[float, ...]]]]]

# How it is written -> format, splits
EXPECTED = {
    "voc": ("voc", {"all"}),
    "voc_flat": ("voc", {"all"}),
    "coco": ("coco", {"all"}),
    "roboflow": ("coco", {"train", "val", "test"}),
    "yolo": ("yolo", {"train", "val"}),
    "yolo_polygons": ("yolo", {"train", "val"}),
    "yolo_plain": ("yolo", {"all"}),
    "labelme": ("labelme", {"all"}),
    "cvat": ("cvat", {"all"}),
    "label_studio": ("label_studio", {"all"}),
    "label_studio_full": ("label_studio", {"all"}),
    "open_images": ("open_images", {"all"}),
    "csv": ("csv", {"all"}),
    "csv_without_header": ("csv", {"all"}),
}
WITHOUT_EMPTY_IMAGES = ("open_images",)  # which has a row per box only


def read_all(found: Recognised, *, fields: tuple[str, ...] = ()) -> AnnotationIndex:
    """All splits of a folder, through a card as init writes it; there must be no problem."""
    card = Card(name="made", format=found.format, root=str(found.folder), splits=dict(found.layout.splits))
    card = with_classes_of_data(card, Path())
    parts = list[AnnotationIndex]()
    for split in card.splits:
        index, problems = read_split(card, split, Path(), fields=fields)
        assert fields or problems == []  # objects without a mask are told, where masks are read
        parts.append(index)
    return AnnotationIndex.concatenate(parts)


def objects_of(index: AnnotationIndex) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    found = {}
    for row in range(len(index)):
        target = index.target(row)
        names = [index.class_names[label] for label in target.labels.tolist()]
        found[Path(index.paths[row]).name] = [
            (name, tuple(box)) for name, box in zip(names, target.boxes.tolist(), strict=True)
        ]
    return found


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_format_is_recognised_and_keeps_every_box(
    made_folder: MadeFolder, made_boxes: MadeBoxes, kind: str
) -> None:
    found = recognise(made_folder(kind))
    assert (found.format, set(found.layout.splits)) == EXPECTED[kind]
    assert found.others == ()
    assert str(found.folder) in found.lines[0]
    expected = made_boxes()
    if kind in WITHOUT_EMPTY_IMAGES:
        expected = {name: objects for name, objects in expected.items() if objects}
    index = read_all(found)
    assert index.class_names == ("bolt", "nut")
    read = objects_of(index)
    assert read.keys() == expected.keys()
    for name, objects in expected.items():
        assert [label for label, _ in read[name]] == [label for label, _ in objects]
        for (_, box), (_, wanted) in zip(read[name], objects, strict=True):
            assert box == pytest.approx(wanted, abs=0.01), name


@pytest.mark.parametrize("kind", ["coco", "yolo_polygons", "labelme", "cvat", "label_studio"])
def test_polygons_become_masks(made_folder: MadeFolder, kind: str) -> None:
    index = read_all(recognise(made_folder(kind)), fields=("masks",))
    plain = read_all(recognise(made_folder("coco", name="reference")), fields=("masks",))
    areas = {Path(index.paths[row]).name: index.target(row, fields=("masks",)).masks for row in range(len(index))}
    for row in range(len(plain)):
        wanted, masks = plain.target(row, fields=("masks",)).masks, areas[Path(plain.paths[row]).name]
        assert wanted is not None
        assert masks is not None
        for mask, whole in zip(masks, wanted, strict=True):
            if mask.any():  # a rectangle has none
                assert torch.equal(mask, whole)


def test_a_folder_above_is_recognised_as_the_folder_itself(made_folder: MadeFolder) -> None:
    folder = made_folder("voc", name="outer/VOC2007")
    found = recognise(folder.parent)
    assert found.layout.splits == {"all": [{"images": "VOC2007/JPEGImages", "annotations": "VOC2007/Annotations"}]}


def test_lists_of_voc_are_its_splits(made_folder: MadeFolder) -> None:
    folder = made_folder("voc")
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name, stems in (("trainval", ["photo0", "photo1.jpg"]), ("test", ["photo2"]), ("bolt_trainval", ["photo0 -1"])):
        (main / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    found = recognise(folder)
    assert {name: entries[0]["list"] for name, entries in found.layout.splits.items()} == {
        "train": "ImageSets/Main/trainval.txt",
        "test": "ImageSets/Main/test.txt",
    }
    assert len(read_all(found)) == 3


def test_of_two_coco_files_of_the_same_images_the_fuller_is_taken(made_folder: MadeFolder) -> None:
    folder = made_folder("coco")
    content = json.loads((folder / "labels.json").read_text())
    content["annotations"] = content["annotations"][:3]
    (folder / "a_few.json").write_text(json.dumps(content))
    found = recognise(folder)
    assert found.layout.splits == {"all": [{"annotations": "labels.json", "images": "images"}]}
    assert any("a_few.json" in note for note in found.layout.notes)


def test_names_of_coco_may_hold_folders_as_in_label_studio_s_export(
    made_folder: MadeFolder, made_boxes: MadeBoxes
) -> None:
    folder = made_folder("coco")
    content = json.loads((folder / "labels.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    (folder / "labels.json").unlink()
    (folder / "result.json").write_text(json.dumps(content))
    found = recognise(folder)
    assert found.layout.splits == {"all": [{"annotations": "result.json", "images": "."}]}
    assert objects_of(read_all(found)).keys() == made_boxes().keys()


def test_a_folder_of_two_formats_names_the_other_and_takes_it_on_request(made_folder: MadeFolder) -> None:
    folder = made_folder("voc_flat")
    shutil.copytree(made_folder("yolo_plain"), folder, dirs_exist_ok=True)
    assert (recognise(folder).format, recognise(folder).others) == ("yolo", ("voc",))
    assert (recognise(folder, format="voc").format, recognise(folder, format="voc").others) == ("voc", ("yolo",))
    with pytest.raises(ValueError, match="LabelMe"):
        recognise(folder, format="labelme")


def test_subsets_of_a_cvat_project_are_its_splits(made_folder: MadeFolder) -> None:
    folder = made_folder("cvat")
    file = folder / "annotations.xml"
    text = file.read_text()
    for number in range(12):
        subset = "Train" if number < 8 else "Validation"
        text = text.replace(f'name="photo{number}.jpg"', f'name="photo{number}.jpg" subset="{subset}"')
    file.write_text(text)
    found = recognise(folder)
    assert {name: entries[0]["subset"] for name, entries in found.layout.splits.items()} == {
        "train": "Train",
        "val": "Validation",
    }
    assert len(read_all(found)) == 12


@pytest.mark.parametrize("train", ["../train/images", "train/images", "./train/images"])
def test_paths_of_roboflow_s_data_yaml_are_found(made_folder: MadeFolder, train: str) -> None:
    made, folder = made_folder("yolo"), made_folder("yolo", name="robo")
    for split in ("train", "val"):
        for part in ("images", "labels"):
            shutil.move(folder / part / split, folder / split / part)
    (folder / "data.yaml").write_text(
        f"train: {train}\nval: {train.replace('train', 'val')}\nnc: 2\nnames: [bolt, nut]\n"
    )
    assert objects_of(read_all(recognise(folder))) == objects_of(read_all(recognise(made)))


def test_image_folders_are_recognised_with_their_splits(made_folder: MadeFolder, tmp_path: Path) -> None:
    photos = sorted(made_folder("csv").glob("photos/*.jpg"))
    for number, photo in enumerate(photos):
        target = tmp_path / "pets" / ("train" if number < 8 else "val") / ("cat" if number % 2 else "dog") / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, target)
    found = recognise(tmp_path / "pets")
    assert (found.format, dict(found.layout.splits)) == (
        "image_folder",
        {"train": [{"folder": "train"}], "val": [{"folder": "val"}]},
    )


@pytest.mark.parametrize("content", [{}, {"notes.txt": "hello\n", "a.json": "{}", "b.csv": "x;y\n1;2\n"}])
def test_a_folder_without_known_labels_is_refused_with_what_it_has(tmp_path: Path, content: dict[str, Any]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{len(content) and 1} .json"):
        recognise(tmp_path)


def test_hidden_files_and_broken_json_are_passed_over(made_folder: MadeFolder) -> None:
    folder = made_folder("labelme")
    (folder / "._photo0.json").write_bytes(b"\0\5\x16")
    (folder / ".cache").mkdir()
    (folder / "broken.json").write_text("{")
    assert recognise(folder).format == "labelme"


def test_panoptic_files_are_found_with_their_png_and_instances(tmp_path: Path) -> None:
    coco = write_digits(tmp_path, num_train=3, num_test=2) / "coco"
    entry = {
        "panoptic": "annotations/panoptic_train.json",
        "segments": "segments/train",
        "images": "train",
        "annotations": "annotations/instances_train.json",
    }
    found = recognise(coco)
    assert (found.format, "coco_panoptic" in found.others) == ("coco", True)
    assert "panoptic" not in str(found.layout)
    found = recognise(coco, format="coco_panoptic")
    assert found.layout.splits["train"] == [entry]
    for file in (coco / "annotations").glob("instances_*"):
        file.unlink()
    shutil.rmtree(coco / "labels")
    found = recognise(coco)
    assert found.format == "coco_panoptic"
    assert found.layout.splits["train"] == [{key: entry[key] for key in ("panoptic", "segments", "images")}]
    assert len(read_all(found, fields=("masks",))) == 5
