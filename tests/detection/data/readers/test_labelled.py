"""Mirrors readers/labelled.py and the parsers over it: what differs by format, and what is wrong in files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.readers.csv_boxes import table_columns
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.table import FORMATS, FormatName
from detection.data.readers.yolo import read_names

Read = Callable[..., tuple[AnnotationIndex, list[Problem]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads files with an image a.png of 100x80 (width x height) among them."""

    def run(
        format: FormatName, entry: dict[str, Any], files: dict[str, str], classes: tuple[str, ...] = ("cat", "dog")
    ) -> tuple[AnnotationIndex, list[Problem]]:
        Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return FORMATS[format].read(tmp_path, entry, classes, drop=True, exif="apply", fields=("masks",))

    return run


def boxes(index: AnnotationIndex) -> list[list[float]]:
    return [[round(value, 2) for value in box] for box in index.boxes.tolist()]


class TestYOLO:
    """Text files of numbers."""

    def test_names_of_the_card_serve_where_no_file_has_any(self, read: Read) -> None:
        index, problems = read("yolo", {"images": "."}, {"a.txt": "1 0.5 0.5 0.2 0.25\n"})
        assert (boxes(index), index.labels.tolist(), problems) == ([[40, 30, 60, 50]], [1], [])

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("2 0.5 0.5 0.2 0.2", "0 to 1"),
            ("-1 0.5 0.5 0.2 0.2", "0 to 1"),
            ("cat 0.5 0.5 0.2 0.2", "class is 'cat'"),
            ("0 0.5 0.5 0.2", "3 numbers"),
            ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers"),
            ("0 0.5 x 0.2 0.2", "coordinate is 'x'"),
        ],
    )
    def test_a_line_that_is_no_object_is_an_error_with_its_number(self, read: Read, line: str, said: str) -> None:
        index, (problem,) = read("yolo", {"images": "."}, {"a.txt": f"0 0.5 0.5 0.1 0.1\n\n{line}\n"})
        assert len(index.boxes) == 1
        assert (problem.severity, problem.file.endswith("a.txt")) == ("error", True)
        assert problem.detail.startswith("line 3")
        assert said in problem.detail

    def test_a_list_of_images_names_what_is_missing(self, read: Read) -> None:
        index, (problem,) = read("yolo", {"images": "list.txt"}, {"list.txt": "./a.png\ngone.png\n"})
        assert (len(index), problem.kind, "gone.png" in problem.detail) == (1, "missing image", True)

    @pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}"])
    def test_names_of_a_data_yaml(self, tmp_path: Path, names: str) -> None:
        (tmp_path / "data.yaml").write_text(f"names: {names}\n")
        assert read_names(tmp_path / "data.yaml") == ("cat", "dog")

    @pytest.mark.parametrize("text", ["names: {1: cat}", "nc: 3", "names: cat", "- a", "a: ["])
    def test_a_data_yaml_without_names_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"names|YAML|yaml|expected"):
            read_names(tmp_path / "data.yaml")


def labelme(*shapes: dict[str, Any], **keys: Any) -> str:
    content = {"imagePath": "a.png", "imageHeight": 80, "imageWidth": 100, "shapes": [*shapes]}
    return json.dumps(content | keys)


