"""Mirrors data/recognise.py and data/layouts.py, over the readers: the same objects come out of every format."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.data.cards import Card, read_split, with_classes_of_data
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.data.recognise import recognise

# How it is written -> format; all is one split, but for those named below.
FORMATS = {"voc": "voc", "voc_flat": "voc", "coco": "coco", "roboflow": "coco", "yolo": "yolo", "yolo_polygons": "yolo"}
FORMATS |= {"yolo_plain": "yolo", "labelme": "labelme", "cvat": "cvat", "label_studio": "label_studio"}
FORMATS |= {"label_studio_full": "label_studio", "open_images": "open_images", "csv": "csv"}
FORMATS |= {"csv_without_header": "csv"}
SPLITS = {"roboflow": {"train", "val", "test"}, "yolo": {"train", "val"}, "yolo_polygons": {"train", "val"}}


def read_all(found, *, fields=()):
    """All splits of a folder, through a card as init writes it; there must be no problem."""
    card = Card(name="made", format=found.format, root=str(found.folder), splits=dict(found.layout.splits))
    card, parts = with_classes_of_data(card, Path()), []
    for split in card.splits:
        index, problems = read_split(card, split, Path(), fields=fields)
        assert fields or problems == []  # objects without a mask are told, where masks are read
        parts.append(index)
    return AnnotationIndex.concatenate(parts)


def objects_of(index):
    """File name -> class and box of each object."""
    targets = {Path(path).name: index.target(row) for row, path in enumerate(index.paths.all())}
    pairs = {name: zip(own.labels, own.boxes.tolist(), strict=True) for name, own in targets.items()}
    return {name: [(index.class_names[label], tuple(box)) for label, box in own] for name, own in pairs.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_recognised_and_keeps_every_box(made_folder, made_boxes, kind) -> None:
    found = recognise(made_folder(kind))
    assert (found.format, set(found.layout.splits), found.others) == (FORMATS[kind], SPLITS.get(kind, {"all"}), ())
    assert str(found.folder) in found.lines[0]
    # OpenImages has a row per box only, so no empty images.
    expected = {name: own for name, own in made_boxes().items() if own or kind != "open_images"}
    index = read_all(found)
    read = objects_of(index)
    assert (index.class_names, read.keys()) == (("bolt", "nut"), expected.keys())
    for name, objects in expected.items():
        assert [label for label, _ in read[name]] == [label for label, _ in objects]
        for (_, box), (_, wanted) in zip(read[name], objects, strict=True):
            assert box == pytest.approx(wanted, abs=0.01), name


def masks_of(folder) -> dict[str, Any]:
    index = read_all(recognise(folder), fields=("masks",))
    return {Path(path).name: index.target(row, fields=("masks",)).masks for row, path in enumerate(index.paths.all())}


def test_polygons_become_the_same_masks_in_every_format(made_folder) -> None:
    expected = masks_of(made_folder("coco"))
    for kind in ("yolo_polygons", "labelme", "cvat", "label_studio"):
        found = masks_of(made_folder(kind))
        assert found.keys() == expected.keys()
        assert sum(int(mask.any()) for masks in found.values() for mask in masks) > 5
        for name, masks in found.items():
            for mask, whole in zip(masks, expected[name], strict=True):
                assert not mask.any() or torch.equal(mask, whole)  # a rectangle has none


def test_folders_and_lists_of_voc(made_folder) -> None:
    folder = made_folder("voc", name="outer/VOC2007")
    entry = {"images": "VOC2007/JPEGImages", "annotations": "VOC2007/Annotations"}
    assert recognise(folder.parent).layout.splits == {"all": [entry]}
    main = folder / "ImageSets/Main"
    main.mkdir(parents=True)
    for name, text in (("trainval", "photo0\nphoto1.jpg\n"), ("test", "photo2\n"), ("bolt_trainval", "photo0 -1\n")):
        (main / f"{name}.txt").write_text(text)
    found = recognise(folder)
    lists = {name: entries[0]["list"] for name, entries in found.layout.splits.items()}
    assert lists == {"train": "ImageSets/Main/trainval.txt", "test": "ImageSets/Main/test.txt"}
    assert len(read_all(found)) == 3


def test_coco_files_of_the_same_images_and_names_with_folders(made_folder, made_boxes, edit_json) -> None:
    folder = made_folder("coco")
    shutil.copy(folder / "labels.json", folder / "a_few.json")
    edit_json(folder / "a_few.json", lambda content: content.update(annotations=content["annotations"][:3]))
    found = recognise(folder)  # the fuller file
    assert found.layout.splits == {"all": [{"annotations": "labels.json", "images": "images"}]}
    assert any("a_few.json" in note for note in found.layout.notes)
    (folder / "a_few.json").unlink()
    content = json.loads((folder / "labels.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    (folder / "labels.json").unlink()
    (folder / "result.json").write_text(json.dumps(content))  # as Label Studio exports it
    found = recognise(folder)
    assert found.layout.splits == {"all": [{"annotations": "result.json", "images": "."}]}
    assert objects_of(read_all(found)).keys() == made_boxes().keys()


def test_a_folder_of_two_formats_names_the_other_and_takes_it_on_request(made_folder) -> None:
    folder = made_folder("voc_flat")
    shutil.copytree(made_folder("yolo_plain"), folder, dirs_exist_ok=True)
    assert (recognise(folder).format, recognise(folder).others) == ("yolo", ("voc",))
    assert (recognise(folder, format="voc").format, recognise(folder, format="voc").others) == ("voc", ("yolo",))
    with pytest.raises(ValueError, match="LabelMe"):
        recognise(folder, format="labelme")


def test_subsets_of_a_cvat_project_are_its_splits(made_folder) -> None:
    file = made_folder("cvat") / "annotations.xml"
    text = file.read_text()
    for number in range(12):
        subset = "Train" if number < 8 else "Validation"
        text = text.replace(f'name="photo{number}.jpg"', f'name="photo{number}.jpg" subset="{subset}"')
    file.write_text(text)
    found = recognise(file.parent)
    subsets = {name: entries[0]["subset"] for name, entries in found.layout.splits.items()}
    assert (subsets, len(read_all(found))) == ({"train": "Train", "val": "Validation"}, 12)


def test_paths_of_roboflow_s_data_yaml_are_found(made_folder) -> None:
    made, folder = made_folder("yolo"), made_folder("yolo", name="robo")
    for split in ("train", "val"):
        for part in ("images", "labels"):
            shutil.move(folder / part / split, folder / split / part)
    for start in ("../", "", "./"):
        paths = f"train: {start}train/images\nval: {start}val/images\n"
        (folder / "data.yaml").write_text(f"{paths}nc: 2\nnames: [bolt, nut]\n")
        assert objects_of(read_all(recognise(folder))) == objects_of(read_all(recognise(made)))


def test_image_folders_are_known_and_other_files_refused_or_passed_over(made_folder, draw, tmp_path) -> None:
    for split in ("train", "val"):
        for name in ("cat/a.jpg", "cat/b.jpg", "dog/a.jpg", "dog/b.jpg"):
            draw(tmp_path / "pets" / split / name)
    found = recognise(tmp_path / "pets")
    splits = {"train": [{"folder": "train"}], "val": [{"folder": "val"}]}
    assert (found.format, dict(found.layout.splits)) == ("image_folder", splits)
    (tmp_path / "none").mkdir()
    for files in ({}, {"notes.txt": "hello\n", "a.json": "{}", "b.csv": "x;y\n1;2\n"}):
        for name, text in files.items():
            (tmp_path / "none" / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{len(files) and 1} \.json"):
            recognise(tmp_path / "none")
    folder = made_folder("labelme")
    (folder / "._photo0.json").write_bytes(b"\0\5\x16")
    (folder / ".cache").mkdir()
    (folder / "broken.json").write_text("{")
    assert recognise(folder).format == "labelme"


def test_panoptic_files_are_found_with_their_png_and_instances(tmp_path) -> None:
    coco = write_digits(tmp_path, num_train=3, num_test=2) / "coco"
    entry = {"panoptic": "annotations/panoptic_train.json", "segments": "segments/train", "images": "train"}
    found = recognise(coco)
    assert (found.format, "coco_panoptic" in found.others, "panoptic" in str(found.layout)) == ("coco", True, False)
    found = recognise(coco, format="coco_panoptic")
    assert found.layout.splits["train"] == [entry | {"annotations": "annotations/instances_train.json"}]
    for file in (coco / "annotations").glob("instances_*"):
        file.unlink()
    shutil.rmtree(coco / "labels")
    found = recognise(coco)
    assert (found.format, found.layout.splits["train"]) == ("coco_panoptic", [entry])
    assert len(read_all(found, fields=("masks",))) == 5
