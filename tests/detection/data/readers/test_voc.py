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
    errors = [problem for problem in problems if problem.severity == "error"]
    assert {problem.kind for problem in errors} == {"object that can't be read"}
    assert errors[-1].file.endswith("a.xml")
    assert errors[-1].detail.startswith("object 2 (cat)")


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


@pytest.mark.parametrize("entry", [{"lst": "train.txt"}, {"list": 5}])
def test_an_entry_that_is_no_voc_split_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="list"):
        read_voc(tmp_path, entry, CLASSES, drop=True, exif="apply")


# what other tools write


@pytest.mark.parametrize(
    ("text", "difficult"),
    [
        ("False", False),
        ("true", True),
        ("0.0", False),
        ("1.0", True),
        (" 1 ", True),
        ("", False),
        ("Unspecified", False),
    ],
)
def test_difficult_may_be_text(make_voc: MakeVOC, text: str, difficult: bool) -> None:
    folder = make_voc({"a": [CAT, CAT]})
    edit(folder / "Annotations" / "a.xml", "<difficult>0", f"<difficult>{text}")
    index, problems = read(folder)
    assert index.ignore.tolist() == [difficult] * 2
    assert [(problem.severity, problem.detail) for problem in problems] == (
        [("note", "difficult is 'Unspecified' (2 times; this file is the first)")] if text == "Unspecified" else []
    )


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        ("<difficult>0", "<difficult>maybe", "object 1 (cat): difficult is 'maybe', expected 0 or 1"),
        ("<xmin>1<", "<xmin>one<", "object 1 (cat): bndbox/xmin is 'one', expected a number"),
        ("<xmin>1<", "<xmin>1_0<", "object 1 (cat): bndbox/xmin is '1_0', expected a number"),
        ("<xmin>1<", "<xmin><", "object 1 (cat): bndbox/xmin is '', expected a number"),
        ("<xmin>1</xmin>", "", "object 1 (cat): bndbox/xmin is missing, expected a number"),
        ("<xmin>1</xmin>", "<Xmin>1</Xmin>", "object 1 (cat): xmin is missing, expected that spelling; it has <Xmin>"),
        ("<name>cat</name>", "<Name>cat</Name>", "object 1 (without a name): name is missing, expected a class"),
        ("<difficult>0</difficult>", "<Difficult>1</Difficult>", "it has <Difficult>"),
    ],
)
def test_an_element_with_another_value_or_spelling_is_named(make_voc: MakeVOC, old: str, new: str, detail: str) -> None:
    folder = make_voc({"a": [CAT]})
    edit(folder / "Annotations" / "a.xml", old, new)
    problem = only_problem(folder)
    assert (problem.severity, problem.file) == ("error", str(folder / "Annotations" / "a.xml"))
    assert detail in problem.detail


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('<annotations><image id="0"><box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/></image></annotations>', "CVAT"),
        ('<annotation xmlns="http://example.org/voc"><object/></annotation>', "{http://example.org/voc}annotation"),
        ("<Annotation><object/></Annotation>", "<Annotation>"),
        ("<annotation><Object><name>cat</name></Object></annotation>", "<Object>"),
        ("<annotation><objects/></annotation>", "<objects>"),
        ('<annotation><things><thing x="1"/></things></annotation>', "<things>"),
        ('<annotation><thing x="1"/></annotation>', "<thing>"),
        ("<annotation><polygon/><box/><object><name>cat</name></object></annotation>", "<box>"),
        ("<html><body>Not found</body></html>", "<html>"),
    ],
)
def test_xml_of_another_kind_is_refused(make_voc: MakeVOC, text: str, named: str) -> None:
    folder = make_voc({"a": [CAT]})
    (folder / "Annotations" / "a.xml").write_text(text)
    _, problems = read(folder)
    errors = [problem for problem in problems if "isn't VOC's" in problem.kind]
    assert [(problem.severity, problem.file) for problem in errors] == [
        ("error", str(folder / "Annotations" / "a.xml"))
    ]
    assert named in errors[0].detail