class TestLabelMe:
    """A JSON file an image."""

    def test_a_circle_and_a_painted_mask_have_boxes(self, read: Read) -> None:
        picture = io.BytesIO()
        Image.fromarray(np.full((10, 20), 255, dtype=np.uint8)).save(picture, format="PNG")
        mask = {
            "label": "dog",
            "points": [[30, 40], [49, 49]],
            "shape_type": "mask",
            "mask": base64.b64encode(picture.getvalue()).decode(),
        }
        circle = {"label": "cat", "points": [[50, 40], [53, 44]], "shape_type": "circle"}
        index, _ = read("labelme", {}, {"a.json": labelme(circle, mask)})
        assert boxes(index) == [[45, 35, 55, 45], [30, 40, 50, 50]]
        masks = index.target(0, fields=("masks",)).masks
        assert masks is not None
        assert [int(own.sum()) for own in masks] == [0, 200]
        assert bool(masks[1, 40:50, 30:50].all())

    def test_points_and_lines_are_left_out_with_a_count(self, read: Read) -> None:
        shapes = [{"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": kind} for kind in ("line", "point")]
        index, problems = read("labelme", {}, {"a.json": labelme(*shapes)})
        assert (len(index), len(index.boxes)) == (1, 0)
        assert [(problem.severity, problem.kind) for problem in problems] == [("dropped", "shape without a box")] * 2

    @pytest.mark.parametrize(
        "shape",
        [
            {"points": [[1, 1], [2, 2]], "shape_type": "rectangle"},
            {"label": "cat", "points": [[1, 1]], "shape_type": "rectangle"},
            {"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": "polygon"},
            {"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": "star"},
            {"label": "cat", "points": "1,2", "shape_type": "rectangle"},
            {"label": "cat", "points": [[1, "x"], [2, 2]], "shape_type": "rectangle"},
            "cat",
        ],
    )
    def test_a_shape_that_can_not_be_read_is_an_error(self, read: Read, shape: Any) -> None:
        _, (problem,) = read("labelme", {}, {"a.json": labelme(shape)})
        assert (problem.severity, problem.kind) == ("error", "object that can't be read")
        assert "shapes[0]" in problem.detail

    @pytest.mark.parametrize("text", ["{", "[]", '{"imagePath": "a.png"}', labelme(imageHeight="x")])
    def test_a_file_that_can_not_be_read_is_an_error(self, read: Read, text: str) -> None:
        _, (problem,) = read("labelme", {}, {"a.json": text})
        assert (problem.severity, problem.kind) == ("error", "labels that can't be read")

    def test_a_class_that_the_card_lacks_is_an_error(self, read: Read) -> None:
        shape = {"label": "cats", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
        _, (problem,) = read("labelme", {}, {"a.json": labelme(shape)})
        assert (problem.severity, problem.kind) == ("error", "class that the card lacks")
        assert "did you mean 'cat'" in problem.detail

    def test_another_size_than_the_image_s_scales_the_boxes_on_request(self, tmp_path: Path, read: Read) -> None:
        shape = {"label": "cat", "points": [[10, 10], [20, 20]], "shape_type": "rectangle"}
        read("labelme", {}, {"a.json": labelme(shape, imageHeight=40, imageWidth=50)})
        index, _ = FORMATS["labelme"].read(tmp_path, {}, ("cat",), drop=True, exif="apply", other_size="scale")
        assert boxes(index) == [[20, 20, 40, 40]]


def cvat(shapes: str, attributes: str = 'name="a.png" width="100" height="80"') -> str:
    return f"<annotations><image id='0' {attributes}>{shapes}</image></annotations>"


class TestCVAT:
    """One XML file."""

    @pytest.mark.parametrize(
        ("shape", "box"),
        [
            ('<box label="cat" xtl="10" ytl="20" xbr="30" ybr="40" rotation="90.0"/>', [10, 20, 30, 40]),
            ('<box label="cat" xtl="10" ytl="20" xbr="50" ybr="40" rotation="90"/>', [20, 10, 40, 50]),
            ('<ellipse label="cat" cx="50" cy="40" rx="20" ry="10"/>', [30, 30, 70, 50]),
            ('<mask label="cat" left="10" top="20" width="5" height="6" rle="0,30"/>', [10, 20, 15, 26]),
        ],
    )
    def test_shapes_have_boxes(self, read: Read, shape: str, box: list[float]) -> None:
        index, _ = read("cvat", {"annotations": "a.xml"}, {"a.xml": cvat(shape)})
        assert boxes(index) == [box]

    def test_lines_are_left_out_and_broken_shapes_are_errors(self, read: Read) -> None:
        shapes = '<polyline label="cat" points="1,1;2,2"/><polygon label="cat" points="1,1;2"/><box xtl="1"/>'
        _, problems = read("cvat", {"annotations": "a.xml"}, {"a.xml": cvat(shapes)})
        assert [problem.severity for problem in problems] == ["dropped", "error", "error"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("<annotations><track/></annotations>", "video"),
            ("<annotation/>", "<annotation>"),
            ("<annotations>", "no element"),
        ],
    )
    def test_another_xml_is_an_error(self, read: Read, text: str, said: str) -> None:
        _, (problem,) = read("cvat", {"annotations": "a.xml"}, {"a.xml": text})
        assert problem.severity == "error"
        assert said in problem.detail

    def test_an_image_that_is_missing_is_left_out(self, read: Read) -> None:
        index, (problem,) = read(
            "cvat", {"annotations": "a.xml"}, {"a.xml": cvat("", 'name="b.png" width="9" height="9"')}
        )
        assert (len(index), problem.severity, problem.kind) == (0, "dropped", "missing image")


class TestLabelStudio:
    """One JSON file, in percent."""

    def one(self, read: Read, **value: Any) -> tuple[AnnotationIndex, list[Problem]]:
        text = json.dumps([{"image": "a.png", "label": [{"rectanglelabels": ["cat"], **value}]}])
        return read("label_studio", {"annotations": "a.json"}, {"a.json": text})

    def test_a_turned_rectangle_turns_about_its_first_corner(self, read: Read) -> None:
        sides = {"original_width": 100, "original_height": 80}
        index, _ = self.one(read, x=50, y=50, width=20, height=12.5, rotation=90, **sides)
        assert boxes(index) == [[40, 40, 50, 60]]

    def test_two_classes_of_a_rectangle_are_two_objects(self, read: Read) -> None:
        index, _ = self.one(read, x=10, y=10, width=20, height=10, rectanglelabels=["cat", "dog"])
        assert index.labels.tolist() == [0, 1]

    @pytest.mark.parametrize("value", [{"x": "left"}, {"x": 10, "y": 10}, {"points": [[1, 1]]}])
    def test_what_is_no_shape_is_an_error(self, read: Read, value: dict[str, Any]) -> None:
        _, (problem,) = self.one(read, **value)
        assert (problem.severity, problem.kind) == ("error", "object that can't be read")

    @pytest.mark.parametrize("text", ["{", '{"a": 1}'])
    def test_another_json_is_an_error(self, read: Read, text: str) -> None:
        _, (problem,) = read("label_studio", {"annotations": "a.json"}, {"a.json": text})
        assert (problem.severity, problem.kind) == ("error", "labels that can't be read")


