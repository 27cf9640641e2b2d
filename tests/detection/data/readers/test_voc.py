"""Mirrors detection/data/readers/voc.py, voc_list.py and voc_xml.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.images import read_image
from detection.data.readers.voc import read_voc

CLASSES = ("cat", "dog")
LIST, IMAGE, XML = "ImageSets/Main/train.txt", "JPEGImages/a.jpg", "Annotations/a.xml"
CAT, DOG = ("cat", (1, 1, 10, 20), False), ("dog", (5, 6, 5, 6), True)
BIG_DOG, OUTSIDE, WORDNET = ("dog", (31, 31, 50, 40), False), ("cat", (200, 1, 210, 20), False), "n02121808"


def read(folder, entry=None, classes=CLASSES, *, drop=True, exif: Any = "apply", **options):
    return read_voc(folder, {"list": LIST, **(entry or {})}, classes, drop=drop, exif=exif, **options)


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def stems(index):
    return [Path(path).stem for path in index.paths.all()]


def kinds(problems):
    return [(problem.severity, problem.kind) for problem in problems]


def test_pixels_count_from_one_and_both_ends_are_inside(make_voc) -> None:
    folder = make_voc({"b": [CAT, DOG], "a": [], "c.d": [("dog", (1, 1, 40, 30), False)]}, sizes={"c.d": (30, 40)})
    (folder / LIST).write_text("c.d\n\n  b  \na\n")
    index, problems = read(folder)
    assert problems == []
    assert index.boxes.tolist() == [[0, 0, 40, 30], [0, 0, 10, 20], [4, 5, 5, 6]]
    assert (index.areas.tolist(), index.labels.tolist()) == ([1200, 200, 1], [1, 0, 1])
    assert (index.ignore.tolist(), index.ends.tolist()) == ([False, False, True], [1, 3, 3])
    assert list(index.paths.all()) == [str(folder / "JPEGImages" / name) for name in ("c.d.jpg", "b.jpg", "a.jpg")]
    assert index.sizes.tolist() == [[30, 40], [60, 80], [60, 80]]
    assert (index.image_ids.tolist(), index.category_ids) == ([1, 2, 3], (1, 2))


def test_other_folders_suffixes_and_elements_are_read(make_voc) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG], "c": [CAT]})
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    edit(folder / XML, "</object>", part + "</object>")  # the parts of a person are no objects
    edit(folder / XML, "<difficult>0</difficult>", "")
    (folder / IMAGE).rename(folder / "JPEGImages/a.PNG")
    (folder / LIST).write_text("a  1\nb -1\nc  0\n")  # b has no object of the list's class
    for old, new in (("JPEGImages", "pictures"), ("Annotations", "xml")):
        (folder / old).rename(folder / new)
    index, problems = read(folder, {"images": "pictures", "annotations": "xml"})
    assert (stems(index), index.paths[0][-6:], problems) == (["a", "c"], "/a.PNG", [])
    assert (index.boxes.tolist(), index.ignore.tolist()) == ([[0, 0, 10, 20]] * 2, [False, False])
    assert len(read(make_voc({}, folder="none"))[0]) == 0


@pytest.mark.parametrize(("exif", "size"), [("apply", (70, 50)), ("ignore", (50, 70))])
def test_a_size_that_the_annotation_lacks_is_that_of_the_pixels(make_voc, draw, exif, size) -> None:
    folder = make_voc({"a": [CAT], "b": [CAT]}, sizes={"a": (50, 70), "b": (20, 30)})
    edit(folder / XML, "<size><width>70</width><height>50</height><depth>3</depth></size>", "")
    edit(folder / "Annotations/b.xml", "<width>30</width><height>20<", "<width>0</width><height>0<")
    draw(folder / IMAGE, size=(50, 70), orientation=6)
    index, problems = read(folder, exif=exif)
    assert (index.sizes.tolist(), problems) == ([list(size), [20, 30]], [])
    assert read_image(folder / IMAGE, size=size, apply_exif=exif == "apply").shape[:2] == size


def test_missing_and_doubled_files_are_named(make_voc) -> None:
    for row, (damage, kind, file, said) in enumerate(
        [
            (lambda at: (at / IMAGE).unlink(), "missing image", IMAGE, LIST),
            (lambda at: (at / LIST).write_text("b\nn01/b\n"), "missing image", "JPEGImages/n01/b.jpg", LIST),
            (lambda at: (at / XML).unlink(), "missing annotation", XML, ""),
            (lambda at: (at / XML).rename(at / "Annotations/A.XML"), "missing annotation", XML, "'A.XML' is there"),
            (lambda at: (at / LIST).write_text("a\nb\na\n"), "duplicate image", LIST, "'a'"),
            (lambda at: (at / LIST).unlink(), "split list can't be read", LIST, ""),
            (lambda at: (at / LIST).write_bytes(b"\xff\x00a\x81"), "split list can't be read", LIST, ""),
        ]
    ):
        damage(folder := make_voc({"a": [CAT], "b": [DOG]}, folder=f"voc{row}"))
        _, (problem,) = read(folder)
        assert (problem.severity, problem.kind, problem.file) == ("error", kind, str(folder / file))
        assert said in problem.detail


def test_names_that_leave_the_folder_are_refused_and_meant_ones_get_a_hint(make_voc) -> None:
    folder = make_voc({"a": [CAT], "b": [CAT]})
    outside = [
        "../a",
        "/etc/a",
        "sub/../../a",
        "../../etc/passwd",
        "..",
        "..\\a",
        ".hidden",
        "sub/.a",
        "sub\\a",
        "/data/JPEGImages/a.jpg",
    ]
    impossible = ["a\0b", "x\0/y", "n" * 5000]  # no file can be called so
    (folder / LIST).write_text("\n".join(["b", *outside, "JPEGImages/a", "A", *impossible]))
    index, problems = read(folder)
    kinds = ["missing image"] * 5 + ["image name that leaves the folder"] * len(outside)
    assert (stems(index), sorted(problem.kind for problem in problems)) == (["b"], sorted(kinds))
    refused = [problem.detail for problem in problems if problem.kind == kinds[-1]]
    assert all(detail.startswith(repr(name)) for name, detail in zip(outside, refused, strict=True))
    hinted = [problem.detail for problem in problems if problem.kind == kinds[0]][:2] + refused[-2:]
    assert all("'a.jpg' is there" in detail for detail in hinted)
    with pytest.raises(ValueError, match=r"below the data set's folder, got '/etc/\*'"):
        read(folder, {"list": "/etc/*"})


OBJECT, OTHER, HIDES = "object that can't be read", "XML that isn't VOC's", "element that isn't VOC's"
SIZE, UNPARSED = "size that can't be read", "XML that does not parse"
WHOLE = object()
EDITS = [
    ("<xmin>1</xmin>", "", OBJECT, "object 1 (cat): bndbox/xmin is missing"),
    ("<xmin>1<", "<xmin>1_0<", OBJECT, "object 1 (cat): bndbox/xmin is '1_0'"),
    ("<xmin>1</xmin>", "<Xmin>1</Xmin>", OBJECT, "it has <Xmin>"),
    ("bndbox>", "box>", OBJECT, "object 1 (cat): bndbox"),
    ("bndbox>", "polygon>", OBJECT, "<polygon>: export boxes, not polygons"),
    ("<name>cat</name>", "<Name>cat</Name>", OBJECT, "object 1 (without a name): name is missing"),
    ("<difficult>0", "<difficult>maybe", OBJECT, "object 1 (cat): difficult is 'maybe'"),
    ("<difficult>0</difficult>", "<Difficult>1</Difficult>", OBJECT, "it has <Difficult>"),
    (">cat<", ">catt<", "class that the card lacks", "object 1, 'catt'; did you mean 'cat'?"),
    ("<height>60<", "<height>-3<", SIZE, ""),
    ("<height>60<", "<height><", SIZE, ""),
    ("<object>", "", UNPARSED, ""),
    (WHOLE, "", UNPARSED, ""),
    (WHOLE, "<a>\x00</a>", UNPARSED, ""),
    (WHOLE, '<?xml version="1.0" encoding="klingon"?><annotation/>', UNPARSED, ""),
    ("annotation>", "annotations>", OTHER, "; of CVAT, export as PASCAL VOC"),
    ("<annotation>", '<annotation xmlns="http://example.org/voc">', OTHER, "{http://example.org/voc}annotation"),
    ("object>", "Object>", HIDES, "<Object>"),
    ("object>", "thing>", HIDES, "<thing>"),
    ("</object>", "</object><box/>", HIDES, "<box>"),
    (WHOLE, '<annotation><thing x="1"/></annotation>', HIDES, "<thing>"),
]


def test_elements_with_another_value_or_spelling_are_named(make_voc) -> None:
    folder = make_voc({f"{number:02d}": [CAT] for number in range(len(EDITS))})
    files = sorted((folder / "Annotations").iterdir())
    for file, (old, new, _, _) in zip(files, EDITS, strict=True):
        text = file.read_text()
        changed = new if old is WHOLE else text.replace(old, new)
        file.write_text(changed)
        assert changed != text
    errors = [problem for problem in read(folder)[1] if problem.severity == "error"]
    for file, (*_, kind, said), problem in zip(files, EDITS, errors, strict=True):
        assert (problem.file, problem.kind) == (str(file), kind)
        assert said in problem.detail


def test_a_bad_box_is_dropped_or_an_error_and_names_the_object(make_voc) -> None:
    folder = make_voc({"a": [CAT, ("dog", ("nan", 1, 9, 9), False)]})
    (index, (dropped,)), (_, (error,)) = read(folder), read(folder, drop=False)
    assert (index.labels.tolist(), dropped.severity, error.severity) == ([0], "dropped", "error")
    assert dropped.detail.startswith("object 2 (dog), box")
    assert dropped.file == error.file == str(folder / XML)


@pytest.mark.parametrize("entry", [{"lst": "train.txt"}, {"list": 5}, {"first_pixel": 2}, {"partial": "maybe"}])
def test_an_entry_that_is_no_voc_split_is_refused(tmp_path, entry) -> None:
    with pytest.raises(ValueError, match=next(iter(entry))):
        read(tmp_path, entry)


def test_further_elements_and_flags_without_a_value_are_said_once(make_voc) -> None:
    folder = make_voc({"a": [CAT], "b": [CAT]})
    for file in (folder / "Annotations").iterdir():
        edit(file, "<size>", "<weather>fine</weather><size>")
        edit(file, "<difficult>0", "<difficult>Unspecified")
    index, problems = read(folder)
    assert (index.labels.tolist(), index.ignore.tolist()) == ([0, 0], [False, False])
    notes = sorted((problem.detail.split()[0], problem.severity, problem.count) for problem in problems)
    assert notes == [("<weather>", "note", 2), ("difficult", "note", 2)]
    assert any("difficult is 'Unspecified'" in problem.detail for problem in problems)


def test_pixels_may_count_from_zero_and_the_other_choice_gets_a_hint(make_voc) -> None:
    folder = make_voc({"a": [("cat", (0, 0, 79, 59), False)], "b": [("cat", (4, 0, 9, 9), False), CAT]})
    _, (problem,) = read(folder)
    assert (problem.severity, problem.kind, problem.count) == ("note", "box that starts at pixel 0", 2)
    assert "first_pixel: 0" in problem.detail
    index, problems = read(folder, {"first_pixel": 0})
    assert (index.boxes.tolist()[0], problems) == ([0, 0, 80, 60], [])
    _, (problem,) = read(make_voc({"a": [("cat", (1, 1, 80, 60), False)]}, folder="from one"), {"first_pixel": 0})
    assert (problem.severity, problem.kind) == ("note", "box that ends behind the last pixel")


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "utf-16", "iso-8859-1", "utf-8", "utf-8-sig"])
def test_other_encodings_are_read(make_voc, encoding) -> None:
    name, declared = ("Käse" if encoding == "iso-8859-1" else "猫"), encoding.removesuffix("-sig")
    folder = make_voc({name: [CAT], "b": [DOG]})
    file = folder / "Annotations" / f"{name}.xml"
    text = f'<?xml version="1.0" encoding="{declared}"?>' + file.read_text().replace("cat", name)
    file.write_bytes(text.encode(encoding))
    (folder / LIST).write_bytes(f"{name} 1\r\nb -1\r\n".encode(encoding))
    index, problems = read(folder, classes=(name,))
    assert (stems(index), index.labels.tolist(), problems) == ([name], [0], [])


def test_images_without_any_annotation_have_no_ground_truth(make_voc) -> None:
    folder = make_voc({"b": [CAT], "a": [CAT]}, sizes={"a": (40, 30)})
    assert read(folder)[0].has_ground_truth
    for stem in "ab":
        (folder / "Annotations" / f"{stem}.xml").unlink()
    index, problems = read(folder)
    assert (index.has_ground_truth, index.sizes.tolist(), len(index.boxes)) == (False, [[60, 80], [40, 30]], 0)
    assert kinds(problems) == [("note", "no ground truth")]


# ImageNet's dialect: subfolders, running numbers, one list per class, WordNet ids


def test_subfolders_running_numbers_and_other_names(make_voc) -> None:
    folder = make_voc({"a": [(WORDNET, (1, 1, 10, 20), False), DOG], "b": [DOG], "photo 7": [CAT]})
    for kind, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (folder / kind / "n01/extra").mkdir(parents=True)
        (folder / kind / f"b{suffix}").rename(folder / kind / f"n01/extra/b{suffix}")
    (folder / LIST).write_text("n01/extra/b 1\na 2\nphoto 7\n")
    index, problems = read(folder, names={WORDNET: "cat"})
    assert (stems(index), index.labels.tolist(), problems) == (["b", "a", "photo 7"], [1, 0, 1, 0], [])
    assert index.paths[0] == str(folder / "JPEGImages/n01/extra/b.jpg")


def write_lists(folder, *texts):
    for number, text in enumerate(texts, start=1):
        (folder / f"ImageSets/Main/train_{number}.txt").write_text(text)
    return {"list": "ImageSets/Main/train_*.txt"}


def test_lists_of_a_pattern_are_joined_and_may_give_partial_images(make_voc) -> None:
    folder = make_voc({"a": [CAT], "b": [DOG], "c": [CAT]})
    index, problems = read(folder, write_lists(folder, "a 1\nb -1\n", "a 1\nc 0\n", "b 1\n"))
    assert (stems(index), problems) == (["a", "c", "b"], [])
    index, (problem,) = read(folder, {"list": "ImageSets/Main/val_*.txt"})
    assert (len(index), problem.kind) == (0, "split list can't be read")
    # Image a is positive for a class, b and c are partial; c has no annotation.
    entry = write_lists(folder, "a 0\nb 0\n", "a 1\nc 0\n", "")
    (folder / "Annotations/c.xml").unlink()
    index, problems = read(folder, {**entry, "partial": "train"})
    assert stems(index) == ["a", "b"]
    assert [(problem.severity, problem.count) for problem in problems] == [("note", 2), ("dropped", 1)]
    index, (problem,) = read(folder, {**entry, "partial": "drop"})
    assert (stems(index), problem.severity, problem.count) == (["a"], "dropped", 2)
    assert kinds(read(folder, entry)[1]) == [("error", "missing annotation")]


def test_images_and_classes_on_the_blacklist_are_not_judged(make_voc) -> None:
    folder = make_voc({"a": [CAT], "b": [BIG_DOG, CAT], "c": [(WORDNET, (1, 1, 10, 20), False)]})
    for name, text in ((LIST, "a 1\nb 2\nc 3\n"), ("images", "1\n7\n"), ("bad", "1 cat dog\n")):
        (folder / name).write_text(text)
    (folder / "classes").write_text(f"2 cat\n3 {WORDNET}\n1 dog\n9 zebra\n")
    whole, problems = read(folder, {"blacklist": "images"}, names={WORDNET: "cat"})
    assert (stems(whole), kinds(problems)) == (["b", "c"], [("dropped", "image on the blacklist")])
    index, (note,) = read(folder, {"blacklist": "classes"}, names={WORDNET: "cat"})
    assert (index.ignore.tolist(), note.count) == ([False, False, True, True], 4)
    assert index.unjudged.tolist() == [[0, 1], [1, 0], [2, 0]]
    for name, severity in (("bad", "error"), ("absent", "note")):  # without it figures are not the challenge's
        problem = read(folder, {"blacklist": name}, names={WORDNET: "cat"})[1][0]
        assert (problem.severity, problem.file) == (severity, str(folder / name))


@pytest.mark.parametrize("size", [(120, 160), (30, 40)])
def test_boxes_are_scaled_to_an_image_of_another_resolution(make_voc, size) -> None:
    folder = make_voc({"a": [CAT, DOG], "b": [CAT]}, sizes={"a": size, "b": (100, 80)})
    edit(folder / XML, f"<width>{size[1]}</width><height>{size[0]}<", "<width>80</width><height>60<")
    edit(folder / "Annotations/b.xml", "<height>100</height>", "<height>60</height>")  # of other proportions
    index, (problem,) = read(folder, other_size="scale")
    factor, sizes = size[0] / 60, [list(size), [60, 80]]
    expected = [[0, 0, 10 * factor, 20 * factor], [4 * factor, 5 * factor, 5 * factor, 6 * factor], [0, 0, 10, 20]]
    assert (index.boxes.tolist(), index.sizes.tolist()) == (expected, sizes)
    assert (problem.severity, problem.count) == ("note", 1)
    with pytest.raises(ValueError, match="its annotation says 80x60"):
        index.image(1)


@pytest.mark.parametrize(("annotated", "turned"), [((50, 70), False), ((70, 50), True)])
def test_photographs_are_turned_as_their_annotated_size_says(make_voc, draw, annotated, turned) -> None:
    folder = make_voc({"a": [CAT]}, sizes={"a": annotated})
    draw(folder / IMAGE, size=(50, 70), orientation=6)  # a quarter turn
    index, problems = read(folder, exif="by_size")
    assert (index.apply_exif.tolist(), index.image(0).shape, len(problems)) == ([turned], (*annotated, 3), not turned)


def test_masks_are_read_on_request_and_stay_with_their_objects(make_voc, draw) -> None:
    folder = make_voc({"a": [OUTSIDE, CAT, BIG_DOG], "b": [("dog", (41, 11, 60, 20), False)], "c": []})
    numbers = np.zeros((60, 80), np.uint8)
    numbers[30:40, 30:50], numbers[:20, :10] = 1, 2  # not in the order of the objects
    draw(folder / "SegmentationObject/a.png", numbers)
    index, (outside, without) = read(folder, {"instances": "SegmentationObject"}, fields=("masks",))
    masks: list[Any] = [index.target(row, fields=("masks",)).masks for row in range(3)]
    np.testing.assert_array_equal(masks[0], [numbers == 2, numbers == 1])
    assert outside.kind == "box outside the image or without area"
    assert (without.severity, without.file) == ("dropped", str(folder / "Annotations/b.xml"))
    assert (masks[1].any().item(), masks[2].shape) == (False, (0, 60, 80))
    for entry, fields in (({}, ("masks",)), ({"instances": "SegmentationObject"}, ())):
        assert read(folder, entry, fields=fields)[0].fields == {}