def test_further_elements_are_said_once(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG]})
    for stem in "ab":
        edit(
            folder / "Annotations" / f"{stem}.xml", "<size>", "<weather>fine</weather><camera><id>3</id></camera><size>"
        )
    index, problems = read(folder)
    assert index.labels.tolist() == [0, 1]
    assert {problem.severity for problem in problems} == {"note"}
    assert sorted(problem.detail for problem in problems) == [
        "<camera> in <annotation> (2 times; this file is the first)",
        "<weather> in <annotation> (2 times; this file is the first)",
    ]


def test_boxes_that_start_at_zero_get_a_hint(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [("cat", (0, 3, 79, 59), False)], "b": [("cat", (4, 0, 9, 9), False), CAT]})
    _, (problem,) = read(folder)
    assert (problem.severity, problem.kind) == ("note", "box that starts at pixel 0")
    assert "first_pixel: 0" in problem.detail
    assert "(2 times" in problem.detail
    assert read_voc(folder, ENTRY | {"first_pixel": 0}, CLASSES, drop=True, exif="apply")[1] == []


def test_boxes_that_end_behind_the_last_pixel_get_the_other_hint(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [("cat", (1, 1, 80, 60), False)]})
    _, (problem,) = read_voc(folder, ENTRY | {"first_pixel": 0}, CLASSES, drop=True, exif="apply")
    assert (problem.severity, problem.kind) == ("note", "box that ends behind the last pixel")
    assert "leave `first_pixel: 0` out" in problem.detail


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "utf-16", "iso-8859-1", "utf-8-sig"])
def test_xml_of_other_encodings_is_read(make_voc: MakeVOC, encoding: str) -> None:
    name, declared = ("Käse" if encoding == "iso-8859-1" else "猫"), encoding.removesuffix("-sig")
    folder = make_voc({"a": [("cat", (1, 1, 10, 20), False)]})
    file = folder / "Annotations" / "a.xml"
    text = f'<?xml version="1.0" encoding="{declared}"?>' + file.read_text().replace("cat", name)
    file.write_bytes(text.encode(encoding))
    index, problems = read_voc(folder, ENTRY, (name,), drop=True, exif="apply")
    assert (index.labels.tolist(), problems) == ([0], [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb2312"])
def test_lists_of_other_encodings_are_read(make_voc: MakeVOC, encoding: str) -> None:
    folder = make_voc({"猫": [CAT], "b": [DOG]})
    (folder / ENTRY["list"]).write_bytes("猫 1\r\nb -1\r\n".encode(encoding))
    index, problems = read(folder)
    assert ([Path(index.paths[row]).stem for row in range(len(index))], problems) == (["猫"], [])


@pytest.mark.parametrize("name", ["JPEGImages/a", "A", "sub\\a", "/data/JPEGImages/a.jpg"])
def test_a_listed_name_that_means_another_file_gets_a_hint(make_voc: MakeVOC, name: str) -> None:
    folder = make_voc({"a": [CAT], "b": [CAT]})
    (folder / ENTRY["list"]).write_text(f"b\n{name}\n")
    assert "'a.jpg' is there" in only_problem(folder).detail


def test_an_annotation_of_another_case_gets_a_hint(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT], "b": [CAT]})
    (folder / "Annotations" / "a.xml").rename(folder / "Annotations" / "A.XML")
    problem = only_problem(folder)
    assert problem.kind == "missing annotation"
    assert "'A.XML' is there" in problem.detail


def test_images_without_any_annotation_have_no_ground_truth(make_voc: MakeVOC) -> None:
    folder = make_voc({"b": [CAT], "a": [CAT]}, sizes={"a": (40, 30)})
    assert read(folder)[0].has_ground_truth
    for stem in "ab":
        (folder / "Annotations" / f"{stem}.xml").unlink()
    index, (problem,) = read(folder)
    assert (index.has_ground_truth, index.sizes.tolist(), len(index.boxes)) == (False, [[60, 80], [40, 30]], 0)
    assert (problem.severity, problem.kind) == ("note", "no ground truth")
    assert str(folder / "Annotations") in problem.detail


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


PARTIAL = {"list": "ImageSets/Main/train_*.txt", "first_pixel": 0}


