"""Mirrors detection/data/readers/coco.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from torch import Tensor

from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.readers.coco import read_coco

MakeCOCO = Callable[..., Path]
CLASSES = ("dog", "cat")  # not in the order of the ids
ENTRY = {"annotations": "train.json", "images": "train"}
IMAGES = {7: "a.jpg", 900: "b.jpg"}


def annotation(number: int, image: int, category: int = 3, **others: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": [10, 20, 30, 5], **others}


def read(file: Path, *, drop: bool = True, fields: Collection[str] = ()) -> tuple[AnnotationIndex, list[Problem]]:
    return read_coco(file.parent, ENTRY, CLASSES, drop=drop, exif="apply", fields=fields)


def only_problem(file: Path) -> Problem:
    _, problems = read(file)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# what is read


def test_a_known_box_and_ids_with_gaps(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(50, 900, 18), annotation(4, 7, 3, bbox=[0.5, 1.5, 10.25, 2])])
    index, problems = read(file)
    assert problems == []
    assert index.boxes.tolist() == [[0.5, 1.5, 10.75, 3.5], [10, 20, 40, 25]]
    assert index.labels.tolist() == [1, 0]  # 3 is the cat, 18 the dog
    assert index.category_ids == (18, 3)
    assert index.image_ids.tolist() == [7, 900]
    assert index.sizes.tolist() == [[60, 80], [60, 80]]
    assert [index.paths[row] for row in range(2)] == [str(file.parent / "train" / name) for name in IMAGES.values()]


def test_areas_are_those_of_the_file_else_of_the_box(make_coco: MakeCOCO) -> None:
    index, _ = read(make_coco(IMAGES, [annotation(1, 7, area=77.5), annotation(2, 7)]))
    assert index.areas.tolist() == [77.5, 150]


def test_crowds_are_ignored(make_coco: MakeCOCO) -> None:
    index, _ = read(make_coco(IMAGES, [annotation(1, 7, iscrowd=1), annotation(2, 7, iscrowd=0), annotation(3, 7)]))
    assert index.ignore.tolist() == [True, False, False]
    assert index.num_wanted().tolist() == [2, 0]


@pytest.mark.parametrize("segmentation", [[], [[1, 1, 2, 1, 2, 2]], {"counts": [1, 2], "size": [60, 80]}, None])
def test_segmentation_is_not_needed_and_changes_nothing(make_coco: MakeCOCO, segmentation: object) -> None:
    index, problems = read(make_coco(IMAGES, [annotation(1, 7), annotation(2, 7, segmentation=segmentation)]))
    assert index.boxes.tolist() == [[10, 20, 40, 25]] * 2
    assert problems == []


def test_images_without_objects_are_kept(make_coco: MakeCOCO) -> None:
    index, problems = read(make_coco(IMAGES, []))
    assert (len(index), len(index.target(0)), problems) == (2, 0, [])


def test_images_may_lie_in_folders(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    (file.parent / "train" / "sub").mkdir()
    (file.parent / "train" / "a.jpg").rename(file.parent / "train" / "sub" / "a.jpg")
    edit(file, lambda content: content["images"][0].update(file_name="sub/a.jpg"))
    assert read(file)[0].paths[0] == str(file.parent / "train" / "sub" / "a.jpg")


def test_a_class_that_the_file_lacks_is_noted(make_coco: MakeCOCO) -> None:
    index, (problem,) = read(make_coco(IMAGES, [annotation(1, 7)], categories={3: "cat", 5: "cow"}))
    assert index.labels.tolist() == [1]
    assert problem.severity == "note"
    assert "dog" in problem.detail
    assert "cow" in problem.detail


def test_a_class_that_the_card_lacks_does_no_harm_unless_an_object_has_it(make_coco: MakeCOCO) -> None:
    _, problems = read(make_coco(IMAGES, [annotation(1, 7)], categories={3: "cat", 18: "dog", 5: "cow"}))
    assert problems == []


# what is wrong


def test_a_missing_image_is_named(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(1, 7), annotation(2, 900)])
    (file.parent / "train" / "a.jpg").unlink()
    index, (problem,) = read(file)
    assert (problem.severity, problem.kind) == ("error", "missing image")
    assert problem.file == str(file.parent / "train" / "a.jpg")
    assert problem.detail == f"image 7 (a.jpg) of {file}"
    assert index.image_ids.tolist() == [900]


def test_an_object_of_a_class_that_the_card_lacks_is_named_with_the_nearest(make_coco: MakeCOCO) -> None:
    categories = {3: "cat", 18: "dog", 5: "catt"}
    problem = only_problem(make_coco(IMAGES, [annotation(1, 7), annotation(2, 900, 5)], categories=categories))
    assert (problem.severity, problem.kind) == ("error", "class that the card lacks")
    assert problem.detail == "annotation 2 of image 900, 'catt'; did you mean 'cat'?"


def test_a_category_id_that_the_file_lacks_is_named(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(1, 7), annotation(2, 900, 4)])
    problem = only_problem(file)
    assert (problem.severity, problem.kind, problem.file) == ("error", "category id out of range", str(file))
    assert problem.detail == "annotation 2 of image 900, category_id 4; the file has 3, 18"


def test_doubled_image_ids_are_named(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    edit(file, lambda content: content["images"][1].update(id=7))
    problem = only_problem(file)
    assert (problem.severity, problem.kind, problem.detail) == ("error", "duplicate image id", "image 7 (b.jpg)")


def test_doubled_annotation_ids_are_named(make_coco: MakeCOCO) -> None:
    index, (problem,) = read(make_coco(IMAGES, [annotation(5, 7), annotation(5, 900)]))
    assert (problem.severity, problem.kind) == ("error", "duplicate annotation id")
    assert problem.detail == "annotation 5 of image 900"
    assert len(index.boxes) == 1


def test_doubled_category_ids_are_named(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    edit(file, lambda content: content["categories"].append({"id": 3, "name": "dog"}))
    _, problems = read(file)
    assert [problem.kind for problem in problems if problem.severity == "error"] == ["duplicate category id"]
    assert problems[0].detail == "3 (dog)"


def test_an_annotation_of_an_image_that_is_not_listed_is_named(make_coco: MakeCOCO) -> None:
    problem = only_problem(make_coco(IMAGES, [annotation(5, 8)]))
    assert (problem.severity, problem.kind) == ("error", "annotation of an image that is not listed")
    assert problem.detail == "annotation 5 of image 8"


@pytest.mark.parametrize(
    "bbox",
    [[float("nan"), 1, 5, 5], [1, 1, 0, 5], [1, 1, -5, 5], [200, 1, 5, 5], [1, 1, float("inf"), 5]],
    ids=["nan", "no width", "negative width", "outside", "infinite"],
)
def test_a_bad_box_is_dropped_or_an_error_and_names_the_object(make_coco: MakeCOCO, bbox: list[float]) -> None:
    file = make_coco(IMAGES, [annotation(1, 7), annotation(2, 900, bbox=bbox), annotation(3, 900)])
    index, (dropped,) = read(file)
    _, (error,) = read(file, drop=False)
    assert index.boxes.tolist() == [[10, 20, 40, 25]] * 2
    assert index.ends.tolist() == [1, 2]
    assert (dropped.severity, error.severity) == ("dropped", "error")
    assert dropped.detail.startswith("annotation 2 of image 900, box")
    assert dropped.file == error.file == str(file)


@pytest.mark.parametrize("name", ["../../a.jpg", "/etc/a.jpg", "x/../../../a.jpg", "../../coco", "../../coco2/a.jpg"])
def test_a_file_name_outside_the_folder_is_refused(make_coco: MakeCOCO, name: str) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    edit(file, lambda content: content["images"][0].update(file_name=name))
    problem = only_problem(file)
    assert (problem.severity, problem.kind) == ("error", "image outside the data set's folder")
    assert problem.detail.startswith(f"image 7 ({name})")


@pytest.mark.parametrize("name", ["", ".", "sub"])
def test_a_file_name_of_a_folder_is_a_missing_image(make_coco: MakeCOCO, name: str) -> None:
    file = make_coco(IMAGES, [])
    (file.parent / "train" / "sub").mkdir()
    edit(file, lambda content: content["images"][0].update(file_name=name))
    assert only_problem(file).kind == "missing image"


@pytest.mark.parametrize("size", [0, -4])
def test_an_image_without_size_is_named(make_coco: MakeCOCO, size: int) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    edit(file, lambda content: content["images"][0].update(width=size))
    problem = only_problem(file)
    assert (problem.severity, problem.kind) == ("error", "image size")
    assert problem.detail.startswith(f"image 7 (a.jpg): height is 60, width is {size}, expected 1 or more")


@pytest.mark.parametrize("text", ["", '{"images": [', "no JSON", '{"images": [], "annotations": []', "[" * 100000])
def test_json_that_is_cut_or_none_is_named(make_coco: MakeCOCO, text: str) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    file.write_text(text)
    index, (problem,) = read(file)
    assert (problem.severity, problem.kind, problem.file) == ("error", "JSON that can't be read", str(file))
    assert len(index) == 0


def test_a_file_cut_in_its_middle_is_named(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    file.write_bytes(file.read_bytes()[:100])
    assert only_problem(file).kind == "JSON that can't be read"


def test_a_missing_file_is_named(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    file.unlink()
    problem = only_problem(file)
    assert (problem.severity, problem.file) == ("error", str(file))


@pytest.mark.parametrize("text", ["[]", "5", "null", '{"images": [], "annotations": []}', '{"images": {}}'])
def test_json_of_another_kind_is_named(make_coco: MakeCOCO, text: str) -> None:
    file = make_coco(IMAGES, [])
    file.write_text(text)
    problem = only_problem(file)
    assert (problem.severity, problem.kind, problem.file) == ("error", "no COCO annotations", str(file))


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
@pytest.mark.parametrize("value", [None, "x", [1, 2], True, {"0": 1, "1": 2, "2": 3, "3": 4}, 10**400, 2.5, "1_0"])
def test_an_annotation_that_cannot_be_read_is_named(make_coco: MakeCOCO, key: str, value: object) -> None:
    file = make_coco(IMAGES, [annotation(1, 7), annotation(2, 900) | {key: value}])
    problem = only_problem(file)
    assert (problem.severity, problem.kind, problem.file) == ("error", "annotation record", str(file))
    assert problem.detail.startswith("annotations[1] (id")
    assert f": {key} is " in problem.detail
    assert "expected" in problem.detail


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("images", "image record"),
        ("annotations", "annotation record"),
        ("categories", "category record"),
    ],
)
@pytest.mark.parametrize("record", [None, 5, "x", [], {}])
def test_a_record_of_another_kind_is_named(make_coco: MakeCOCO, section: str, kind: str, record: object) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    edit(file, lambda content: content[section].append(record))
    problem = only_problem(file)
    assert (problem.severity, problem.kind, problem.file) == ("error", kind, str(file))
    assert problem.detail.startswith(f"{section}[{1 if section == 'annotations' else 2}]: ")


@pytest.mark.parametrize("entry", [{"annotation": "train.json", "images": "x"}, {"images": "train"}, {}])
def test_an_entry_that_is_no_coco_split_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="annotations"):
        read_coco(tmp_path, entry, CLASSES, drop=True, exif="apply")


# values of other types


@pytest.mark.parametrize(
    ("value", "crowd"),
    [("0", False), ("1", True), ("false", False), ("True", True), (False, False), (1.0, True), (" 0.0 ", False)],
)
def test_a_flag_may_be_text(make_coco: MakeCOCO, value: object, crowd: bool) -> None:
    index, problems = read(make_coco(IMAGES, [annotation(1, 7, iscrowd=value)]))
    assert (index.ignore.tolist(), problems) == ([crowd], [])


@pytest.mark.parametrize("value", ["no", "", None, 2, -1, [], "2"])
def test_another_flag_is_refused(make_coco: MakeCOCO, value: object) -> None:
    problem = only_problem(make_coco(IMAGES, [annotation(1, 7, iscrowd=value)]))
    assert problem.detail.startswith("annotations[0] (id 1, image_id 7): iscrowd is ")
    assert problem.detail.endswith("expected 0 or 1")


def test_numbers_may_be_text(make_coco: MakeCOCO) -> None:
    record = {"id": "1", "image_id": "7", "category_id": "3", "bbox": ["10", "20.5", "3e1", 5], "area": "77.5"}
    index, problems = read(make_coco(IMAGES, [record]))
    assert (index.boxes.tolist(), index.areas.tolist(), problems) == ([[10, 20.5, 40, 25.5]], [77.5], [])


@pytest.mark.parametrize(
    "bbox", ["1234", {"x": 1, "y": 2, "width": 3, "height": 4}, [1, 2, 3], [1, 2, 3, None], [1] * 5]
)
def test_a_box_is_a_list_of_four_numbers(make_coco: MakeCOCO, bbox: object) -> None:
    problem = only_problem(make_coco(IMAGES, [annotation(1, 7, bbox=bbox)]))
    assert "bbox is " in problem.detail
    assert "expected [x, y, width, height]" in problem.detail


def test_a_missing_box_beside_a_polygon_says_what_to_add(make_coco: MakeCOCO) -> None:
    record = annotation(1, 7, segmentation=[[1, 1, 9, 1, 9, 9]])
    del record["bbox"]
    problem = only_problem(make_coco(IMAGES, [record]))
    assert "bbox is missing, expected [x, y, width, height]" in problem.detail
    assert "add the box" in problem.detail


@pytest.mark.parametrize("area", [1e39, 1e12, -1, "inf", float("nan"), 10**400, "x", [5], None, True])
def test_an_area_that_no_image_has_is_refused(make_coco: MakeCOCO, area: object) -> None:
    problem = only_problem(make_coco(IMAGES, [annotation(1, 7, area=area)]))
    assert "area is " in problem.detail


@pytest.mark.parametrize("area", [1.0, 0, 0.03, 4800])
def test_areas_that_do_not_fit_their_boxes_are_noted(make_coco: MakeCOCO, area: float) -> None:
    _, (problem,) = read(make_coco(IMAGES, [annotation(1, 7, area=area), annotation(2, 900, area=area)]))
    assert (problem.severity, problem.kind) == ("note", "areas that don't fit their boxes, so that sizes are wrong")
    assert problem.detail.startswith(f"2 of 2; annotation 1 of image 7 has area {area:g} and a box of 30x5")


# categories


def test_two_categories_of_one_name_that_the_card_lacks_do_no_harm(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)], categories={3: "cat", 18: "dog", 5: "N/A", 6: "N/A"})
    index, problems = read(file)
    assert (index.category_ids, problems) == ((18, 3), [])


# images


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "../train/a.jpg"])
def test_one_file_under_two_ids_is_refused(make_coco: MakeCOCO, name: str) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    edit(file, lambda content: content["images"][1].update(file_name=name))
    problem = only_problem(file)
    assert (problem.severity, problem.kind) == ("error", "image file under two ids")
    assert problem.detail.startswith(f"image 7 and image 900 ({name}); ")


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("train\\a.jpg", "a.jpg"),
        ("Capture_d%C3%A9cran%201.jpg", "Capture_décran 1.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("a.JPG", "a.jpg"),
        ("a.png", "a.jpg"),
        ("a", "a.jpg"),
        ("A.jpg", "a.jpg"),
        ("a.jpg ", "a.jpg"),
        ("train/a.jpg", "a.jpg"),
        ("C:\\data\\train\\a.jpg", "a.jpg"),
        ("sub/a.jpg", "a.jpg"),
    ],
)
def test_a_missing_image_is_found_under_the_name_that_is_meant(make_coco: MakeCOCO, written: str, stored: str) -> None:
    file = make_coco({7: stored}, [])
    edit(file, lambda content: content["images"][0].update(file_name=written))
    problem = only_problem(file)
    assert problem.kind == "missing image"
    assert f"image 7 ({written}) of {file}; {stored!r} is there" in problem.detail


def test_a_missing_image_that_nothing_resembles_has_no_hint(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    edit(file, lambda content: content["images"][0].update(file_name="c.jpg"))
    assert "is there" not in only_problem(file).detail


def test_a_record_without_a_size_has_that_of_the_image(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    edit(file, lambda content: [content["images"][0].pop(key) for key in ("height", "width")])
    index, problems = read(file)
    assert (index.sizes.tolist(), problems) == ([[60, 80], [60, 80]], [])
    edit(file, lambda content: content["images"][1].pop("height"))
    problem = only_problem(file)
    assert problem.detail == "images[1]: height is missing, expected a whole number"


def test_a_file_without_annotations_has_no_ground_truth(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [])
    assert read(file)[0].has_ground_truth  # that no image has an object is known
    edit(file, lambda content: content.pop("annotations"))
    index, (problem,) = read(file)
    assert (len(index), index.has_ground_truth, index.category_ids) == (2, False, (18, 3))
    assert (problem.severity, problem.kind) == ("note", "no ground truth")


def test_a_byte_order_mark_does_no_harm(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(1, 7)])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(file)[1] == []


def test_boxes_are_scaled_to_an_image_of_another_resolution(make_coco: MakeCOCO) -> None:
    file = make_coco(IMAGES, [annotation(1, 7, area=40), annotation(2, 900)])
    edit(file, lambda content: content["images"][0].update(height=30, width=40))
    index, (problem,) = read_coco(file.parent, ENTRY, CLASSES, drop=True, exif="apply", other_size="scale")
    assert index.sizes.tolist() == [[60, 80], [60, 80]]
    assert (index.boxes.tolist(), index.areas.tolist()) == ([[20, 40, 80, 50], [10, 20, 40, 25]], [160, 150])
    assert (problem.severity, problem.detail) == ("note", "1 image")


# masks

POLYGON = [[10, 20, 40, 20, 40, 25, 10, 25]]
CROWD = {"size": [60, 80], "counts": [60 * 10 + 20, 5, 60 * 70 - 25]}  # five pixels of column 10


def masks_of(index: AnnotationIndex, row: int) -> Tensor:
    masks = index.target(row, fields=("masks",)).masks
    assert masks is not None
    return masks


def test_masks_of_polygons_and_crowds_are_read_on_request(make_coco: MakeCOCO) -> None:
    crowd = annotation(2, 900, segmentation=CROWD, iscrowd=1)
    file = make_coco(IMAGES, [crowd, annotation(1, 7, segmentation=POLYGON), annotation(3, 900, bbox=[0, 0, 0, 5])])
    assert not read(file)[0].fields
    index, problems = read(file, fields=("masks",))
    assert [problem.kind for problem in problems] == ["box outside the image or without area"]
    assert masks_of(index, 1)[0].nonzero().tolist() == [[y, 10] for y in range(20, 25)]
    assert index.ignore.tolist() == [False, True]
    polygon = masks_of(index, 0)
    assert (polygon.shape, int(polygon[0, 20:25, 10:40].sum()), int(polygon.sum())) == ((1, 60, 80), 150, 150)
    assert index.target(0).masks is None


@pytest.mark.parametrize("segmentation", [[], None])
def test_a_file_without_any_segmentation_has_no_masks_and_no_problems(
    make_coco: MakeCOCO, segmentation: object
) -> None:
    index, problems = read(make_coco(IMAGES, [annotation(1, 7, segmentation=segmentation)]), fields=("masks",))
    assert (index.fields, problems) == ({}, [])


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "segmentation is [], expected polygons or an RLE"),
        (None, "segmentation is None, expected polygons or an RLE"),
        ([[1, 1, 2, 1]], "polygon 1 is [1, 1, 2, 1], expected x and y of at least 3 points"),
        ({"size": [60, 80], "counts": [1, 2]}, "RLE counts sum to 3, the image has 60 * 80 pixels"),
        ([[90, 1, 95, 1, 95, 9]], "its mask covers no pixel of the image"),
    ],
)
def test_an_object_without_a_mask_keeps_its_box_and_is_named(
    make_coco: MakeCOCO, segmentation: object, reason: str
) -> None:
    file = make_coco(IMAGES, [annotation(5, 7, segmentation=segmentation), annotation(6, 7, segmentation=POLYGON)])
    index, (problem,) = read(file, fields=("masks",))
    assert (problem.severity, problem.file) == ("dropped", str(file))
    assert problem.kind == "mask that is missing or can't be used; the object's box is kept"
    assert problem.detail == f"annotation 5 of image 7: {reason}"
    assert index.boxes.tolist() == [[10, 20, 40, 25]] * 2
    assert [bool(mask.any()) for mask in masks_of(index, 0)] == [False, True]


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 on numpy 2
@pytest.mark.parametrize(("split", "objects"), [("train", 746), ("val", 712)])
def test_all_masks_of_coco128_are_those_of_pycocotools(data_root_for_tests: Path, split: str, objects: int) -> None:
    folder = data_root_for_tests / "coco128"
    entry = {"annotations": f"annotations/instances_seg_{split}2017.json", "images": f"{split}2017"}
    coco = COCO(str(folder / entry["annotations"]))
    classes = tuple(category["name"] for category in coco.dataset["categories"])
    index, problems = read_coco(folder, entry, classes, drop=True, exif="apply", fields=("masks",))
    assert (len(index.boxes), problems) == (objects, [])
    for row, image in enumerate(index.image_ids.tolist()):
        masks = masks_of(index, row)
        expected = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(image))]
        np.testing.assert_array_equal(masks, np.reshape(expected, masks.shape))


# large files


def test_a_file_with_lists_within_records_reads_as_one_without(make_coco: MakeCOCO) -> None:
    records = [annotation(number, 7 if number % 2 else 900, bbox=[number, 1, 5.5, 6]) for number in range(1, 9)]
    plain, _ = read(make_coco(IMAGES, records))
    nested, problems = read(make_coco(IMAGES, [record | {"attributes": [{"a": 1}, {"b": 2}]} for record in records]))
    assert problems == []
    assert nested.boxes.tolist() == plain.boxes.tolist()


def test_a_wrong_record_keeps_its_place_among_good_ones(make_coco: MakeCOCO) -> None:
    records = [annotation(1, 7), annotation(2, 7, 5), annotation(3, 7, bbox="x"), annotation(4, 8), annotation(4, 7)]
    index, problems = read(make_coco(IMAGES, [*records, annotation(5, 900)]))
    assert index.ends.tolist() == [1, 2]
    assert [problem.kind for problem in problems] == [
        "category id out of range",
        "annotation record",
        "annotation of an image that is not listed",
        "duplicate annotation id",
    ]
    assert problems[1].detail.startswith("annotations[2] (id 3, image_id 7): bbox is ")
