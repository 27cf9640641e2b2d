"""Mirrors readers/labelled.py and the parsers over it: what differs by format, and what is wrong in files."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.readers.bsds import parse_bsds
from detection.data.readers.csv_boxes import table_columns
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.labelme import parse_labelme
from detection.data.readers.table import FORMATS
from detection.data.readers.yolo import read_names

BROKEN_OBJECT, BROKEN_FILE = ("error", "object that can't be read"), ("error", "labels that can't be read")


@pytest.fixture
def read(tmp_path):
    """Reads one file of labels with an image a.png of 100x80 (width x height) beside it."""

    def run(format, text, **options):
        Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
        file = {"yolo": "a.txt", "labelme": "a.json"}.get(format, "labels")
        (tmp_path / file).write_text(text)
        entry = {"yolo": {"images": "."}, "labelme": {}}.get(format, {"annotations": file})
        options = {"drop": True, "exif": "apply", "fields": ("masks",)} | options
        return FORMATS[format].read(tmp_path, entry, ("cat", "dog"), **options)

    return run


def boxes(index):
    return [[round(value, 2) for value in box] for box in index.boxes.tolist()]


def kinds(problems):
    return [(problem.severity, problem.kind) for problem in problems]


def test_yolo_lines_that_are_no_objects_are_errors_with_their_numbers(read) -> None:
    bad = {
        "2 0.5 0.5 0.2 0.2": "0 to 1",
        "-1 0.5 0.5 0.2 0.2": "0 to 1",
        "cat 0.5 0.5 0.2 0.2": "class is 'cat'",
        "0 0.5 0.5 0.2": "3 numbers",
        "0 0.5 0.5 0.2 0.2 0.9": "5 numbers",
        "0 0.5 x 0.2 0.2": "coordinate is 'x'",
    }
    index, problems = read("yolo", "\n".join(["1 0.5 0.5 0.2 0.25", "", *bad]))
    assert (boxes(index), index.labels.tolist()) == ([[40, 30, 60, 50]], [1])  # names are the card's
    for line, (said, problem) in enumerate(zip(bad.values(), problems, strict=True), start=3):
        assert (problem.severity, problem.file.endswith("a.txt")) == ("error", True)
        assert problem.detail.startswith(f"line {line}")
        assert said in problem.detail


def test_yolo_lists_of_images_and_names_of_a_data_yaml(tmp_path) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("./a.png\ngone.png\n")
    index, (problem,) = FORMATS["yolo"].read(tmp_path, {"images": "list.txt"}, ("cat",), drop=True, exif="apply")
    assert (len(index), problem.kind, "gone.png" in problem.detail) == (1, "missing image", True)
    for names in ("[cat, dog]", "{0: cat, 1: dog}"):
        (tmp_path / "data.yaml").write_text(f"names: {names}\n")
        assert read_names(tmp_path / "data.yaml") == ("cat", "dog")
    for text in ("names: {1: cat}", "nc: 3", "names: cat", "- a", "a: ["):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"names|YAML|yaml|expected"):
            read_names(tmp_path / "data.yaml")


def labelme(*shapes, **keys):
    shapes = [{"label": "cat", **shape} if isinstance(shape, dict) else shape for shape in shapes]
    return json.dumps({"imagePath": "a.png", "imageHeight": 80, "imageWidth": 100, "shapes": shapes} | keys)


RECTANGLE = {"points": [[10, 10], [20, 20]], "shape_type": "rectangle"}


def test_labelme_shapes_have_boxes_or_are_named(read) -> None:
    Image.fromarray(np.full((10, 20), 255, dtype=np.uint8)).save(picture := io.BytesIO(), format="PNG")
    mask = {"label": "dog", "points": [[30, 40], [49, 49]], "shape_type": "mask"}
    mask["mask"] = base64.b64encode(picture.getvalue()).decode()
    circle = {"points": [[50, 40], [53, 44]], "shape_type": "circle"}
    lines = [{"points": [[1, 1], [2, 2]], "shape_type": kind} for kind in ("line", "point")]
    index, problems = read("labelme", labelme(circle, mask, *lines))
    assert boxes(index) == [[45, 35, 55, 45], [30, 40, 50, 50]]
    assert kinds(problems).count(("dropped", "shape without a box")) == 2
    masks: Any = index.target(0, fields=("masks",)).masks
    assert ([int(own.sum()) for own in masks], bool(masks[1, 40:50, 30:50].all())) == ([0, 200], True)
    bad = [
        {**RECTANGLE, "label": None},
        {**RECTANGLE, "points": [[1, 1]]},
        {**RECTANGLE, "points": "1,2"},
        {**RECTANGLE, "points": [[1, "x"], [2, 2]]},
        {**RECTANGLE, "shape_type": "polygon"},
        {**RECTANGLE, "shape_type": "star"},
        "cat",
    ]
    _, problems = read("labelme", labelme(*bad, {**RECTANGLE, "label": "cats"}))
    assert kinds(problems) == [BROKEN_OBJECT] * len(bad) + [("error", "class that the card lacks")]
    assert all(f"shapes[{row}]" in problem.detail for row, problem in enumerate(problems))
    assert "did you mean 'cat'" in problems[-1].detail


def cvat(shapes, attributes='name="a.png" width="100" height="80"'):
    return f"<annotations><image id='0' {attributes}>{shapes}</image></annotations>"


def test_cvat_shapes_have_boxes(read) -> None:
    shapes = (
        '<box label="cat" xtl="10" ytl="20" xbr="30" ybr="40" rotation="90.0"/>'
        '<box label="cat" xtl="10" ytl="20" xbr="50" ybr="40" rotation="90"/>'
        '<ellipse label="cat" cx="50" cy="40" rx="20" ry="10"/>'
        '<mask label="cat" left="10" top="20" width="5" height="6" rle="0,30"/>'
        '<polyline label="cat" points="1,1;2,2"/><polygon label="cat" points="1,1;2"/><box xtl="1"/>'
    )
    index, problems = read("cvat", cvat(shapes))
    assert boxes(index) == [[10, 20, 30, 40], [20, 10, 40, 50], [30, 30, 70, 50], [10, 20, 15, 26]]
    severities = [problem.severity for problem in problems if not problem.kind.startswith("mask that is missing")]
    assert severities == ["dropped", "error", "error"]
    index, problems = read("cvat", cvat("", 'name="b.png" width="9" height="9"'))
    assert (len(index), kinds(problems)) == (0, [("dropped", "missing image")])


def test_files_of_another_kind_are_errors(read) -> None:
    for format, texts in {
        "cvat": {"<annotations><track/></annotations>": "video", "<annotation/>": "<annotation>", "<annotations>": ""},
        "labelme": {"{": "", "[]": "", '{"imagePath": "a.png"}': "", labelme(imageHeight="x"): "imageHeight"},
        "label_studio": {"{": "", '{"a": 1}': ""},
        "csv": {"name,age\nx,3\n": "filename"},
    }.items():
        for text, said in texts.items():
            _, problems = read(format, text)
            assert kinds(problems) == [BROKEN_FILE]
            assert said in problems[0].detail


def test_label_studio_rectangles_turn_about_their_first_corner_and_may_have_two_classes(read) -> None:
    turned = {"x": 50, "y": 50, "width": 20, "height": 12.5, "rotation": 90}
    turned |= {"original_width": 100, "original_height": 80}
    double = {"x": 10, "y": 10, "width": 20, "height": 10, "rectanglelabels": ["cat", "dog"]}
    bad = [{"x": "left"}, {"x": 10, "y": 10}, {"points": [[1, 1]]}]
    shapes = [{"rectanglelabels": ["cat"], **value} for value in (turned, double, *bad)]
    index, problems = read("label_studio", json.dumps([{"image": "a.png", "label": shapes}]), fields=())
    assert boxes(index) == [[40, 40, 50, 60], [10, 8, 30, 16], [10, 8, 30, 16]]
    assert (index.labels.tolist(), kinds(problems)) == ([0, 0, 1], [BROKEN_OBJECT] * 3)


def test_columns_of_tables_go_by_their_usual_names_and_bad_rows_by_number(read) -> None:
    corners, sides = {"image", "class", "x1", "y1", "x2", "y2"}, {"image", "class", "x", "y", "w", "h"}
    for header, expected in [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", corners | {"width", "height"}),
        ("image,label,x,y,width,height", sides),
        ("Path,X1,Y1,X2,Y2,Class_Name", corners),
        ("file,bbox_x,bbox_y,bbox_w,bbox_h,category", sides),
        ("name,age", None),
        ("filename,class", None),
    ]:
        found = table_columns(header.split(","))
        assert (found and set(found)) == expected
    index, _ = read("csv", "image,label,x,y,width,height\na.png,cat,10,20,30,40\n", fields=())
    assert boxes(index) == [[10, 20, 40, 60]]
    text = "image,label,x1,y1,x2,y2\na.png,cat,1,1,20,20\na.png,cat,1,,20,20\na.png,,1,1,20,20\n"
    index, problems = read("csv", text, fields=())
    assert len(index.boxes) == 1
    assert [problem.detail.partition(" (")[0] for problem in problems] == ["row 2", "row 3"]
    text = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0.1,0.5,0.25,0.5,1\na,dog,0,1,0,1,0\n"
    index, problems = read("open_images", text, fields=())
    assert (boxes(index), index.ignore.tolist()) == ([[10, 20, 50, 40], [0, 0, 100, 80]], [True, False])
    assert problems == []


def test_the_longest_end_of_a_path_decides_which_image_a_name_means(tmp_path) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "b/Y.PNG", "c d.jpg", ".hidden/z.jpg", "._w.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files = ImageFiles(tmp_path)
    for found, names in [
        ("a/x.jpg", ["a/x.jpg", "../a/x.jpg"]),
        ("b/x.jpg", ["C:\\photos\\b\\x.jpg", "/data/local-files/?d=b/x.jpg"]),
        ("b/Y.PNG", ["y.png", "y", "y.jpg"]),
        ("c d.jpg", ["http://host/data/c%20d.jpg"]),
        (None, ["x.jpg", "z.jpg", "w.jpg"]),  # two, hidden, hidden
    ]:
        assert [files.find(name) for name in names] == [found and tmp_path / found] * len(names)


ENTRIES = {
    "yolo": ("yolo_plain", {"images": "."}),
    "labelme": ("labelme", {}),
    "cvat": ("cvat", {"annotations": "annotations.xml"}),
    "label_studio": ("label_studio", {"annotations": "project-1-min.json"}),
    "open_images": ("open_images", {"annotations": "boxes.csv", "names": "class-descriptions-boxable.csv"}),
    "csv": ("csv", {"annotations": "boxes.csv"}),
}


@pytest.mark.parametrize("format", ENTRIES)
def test_an_image_whose_header_cannot_be_read_is_left_out_on_request(made_folder, format) -> None:
    folder, entry = made_folder(ENTRIES[format][0]), ENTRIES[format][1]
    (broken,) = folder.rglob("photo0.jpg")
    broken.write_bytes(b"no image")
    for drop in (True, False):
        options = {"drop": True, "exif": "by_size", "drop_images": drop}
        index, (problem,) = FORMATS[format].read(folder, entry, ("bolt", "nut"), **options)
        assert (problem.severity, problem.file) == ("dropped" if drop else "error", str(broken))
        assert len(index) == 11 - (format == "open_images")


@pytest.mark.parametrize(
    ("parse", "entry"), [(parse_labelme, {"folder": "none"}), (parse_bsds, {"images": "none", "boundaries": "maps"})]
)
def test_a_missing_folder_is_named(tmp_path, parse, entry) -> None:
    with pytest.raises(ValueError, match=r"no folder .*none"):
        parse(tmp_path, entry, ())