def write_partial(make_voc: MakeVOC) -> Path:
    """Image a is positive for a class, b and c are partial; c has no annotation."""
    folder = make_voc({"a": [CAT], "b": [DOG], "c": [CAT]})
    for number, text in enumerate(("a 0\nb 0\n", "a 1\nc 0\n"), start=1):
        (folder / "ImageSets" / "Main" / f"train_{number}.txt").write_text(text)
    (folder / "Annotations" / "c.xml").unlink()
    return folder


def test_partial_images_are_trained_and_counted(make_voc: MakeVOC) -> None:
    folder = write_partial(make_voc)
    index, problems = read_voc(folder, {**PARTIAL, "partial": "train"}, CLASSES, drop=True, exif="apply")
    assert [Path(index.paths[row]).stem for row in range(len(index))] == ["a", "b"]
    assert [(problem.severity, problem.detail.partition(" images")[0]) for problem in problems] == [
        ("note", "2"),
        ("dropped", "1"),
    ]


def test_partial_images_may_be_left_out(make_voc: MakeVOC) -> None:
    folder = write_partial(make_voc)
    index, (problem,) = read_voc(folder, {**PARTIAL, "partial": "drop"}, CLASSES, drop=True, exif="apply")
    assert [Path(index.paths[row]).stem for row in range(len(index))] == ["a"]
    assert (problem.severity, problem.detail) == ("dropped", "2 images that the lists give a 0: left out")
    with pytest.raises(ValueError, match="partial"):
        read_voc(folder, {**PARTIAL, "partial": "maybe"}, CLASSES, drop=True, exif="apply")


def test_without_that_key_a_missing_annotation_is_an_error(make_voc: MakeVOC) -> None:
    folder = write_partial(make_voc)
    _, (problem,) = read_voc(folder, PARTIAL, CLASSES, drop=True, exif="apply")
    assert (problem.severity, problem.kind) == ("error", "missing annotation")


def test_images_and_classes_on_the_blacklist_are_not_judged(make_voc: MakeVOC) -> None:
    dog = ("dog", (31, 31, 50, 40), False)
    folder = make_voc({"a": [CAT], "b": [dog, CAT], "c": [("n02121808", (1, 1, 10, 20), False)]})
    (folder / ENTRY["list"]).write_text("a 1\nb 2\nc 3\n")
    (folder / "images.txt").write_text("1\n7\n")
    (folder / "classes.txt").write_text("2 cat\n3 n02121808\n1 dog\n9 zebra\n")
    names = {"n02121808": "cat"}
    whole, (dropped,) = read_voc(
        folder, {**ENTRY, "blacklist": "images.txt"}, CLASSES, drop=True, exif="apply", names=names
    )
    assert [Path(whole.paths[row]).stem for row in range(len(whole))] == ["b", "c"]
    assert (dropped.severity, dropped.detail) == ("dropped", "1 image")
    index, (note,) = read_voc(
        folder, {**ENTRY, "blacklist": "classes.txt"}, CLASSES, drop=True, exif="apply", names=names
    )
    assert index.ignore.tolist() == [False, False, True, True]
    assert index.unjudged.tolist() == [[0, 1], [1, 0], [2, 0]]
    assert note.detail.startswith("4 pairs")


def test_a_missing_blacklist_says_that_figures_are_others(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]})
    entry = {**ENTRY, "blacklist": "devkit/data/blacklist.txt"}
    _, (problem,) = read_voc(folder, entry, CLASSES, drop=True, exif="apply")
    assert (problem.severity, problem.file) == ("note", str(folder / "devkit" / "data" / "blacklist.txt"))
    assert "not the challenge's" in problem.detail


@pytest.mark.parametrize("size", [(120, 160), (30, 40)])
def test_boxes_are_scaled_to_an_image_of_another_resolution(make_voc: MakeVOC, size: tuple[int, int]) -> None:
    folder = make_voc({"a": [CAT, DOG]}, sizes={"a": size})
    text = f"<width>{size[1]}</width><height>{size[0]}</height>"
    edit(folder / "Annotations" / "a.xml", text, "<width>80</width><height>60</height>")
    index, (problem,) = read_voc(folder, ENTRY, CLASSES, drop=True, exif="apply", other_size="scale")
    plain, _ = read(folder)
    factor = size[0] / 60
    assert (index.boxes.tolist(), index.sizes.tolist()) == ((factor * plain.boxes).tolist(), [list(size)])
    assert (problem.severity, problem.detail) == ("note", "1 image")


