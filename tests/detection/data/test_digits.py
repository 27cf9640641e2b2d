"""Mirrors detection/data/digits.py."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from detection.data.cards import load_card, read_split
from detection.data.digits import CLASSES, KEYPOINTS, STUFF, DigitSource, Scene, draw_scene, load_sources, write_digits
from detection.data.index import AnnotationIndex
from detection.data.readers.coco import read_coco as read_coco_index
from detection.data.readers.voc import read_voc

DATASETS = Path(__file__).parents[3] / "datasets"
COUNTS = {"train": 12, "test": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("root"), num_train=COUNTS["train"], num_test=COUNTS["test"])


def read_coco(folder: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "coco" / "annotations" / f"instances_{split}.json"))


def voc_stems(folder: Path, split: str, task: str = "Main") -> list[str]:
    return (folder / "voc" / "ImageSets" / task / f"{split}.txt").read_text().split()


def voc_objects(folder: Path, stem: str) -> list[tuple[str, list[int]]]:
    """Class name and (xmin, ymin, xmax, ymax) as in the file: 1-based, last pixel inside."""
    root = ElementTree.parse(folder / "voc" / "Annotations" / f"{stem}.xml").getroot()
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [
        (item.findtext("name", ""), [int(item.findtext(f"bndbox/{corner}", "")) for corner in corners])
        for item in root.iterfind("object")
    ]


def tight_box(mask: NDArray[Any]) -> list[int]:
    """x1, y1, x2, y2 with width = x2 - x1."""
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.fixture
def source() -> DigitSource:
    return load_sources()[0]


# drawing


def test_boxes_and_masks_of_a_known_scene() -> None:
    objects = np.zeros((4, 6), np.uint8)
    objects[1, 2:5] = 1
    objects[2:4, 0] = 2
    scene = Scene(np.zeros((4, 6, 3), np.uint8), objects, (7, 3))
    assert scene.boxes.tolist() == [[2, 1, 5, 2], [0, 2, 1, 4]]
    assert scene.masks.sum(axis=(1, 2)).tolist() == [3, 2]


def test_a_scene_without_digits_has_empty_rows() -> None:
    scene = Scene(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8), ())
    assert scene.boxes.shape == (0, 4)
    assert scene.masks.shape == (0, 4, 6)


def test_scenes_keep_to_their_limits(source: DigitSource) -> None:
    for seed in range(20):
        scene = draw_scene(source, np.random.default_rng(seed))
        height, width = scene.objects.shape
        assert scene.image.shape == (height, width, 3)
        assert 128 <= min(height, width) <= max(height, width) <= 192
        assert 1 <= len(scene.labels) <= 6
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert 20 <= sides.max(axis=1).min() <= sides.max(axis=1).max() <= 80
        assert scene.boxes.min() >= 0
        assert (scene.boxes[:, 2:] <= (width, height)).all()


def test_digits_hardly_overlap(source: DigitSource) -> None:
    for seed in range(20):
        boxes = draw_scene(source, np.random.default_rng(seed)).boxes
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        shares = sides.clip(min=0).prod(axis=-1) / np.minimum(areas[:, None], areas[None])
        assert (shares[~np.eye(len(boxes), dtype=bool)] <= 0.1).all()


def test_digits_stand_out_from_what_surrounds_them(source: DigitSource) -> None:
    for seed in range(20):
        scene = draw_scene(source, np.random.default_rng(seed))
        luma = scene.image @ np.array([0.299, 0.587, 0.114])
        for mask in scene.masks:
            grown = mask.copy()
            for axis in (0, 1):
                for shift in (-2, 2):
                    grown |= np.roll(mask, shift, axis)
            ring = grown & (scene.objects == 0)
            assert abs(luma[mask].mean() - luma[ring].mean()) > 45


def test_train_and_test_digits_are_disjoint_and_cover_every_class() -> None:
    train, test = load_sources()
    assert len(train.digits) + len(test.digits) == 1797
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert not {digit.tobytes() for digit in train.digits} & {digit.tobytes() for digit in test.digits}


def test_a_missing_scikit_learn_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "resdet\[demo\]"'):
        load_sources()


# files


@pytest.mark.parametrize("split", COUNTS)
def test_both_layouts_hold_the_same_images_and_boxes(folder: Path, split: str) -> None:
    coco = read_coco(folder, split)
    assert voc_stems(folder, split) == voc_stems(folder, split, "Segmentation")
    assert len(coco.imgs) == len(voc_stems(folder, split)) == COUNTS[split]
    for image, stem in zip(coco.loadImgs(coco.getImgIds()), voc_stems(folder, split), strict=True):
        name = f"{stem}.jpg"
        assert image["file_name"] == name
        jpeg = (folder / "coco" / split / name).read_bytes()
        assert jpeg == (folder / "voc" / "JPEGImages" / name).read_bytes()
        with Image.open(io.BytesIO(jpeg)) as opened:
            assert (opened.width, opened.height) == (image["width"], image["height"])
        from_coco = []
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            x, y, width, height = annotation["bbox"]
            name = coco.cats[annotation["category_id"]]["name"]
            from_coco.append((name, [x + 1, y + 1, x + width, y + height]))
        assert voc_objects(folder, stem) == from_coco


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 on numpy 2
@pytest.mark.parametrize("split", COUNTS)
def test_pycocotools_reads_masks_that_agree_with_area_box_and_voc(folder: Path, split: str) -> None:
    coco = read_coco(folder, split)
    for image in coco.imgs.values():
        with Image.open(folder / "voc" / "SegmentationObject" / f"{image['id']:06d}.png") as opened:
            assert opened.mode == "P"
            objects = np.asarray(opened)
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert np.unique(objects).tolist() == list(range(len(annotations) + 1))
        for number, annotation in enumerate(annotations, start=1):
            mask = coco.annToMask(annotation)
            x, y, width, height = annotation["bbox"]
            assert mask.sum() == annotation["area"]
            assert tight_box(mask) == [x, y, x + width, y + height]
            np.testing.assert_array_equal(mask, objects == number)


def test_keypoints_are_the_ends_of_the_ink(folder: Path) -> None:
    content = json.loads((folder / "coco" / "annotations" / "instances_test.json").read_text())
    assert all(category["keypoints"] == list(KEYPOINTS) for category in content["categories"])
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        points = np.array(annotation["keypoints"]).reshape(4, 3)
        assert (points[:, 2] == 2).all()
        assert annotation["num_keypoints"] == 4
        (_, top), (_, bottom), (left, _), (right, _) = points[:, :2] + 0.5  # middles of pixels
        assert y <= top <= y + 0.1 * height + 1
        assert y + 0.9 * height - 1 <= bottom <= y + height
        assert x <= left <= x + 0.1 * width + 1
        assert x + 0.9 * width - 1 <= right <= x + width
        assert ((points[:, :2] + 0.5 >= [x, y]) & (points[:, :2] + 0.5 <= [x + width, y + height])).all()


def test_an_end_is_the_mean_of_the_outer_tenth() -> None:
    objects = np.zeros((30, 30), np.uint8)
    objects[5:25, 10] = 1  # a stroke of 20 pixels down, and one of 10 to the right at its foot
    objects[24, 10:20] = 1
    scene = Scene(np.zeros((30, 30, 3), np.uint8), objects, (1,))
    # The outer tenth is 2 of 20 rows, of which the lower has 10 pixels in the last row and 1 above; 1 of 10 columns.
    assert scene.keypoints.tolist() == [[[10, 5.5], [14.1, 23.9], [10, 14.5], [19, 24]]]


def test_the_palette_is_that_of_voc(folder: Path) -> None:
    with Image.open(folder / "voc" / "SegmentationObject" / "000001.png") as opened:
        palette = opened.getpalette()
    assert palette is not None
    assert palette[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]


def test_every_class_occurs_in_both_splits(folder: Path) -> None:
    for split in COUNTS:
        assert {name for stem in voc_stems(folder, split) for name, _ in voc_objects(folder, stem)} == set(CLASSES)


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_digits(tmp_path / "again", num_train=COUNTS["train"], num_test=COUNTS["test"])
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_another_seed_draws_other_images_and_more_images_keep_the_first(folder: Path, tmp_path: Path) -> None:
    image = Path("coco", "train", "000001.jpg")
    other = write_digits(tmp_path / "other", num_train=1, num_test=0, seed=1)
    fewer = write_digits(tmp_path / "fewer", num_train=1, num_test=0)
    assert (other / image).read_bytes() != (folder / image).read_bytes()
    assert (fewer / image).read_bytes() == (folder / image).read_bytes()
    empty = json.loads((fewer / "coco" / "annotations" / "instances_test.json").read_text())
    assert empty["images"] == empty["annotations"] == []
    assert voc_stems(fewer, "test") == []


def test_its_own_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    first = write_digits(tmp_path, num_train=2, num_test=1)
    second = write_digits(tmp_path, num_train=1, num_test=1)
    assert first == second == tmp_path / "digits"
    assert voc_stems(second, "train") == ["000001"]
    assert len(list((second / "voc" / "JPEGImages").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"digits was not made by resdet digits.*--root"):
        write_digits(tmp_path, num_train=1, num_test=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["digits", "mine.txt"]


def test_a_negative_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        write_digits(tmp_path, num_train=-1)


def test_the_cards_fit_the_files(folder: Path) -> None:
    coco_card = yaml.safe_load((DATASETS / "digits.yaml").read_text())
    voc_card = yaml.safe_load((DATASETS / "digits_voc.yaml").read_text())
    root = folder.parent
    assert coco_card["classes"] == voc_card["classes"] == list(CLASSES)
    assert coco_card["splits"].keys() == voc_card["splits"].keys() == COUNTS.keys()
    for split in COUNTS:
        entry = coco_card["splits"][split]
        assert (root / coco_card["root"] / entry["annotations"]).is_file()
        assert (root / coco_card["root"] / entry["images"]).is_dir()
        assert (root / voc_card["root"] / voc_card["splits"][split]["list"]).is_file()


@pytest.mark.parametrize("split", COUNTS)
def test_the_readers_find_the_same_masks_in_both_layouts(folder: Path, split: str) -> None:
    coco_entry = {"annotations": f"annotations/instances_{split}.json", "images": split}
    voc_entry = {"list": f"ImageSets/Main/{split}.txt", "instances": "SegmentationObject"}
    coco, problems = read_coco_index(folder / "coco", coco_entry, CLASSES, drop=False, exif="apply", fields=("masks",))
    voc, more = read_voc(folder / "voc", voc_entry, CLASSES, drop=False, exif="apply", fields=("masks",))
    assert problems == more == []
    assert len(coco) == COUNTS[split]
    for row in range(len(coco)):
        assert coco.stored("masks", row) == voc.stored("masks", row)
        masks = coco.target(row, fields=("masks",)).masks
        assert masks is not None
        assert masks.any(dim=(1, 2)).all()


def test_segments_are_the_digits_and_the_photograph(folder: Path) -> None:
    card = load_card("digits_panoptic")
    index, problems = read_split(
        replace(card, root=str(folder / "coco")), "train", folder, fields=("masks",), label_maps=True
    )
    assert not problems
    assert index.class_names == CLASSES
    maps = index.label_maps
    assert maps is not None
    assert maps.class_names[maps.num_things :] == STUFF
    masks = index.target(0, fields=("masks",)).masks
    segments = maps.read_segments(0, size_of(index, 0))
    assert masks is not None
    assert [(masks.numpy()[row] == (segments.ids == row + 1)).all() for row in range(len(masks))] == [True] * len(masks)
    assert (segments.ids > 0).all()
    assert {s.label for row in range(len(index)) for s in maps.read_segments(row, size_of(index, row)).found[-1:]} == {
        10,
        11,
    }


def size_of(index: AnnotationIndex, row: int) -> tuple[int, int]:
    height, width = index.sizes[row].tolist()
    return height, width