class TestTables:
    """CSV files."""

    @pytest.mark.parametrize(
        ("header", "kinds"),
        [
            (
                "filename,width,height,class,xmin,ymin,xmax,ymax",
                {"image", "width", "height", "class", "x1", "y1", "x2", "y2"},
            ),
            ("image,label,x,y,width,height", {"image", "class", "x", "y", "w", "h"}),
            ("Path,X1,Y1,X2,Y2,Class_Name", {"image", "class", "x1", "y1", "x2", "y2"}),
            ("file,bbox_x,bbox_y,bbox_w,bbox_h,category", {"image", "class", "x", "y", "w", "h"}),
            ("name,age", None),
            ("filename,class", None),
        ],
    )
    def test_columns_go_by_their_usual_names(self, header: str, kinds: set[str] | None) -> None:
        found = table_columns(header.split(","))
        assert (found and set(found)) == kinds

    def test_width_and_height_without_corners_are_the_box_s(self, read: Read) -> None:
        index, _ = read(
            "csv", {"annotations": "a.csv"}, {"a.csv": "image,label,x,y,width,height\na.png,cat,10,20,30,40\n"}
        )
        assert boxes(index) == [[10, 20, 40, 60]]

    def test_a_row_that_is_no_box_is_an_error_with_its_number(self, read: Read) -> None:
        text = "image,label,x1,y1,x2,y2\na.png,cat,1,1,20,20\na.png,cat,1,,20,20\na.png,,1,1,20,20\n"
        index, problems = read("csv", {"annotations": "a.csv"}, {"a.csv": text})
        assert len(index.boxes) == 1
        assert [problem.detail.partition(" (")[0] for problem in problems] == ["row 2", "row 3"]

    def test_a_header_of_something_else_is_an_error(self, read: Read) -> None:
        _, (problem,) = read("csv", {"annotations": "a.csv"}, {"a.csv": "name,age\nx,3\n"})
        assert problem.severity == "error"
        assert "filename" in problem.detail

    def test_groups_of_openimages_are_ignored(self, read: Read) -> None:
        text = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0.1,0.5,0.25,0.5,1\na,dog,0,1,0,1,0\n"
        index, problems = read("open_images", {"annotations": "a.csv"}, {"a.csv": text})
        assert (boxes(index), index.ignore.tolist()) == ([[10, 20, 50, 40], [0, 0, 100, 80]], [True, False])
        assert problems == []


class TestImageFiles:
    """Which image a name means."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> ImageFiles:
        for name in ("a/x.jpg", "b/x.jpg", "b/Y.PNG", "c d.jpg", ".hidden/z.jpg", "._w.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return ImageFiles(tmp_path)

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("a/x.jpg", "a/x.jpg"),
            ("C:\\photos\\b\\x.jpg", "b/x.jpg"),
            ("x.jpg", None),  # two
            ("y.png", "b/Y.PNG"),
            ("y", "b/Y.PNG"),
            ("y.jpg", "b/Y.PNG"),
            ("http://host/data/c%20d.jpg", "c d.jpg"),
            ("/data/local-files/?d=b/x.jpg", "b/x.jpg"),
            ("z.jpg", None),
            ("w.jpg", None),
            ("../a/x.jpg", "a/x.jpg"),
        ],
    )
    def test_the_longest_end_of_a_path_decides(self, files: ImageFiles, name: str, found: str | None) -> None:
        assert files.find(name) == (None if found is None else files.folder / found)


@pytest.mark.parametrize("format", ["yolo", "labelme", "cvat", "label_studio", "open_images", "csv"])
def test_an_image_whose_header_can_not_be_read_is_left_out_on_request(
    made_folder: Callable[..., Path], format: FormatName
) -> None:
    folder = made_folder({"yolo": "yolo_plain"}.get(format, format))
    (broken,) = folder.rglob("photo0.jpg")
    broken.write_bytes(b"no image")
    entry = {
        "yolo": {"images": "."},
        "labelme": {},
        "cvat": {"annotations": "annotations.xml"},
        "label_studio": {"annotations": "project-1-min.json"},
        "open_images": {"annotations": "boxes.csv", "names": "class-descriptions-boxable.csv"},
        "csv": {"annotations": "boxes.csv"},
    }[format]
    for drop in (True, False):
        index, problems = FORMATS[format].read(
            folder, entry, ("bolt", "nut"), drop=True, exif="by_size", drop_images=drop
        )
        (problem,) = problems
        assert (problem.severity, problem.file) == ("dropped" if drop else "error", str(broken))
        assert len(index) == 11 - (format == "open_images")