def test_an_image_of_other_proportions_is_not_scaled_to(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT]}, sizes={"a": (100, 80)})
    edit(folder / "Annotations" / "a.xml", "<height>100</height>", "<height>60</height>")
    index, problems = read_voc(folder, ENTRY, CLASSES, drop=True, exif="apply", other_size="scale")
    assert (index.sizes.tolist(), problems) == ([[60, 80]], [])
    with pytest.raises(ValueError, match="its annotation says 80x60"):
        index.image(0)


@pytest.mark.parametrize(("annotated", "turned"), [((50, 70), False), ((70, 50), True)])
def test_photographs_are_turned_as_their_annotated_size_says(
    make_voc: MakeVOC, annotated: tuple[int, int], turned: bool
) -> None:
    folder, tag = make_voc({"a": [CAT]}, sizes={"a": annotated}), Image.Exif()
    tag[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(folder / "JPEGImages" / "a.jpg", exif=tag)
    index, problems = read_voc(folder, ENTRY, CLASSES, drop=True, exif="by_size")
    assert index.apply_exif.tolist() == [turned]
    assert index.image(0).shape == (*annotated, 3)
    assert [problem.detail for problem in problems] == ([] if turned else ["1 image"])


# masks

WITH_MASKS = {**ENTRY, "instances": "SegmentationObject"}


def masks_of(index: AnnotationIndex, row: int) -> Tensor:
    masks = index.target(row, fields=("masks",)).masks
    assert masks is not None
    return masks


def test_masks_are_read_on_request_where_the_split_names_their_folder(make_voc: MakeVOC) -> None:
    folder = make_voc({"a": [CAT, ("dog", (31, 31, 50, 40), False)], "b": [("dog", (41, 11, 60, 20), False)], "c": []})
    numbers = np.zeros((60, 80), np.uint8)
    numbers[2:20, :10], numbers[30:40, 30:50] = 2, 1  # not in the order of the objects
    (folder / "SegmentationObject").mkdir()
    Image.fromarray(numbers).save(folder / "SegmentationObject" / "a.png")
    index, problems = read_voc(folder, WITH_MASKS, CLASSES, drop=True, exif="apply", fields=("masks",))
    np.testing.assert_array_equal(masks_of(index, 0), [numbers == 2, numbers == 1])
    (problem,) = problems  # b has no masks
    assert (problem.severity, problem.file) == ("dropped", str(folder / "Annotations" / "b.xml"))
    assert problem.detail == "object 1 (dog): segmentation is None, expected polygons or an RLE"
    assert [bool(masks_of(index, row).any()) for row in (1, 2)] == [False, False]
    for entry, wanted in ((ENTRY, ("masks",)), (WITH_MASKS, ())):
        index, problems = read_voc(folder, entry, CLASSES, drop=True, exif="apply", fields=wanted)
        assert (index.fields, problems) == ({}, [])


def test_a_mask_stays_with_its_object_when_another_is_dropped(make_voc: MakeVOC) -> None:
    outside = ("cat", (200, 1, 210, 20), False)
    folder = make_voc({"a": [outside, CAT], "b": [outside, ("dog", (31, 31, 50, 40), False)]})
    (folder / "SegmentationObject").mkdir()
    for stem, box in (("a", (slice(20), slice(10))), ("b", (slice(30, 40), slice(30, 50)))):
        numbers = np.zeros((60, 80), np.uint8)
        numbers[box] = 1
        Image.fromarray(numbers).save(folder / "SegmentationObject" / f"{stem}.png")
    index, problems = read_voc(folder, WITH_MASKS, CLASSES, drop=True, exif="apply", fields=("masks",))
    assert [problem.kind for problem in problems] == ["box outside the image or without area"] * 2
    assert [int(masks_of(index, row).sum()) for row in (0, 1)] == [200, 200]
