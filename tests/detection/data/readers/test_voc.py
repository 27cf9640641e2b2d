"""Mirrors detection/data/readers/voc.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import ExifTags, Image
from torch import Tensor

from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.readers.voc import read_voc

MakeVOC = Callable[..., Path]
CLASSES = ("cat", "dog")
ENTRY = {"list": "ImageSets/Main/train.txt"}
CAT = ("cat", (1, 1, 10, 20), False)
DOG = ("dog", (5, 6, 5, 6), True)


def read(
    folder: Path, *, drop: bool = True, exif: Literal["apply", "ignore"] = "apply"
) -> tuple[AnnotationIndex, list[Problem]]:
    return read_voc(folder, ENTRY, CLASSES, drop=drop, exif=exif)


def only_problem(folder: Path) -> Problem:
    _, problems = read(folder)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# what is read


def test_a_known_box_counts_from_zero_and_its_width_is_its_number_of_pixels(make_voc: MakeVOC) -> None:
    index, problems = read(make_voc({"a": [CAT, DOG]}))
    # 1-based (1, 1)..(10, 20) with both ends inside: 10 columns and 20 rows from the corner.
    assert index.boxes.tolist() == [[0, 0, 10, 20], [4, 5, 5, 6]]
    assert index.areas.tolist() == [200, 1]
    assert index.labels.tolist() == [0, 1]
    assert index.ignore.tolist() == [False, True]
    assert problems == []


def test_a_box_of_the_whole_image_ends_at_its_size(make_voc: MakeVOC) -> None:
    index, problems = read(make_voc({"a": [("dog", (1, 1, 80, 60), False)]}))
    assert index.boxes.tolist() == [[0, 0, 80, 60]]
    assert problems == []


def test_images_come_in_the_order_of_the_list(make_voc: MakeVOC) -> None:
    folder = make_voc({"b": [CAT], "a": [], "grün": [CAT, DOG]} | {"c.d": [DOG]}, sizes={"c.d": (40, 30)})
    (folder / ENTRY["list"]).write_text("c.d\n\n  b  \na\n")
    index, problems = read(folder)
    assert problems == []
    assert [index.paths[row] for row in range(3)] == [
        str(folder / "JPEGImages" / name) for name in ("c.d.jpg", "b.jpg", "a.jpg")
    ]
    assert index.sizes.tolist() == [[40, 30], [60, 80], [60, 80]]
    assert index.image_ids.tolist() == [1, 2, 3]
    assert [len(index.target(row)) for row in range(3)] == [1, 1, 0]


def test_category_ids_count_from_one(make_voc: MakeVOC) -> None:
    assert read(make_voc({"a": []}))[0].category_ids == (1, 2)


def test_images_of_other_suffixes_are_found(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / "JPEGImages" / "a.jpg").rename(folder / "JPEGImages" / "a.PNG")
    assert read(folder)[0].paths[0].endswith("a.PNG")


def test_other_folders_may_be_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / "JPEGImages").rename(folder / "pictures")
    (folder / "Annotations").rename(folder / "xml")
    entry = {**ENTRY, "images": "pictures", "annotations": "xml"}
    index, problems = read_voc(folder, entry, CLASSES, drop=True, exif="apply")
    assert (len(index), problems) == (1, [])


def test_rows_of_a_class_list_that_say_absent_are_left_out(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG], "c": [CAT]})
    (folder / ENTRY["list"]).write_text("a  1\nb -1\nc  0\n")
    index, _ = read(folder)
    assert [Path(index.paths[row]).stem for row in range(len(index))] == ["a", "c"]


def test_an_annotation_without_flags_is_an_ordinary_object(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    edit(folder / "Annotations" / "a.xml", "<difficult>0</difficult>", "")
    assert read(folder)[0].ignore.tolist() == [False]


def test_the_parts_of_a_person_are_no_objects(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    edit(folder / "Annotations" / "a.xml", "</object>", part + "</object>")
    index, problems = read(folder)
    assert index.boxes.tolist() == [[0, 0, 10, 20]]
    assert problems == []


@pytest.mark.parametrize("missing", ["absent", "zero"])
def test_a_size_that_the_annotation_lacks_is_that_of_the_image(make_voc: MakeVOC, missing: str) -> None:
    folder = make_voc({"a": [CAT]}, sizes={"a": (50, 70)})
    file = folder / "Annotations" / "a.xml"
    if missing == "absent":
        edit(file, "<size><width>70</width><height>50</height><depth>3</depth></size>", "")
    else:
        edit(file, "<width>70</width><height>50</height>", "<width>0</width><height>0</height>")
    index, problems = read(folder)
    assert index.sizes.tolist() == [[50, 70]]
    assert problems == []


@pytest.mark.parametrize(("exif", "size"), [("apply", (70, 50)), ("ignore", (50, 70))])
def test_a_size_from_a_turned_photograph_is_that_of_the_pixels_that_are_read(
    make_voc: MakeVOC, exif: Literal["apply", "ignore"], size: tuple[int, int]
) -> None:
    folder = make_voc({"a": [CAT]}, sizes={"a": (50, 70)})
    edit(folder / "Annotations" / "a.xml", "<size><width>70</width><height>50</height><depth>3</depth></size>", "")
    path, tag = folder / "JPEGImages" / "a.jpg", Image.Exif()
    tag[ExifTags.Base.Orientation] = 6  # a quarter turn
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(path, exif=tag)
    index, _ = read(folder, exif=exif)
    assert tuple(index.sizes[0].tolist()) == size
    assert read_image(path, size=size, apply_exif=exif == "apply").shape[:2] == size


# what is wrong


def test_a_missing_image_is_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG]})
    (folder / "JPEGImages" / "a.jpg").unlink()
    problem = only_problem(folder)
    assert (problem.severity, problem.kind) == ("error", "missing image")
    assert problem.file == str(folder / "JPEGImages" / "a.jpg")
    assert str(folder / ENTRY["list"]) in problem.detail


def test_a_missing_annotation_is_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG]})
    (folder / "Annotations" / "a.xml").unlink()
    problem = only_problem(folder)
    assert (problem.severity, problem.kind) == ("error", "missing annotation")
    assert problem.file == str(folder / "Annotations" / "a.xml")


@pytest.mark.parametrize(
    "text",
    ["", "<annotation><object>", "no XML", "<a>\x00</a>", '<?xml version="1.0" encoding="klingon"?><annotation/>'],
    ids=["empty", "cut", "text", "null", "unknown encoding"],
)
def test_xml_that_does_not_parse_is_named(make_voc: MakeVOC, text: str) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG]})
    (folder / "Annotations" / "a.xml").write_text(text)
    problem = only_problem(folder)
    assert (problem.severity, problem.kind) == ("error", "XML that does not parse")
    assert problem.file == str(folder / "Annotations" / "a.xml")


def test_a_class_that_the_card_lacks_is_named_with_the_nearest(make_voc: MakeVOC) -> None:
    problem = only_problem(make_voc({"a": [CAT, ("dgo", (1, 1, 9, 9), False)]}))
    assert (problem.severity, problem.kind) == ("error", "class that the card lacks")
    assert problem.file.endswith("a.xml")
    assert problem.detail == "object 2, 'dgo'; did you mean 'dog'?"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<xmin>1</xmin>", ""),
        ("<xmin>1</xmin>", "<xmin/>"),
        ("<xmin>1</xmin>", "<xmin>one</xmin>"),
        ("<bndbox>", "<box>"),
        ("<difficult>0", "<difficult>maybe"),
    ],
)
def test_an_object_that_cannot_be_read_is_named(make_voc: MakeVOC, old: str, new: str) -> None:
    folder = make_voc({"a": [DOG, CAT]})
    edit(folder / "Annotations" / "a.xml", old, new)
    if new == "<box>":
        edit(folder / "Annotations" / "a.xml", "</bndbox>", "</box>")
    _, problems = read(folder)
    assert {(problem.severity, problem.kind) for problem in problems} == {("error", "object that can't be read")}
    assert problems[-1].file.endswith("a.xml")
    assert problems[-1].detail.startswith("object 2 (cat)")


@pytest.mark.parametrize("box", [("nan", 1, 9, 9), (20, 1, 9, 9), (200, 1, 300, 9)], ids=["nan", "swapped", "outside"])
def test_a_bad_box_is_dropped_or_an_error_and_names_the_object(make_voc: MakeVOC, box: tuple[object, ...]) -> None:
    folder = make_voc({"a": [CAT, ("dog", box, False)]})
    index, (dropped,) = read(folder)
    _, (error,) = read(folder, drop=False)
    assert index.labels.tolist() == [0]
    assert (dropped.severity, error.severity) == ("dropped", "error")
    assert dropped.detail.startswith("object 2 (dog), box")
    assert dropped.file == error.file == str(folder / "Annotations" / "a.xml")


def test_a_doubled_image_is_named_and_read_once(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG]})
    (folder / ENTRY["list"]).write_text("a\nb\na\n")
    index, (problem,) = read(folder)
    assert len(index) == 2
    assert (problem.severity, problem.kind, problem.detail) == ("error", "duplicate image", "'a'")
    assert problem.file == str(folder / ENTRY["list"])


@pytest.mark.parametrize("name", ["../a", "/etc/a", "sub/../../a", "..", "..\\a", ".hidden", "sub/.a"])
def test_a_name_that_leaves_the_folder_is_refused(make_voc: MakeVOC, name: str) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / ENTRY["list"]).write_text(f"a\n{name}\n")
    problem = only_problem(folder)
    assert (problem.severity, problem.kind) == ("error", "image name that leaves the folder")
    assert problem.detail.startswith(repr(name))


@pytest.mark.parametrize("size", [("-3", "80"), ("60", "wide"), ("60", "0"), ("60", "")])
def test_a_size_that_cannot_be_read_is_named(make_voc: MakeVOC, size: tuple[str, str]) -> None:
    folder = make_voc({"a": [CAT], "b": []})
    height, width = size
    edit(
        folder / "Annotations" / "a.xml",
        "<width>80</width><height>60</height>",
        f"<width>{width}</width><height>{height}</height>",
    )
    problem = only_problem(folder)
    assert (problem.severity, problem.kind) == ("error", "size that can't be read")
    assert problem.file.endswith("a.xml")


def test_a_missing_list_is_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / ENTRY["list"]).unlink()
    index, (problem,) = read(folder)
    assert len(index) == 0
    assert (problem.severity, problem.file) == ("error", str(folder / ENTRY["list"]))


def test_a_list_that_is_no_text_is_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / ENTRY["list"]).write_bytes(b"\xff\x00a\x81")
    assert only_problem(folder).kind == "split list can't be read"


def test_an_empty_list_gives_an_empty_index(make_voc: MakeVOC) -> None:
    folder = make_voc({})
    index, problems = read(folder)
    assert (len(index), problems) == (0, [])


@pytest.mark.parametrize("entry", [{"lst": "train.txt"}, {"list": 5}, {}])
def test_an_entry_that_is_no_voc_split_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="list"):
        read_voc(tmp_path, entry, CLASSES, drop=True, exif="apply")


# ImageNet's dialect: subfolders, running numbers, one list per class, WordNet ids, pixels from 0


def move_to(folder: Path, name: str, subfolder: str) -> None:
    for kind, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        target = folder / kind / subfolder
        target.mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{name}{suffix}").rename(target / f"{name}{suffix}")


def test_a_name_may_lead_into_subfolders(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG]})
    move_to(folder, "b", "n01/extra")
    (folder / ENTRY["list"]).write_text("n01/extra/b\na\n")
    index, problems = read(folder)
    assert problems == []
    assert [index.paths[row] for row in range(2)] == [
        str(folder / "JPEGImages" / "n01" / "extra" / "b.jpg"),
        str(folder / "JPEGImages" / "a.jpg"),
    ]


def test_an_image_missing_in_a_subfolder_is_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / ENTRY["list"]).write_text("a\nn01/b\n")
    problem = only_problem(folder)
    assert (problem.kind, problem.file) == ("missing image", str(folder / "JPEGImages" / "n01" / "b.jpg"))


def test_a_running_number_is_no_part_of_the_name(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG], "photo 7": [CAT]})
    (folder / ENTRY["list"]).write_text("a 1\nb 2\nphoto 7\n")
    index, problems = read(folder)
    assert problems == []
    assert [Path(index.paths[row]).stem for row in range(3)] == ["a", "b", "photo 7"]


def test_lists_of_a_pattern_are_joined_and_may_share_images(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG], "c": [CAT]})
    for number, text in enumerate(("a 1\nb -1\n", "a 1\nc 0\n", "b 1\n"), start=1):
        (folder / "ImageSets" / "Main" / f"train_{number}.txt").write_text(text)
    index, problems = read_voc(folder, {"list": "ImageSets/Main/train_*.txt"}, CLASSES, drop=True, exif="apply")
    assert problems == []
    assert [Path(index.paths[row]).stem for row in range(len(index))] == ["a", "c", "b"]


def test_a_pattern_without_files_is_named(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    index, (problem,) = read_voc(folder, {"list": "ImageSets/Main/val_*.txt"}, CLASSES, drop=True, exif="apply")
    assert (len(index), problem.kind) == (0, "split list can't be read")
    assert problem.file == str(folder / "ImageSets" / "Main" / "val_*.txt")


def test_other_names_lead_to_classes(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [("n02121808", (1, 1, 10, 20), False), DOG]})
    names = {"n02121808": "cat"}
    index, problems = read_voc(folder, ENTRY, CLASSES, drop=True, exif="apply", names=names)
    assert (index.labels.tolist(), problems) == ([0, 1], [])


def test_pixels_may_count_from_zero(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [("cat", (0, 0, 79, 59), False)]})
    index, problems = read_voc(folder, ENTRY | {"first_pixel": 0}, CLASSES, drop=True, exif="apply")
    assert (index.boxes.tolist(), problems) == ([[0, 0, 80, 60]], [])
    with pytest.raises(ValueError, match="first_pixel is 0 or 1, got 2"):
        read_voc(folder, ENTRY | {"first_pixel": 2}, CLASSES, drop=True, exif="apply")


# masks

WITH_MASKS = {**ENTRY, "instances": "SegmentationObject"}


def masks_of(index: AnnotationIndex, row: int) -> Tensor:
    masks = index.target(row, masks=True).masks
    assert masks is not None
    return masks


def test_masks_are_read_on_request_where_the_split_names_their_folder(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT, ("dog", (31, 31, 50, 40), False)], "b": [("dog", (41, 11, 60, 20), False)], "c": []})
    numbers = np.zeros((60, 80), np.uint8)
    numbers[2:20, :10], numbers[30:40, 30:50] = 2, 1  # not in the order of the objects
    (folder / "SegmentationObject").mkdir()
    Image.fromarray(numbers).save(folder / "SegmentationObject" / "a.png")
    index, problems = read_voc(folder, WITH_MASKS, CLASSES, drop=True, exif="apply", masks=True)
    np.testing.assert_array_equal(masks_of(index, 0), [numbers == 2, numbers == 1])
    (problem,) = problems  # b has no masks
    assert (problem.severity, problem.file) == ("dropped", str(folder / "Annotations" / "b.xml"))
    assert problem.detail == "object 1 (dog): segmentation is None, expected polygons or an RLE"
    assert [bool(masks_of(index, row).any()) for row in (1, 2)] == [False, False]
    for entry, wanted in ((ENTRY, True), (WITH_MASKS, False)):
        index, problems = read_voc(folder, entry, CLASSES, drop=True, exif="apply", masks=wanted)
        assert (index.masks, problems) == (None, [])


def test_a_mask_stays_with_its_object_when_another_is_dropped(make_voc: MakeVOC) -> None:
    outside = ("cat", (200, 1, 210, 20), False)
    folder = make_voc({"a": [outside, CAT], "b": [outside, ("dog", (31, 31, 50, 40), False)]})
    (folder / "SegmentationObject").mkdir()
    for stem, box in (("a", (slice(20), slice(10))), ("b", (slice(30, 40), slice(30, 50)))):
        numbers = np.zeros((60, 80), np.uint8)
        numbers[box] = 1
        Image.fromarray(numbers).save(folder / "SegmentationObject" / f"{stem}.png")
    index, problems = read_voc(folder, WITH_MASKS, CLASSES, drop=True, exif="apply", masks=True)
    assert [problem.kind for problem in problems] == ["box outside the image or without area"] * 2
    assert [int(masks_of(index, row).sum()) for row in (0, 1)] == [200, 200]
