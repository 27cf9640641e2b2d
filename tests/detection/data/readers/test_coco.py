"""Mirrors detection/data/readers/coco.py, coco_images.py and coco_objects.py."""

import json
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from detection.data.readers.coco import read_coco

CLASSES = ("dog", "cat")  # not in the order of the ids
IMAGES = {7: "a.jpg", 900: "b.jpg"}


def annotation(number, image=7, category=3, **others):
    return {"id": number, "image_id": image, "category_id": category, "bbox": [10, 20, 30, 5], **others}


def read(file, *, drop=True, **options):
    entry = {"annotations": file.name, "images": "train"}
    return read_coco(file.parent, entry, CLASSES, drop=drop, exif="apply", **options)


def only_problem(file):
    _, problems = read(file)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


def test_known_boxes_and_ids_with_gaps(make_coco) -> None:
    some = [annotation(50, 900, 18), annotation(4, bbox=[0.5, 1.5, 10.25, 2], area=7.5), annotation(5, iscrowd=1)]
    file = make_coco(IMAGES, some)
    index, problems = read(file)
    assert (problems, index.fields) == ([], {})
    assert index.boxes.tolist() == [[0.5, 1.5, 10.75, 3.5], [10, 20, 40, 25], [10, 20, 40, 25]]
    assert (index.labels.tolist(), index.category_ids) == ([1, 1, 0], (18, 3))  # 3 is the cat, 18 the dog
    assert (index.image_ids.tolist(), index.sizes.tolist()) == ([7, 900], [[60, 80]] * 2)
    assert index.areas.tolist() == [7.5, 150, 150]  # those of the file, else of the box
    assert (index.ignore.tolist(), index.num_wanted().tolist()) == ([False, True, False], [1, 1])
    assert list(index.paths.all()) == [str(file.parent / "train" / name) for name in IMAGES.values()]


def test_files_without_objects_or_annotations(make_coco, edit_json) -> None:
    file = make_coco(IMAGES, [])
    (file.parent / "train/sub").mkdir()
    (file.parent / "train/a.jpg").rename(file.parent / "train/sub/a.jpg")
    for name in ("sub/a.jpg", "../train/sub/a.jpg"):
        edit_json(file, lambda content, name=name: content["images"][0].update(file_name=name))
        index, problems = read(file)
        assert (len(index), len(index.target(0)), problems, index.has_ground_truth) == (2, 0, [], True)
        assert index.paths[0] == str(file.parent / "train/sub/a.jpg")
    edit_json(file, lambda content: content.pop("annotations"))
    index, (problem,) = read(file)
    assert (len(index), index.has_ground_truth, index.category_ids) == (2, False, (18, 3))
    assert (problem.severity, problem.kind) == ("note", "no ground truth")


def test_classes_that_the_file_or_the_card_lacks_do_no_harm_without_objects(make_coco) -> None:
    index, (problem,) = read(make_coco(IMAGES, [annotation(1)], categories={3: "cat", 5: "cow"}))
    assert (index.labels.tolist(), problem.severity) == ([1], "note")
    assert "dog" in problem.detail
    assert "cow" in problem.detail
    categories = {3: "cat", 18: "dog", 5: "N/A", 6: "N/A"}
    index, problems = read(make_coco(IMAGES, [annotation(1)], categories=categories))
    assert (index.category_ids, problems) == ((18, 3), [])
    problem = only_problem(make_coco(IMAGES, [annotation(1)], categories={3: "cat", 4: "cat", 18: "dog"}))
    assert (problem.severity, "'cat' has the ids 3 and 4" in problem.detail) == ("error", True)


def test_sizes_that_are_missing_or_others_come_from_the_images(make_coco, edit_json) -> None:
    file = make_coco(IMAGES, [annotation(1, area=40), annotation(2, 900)])
    edit_json(file, lambda content: content["images"][0].update(height=30, width=40))
    edit_json(file, lambda content: [content["images"][1].pop(key) for key in ("height", "width")])
    index, (problem,) = read(file, other_size="scale")
    assert (index.sizes.tolist(), index.areas.tolist()) == ([[60, 80], [60, 80]], [160, 150])
    assert index.boxes.tolist() == [[20, 40, 80, 50], [10, 20, 40, 25]]
    assert (problem.severity, problem.count) == ("note", 1)


def test_texts_and_a_byte_order_mark_are_read(make_coco) -> None:
    text = {"id": "1", "image_id": "7", "category_id": "3", "bbox": ["10", "20.5", "3e1", 5], "area": "77.5"}
    text["attributes"] = [{"a": 1}, {"b": 2}]
    file = make_coco(IMAGES, [text, annotation(2, iscrowd="0"), annotation(3, iscrowd="True")])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    index, problems = read(file)
    assert (index.boxes.tolist()[0], index.areas.tolist()[0], problems) == ([10, 20.5, 40, 25.5], 77.5, [])
    assert index.ignore.tolist() == [False, False, True]


def test_records_that_cannot_be_used_are_named(make_coco, edit_json) -> None:
    images = IMAGES | {4: "c.jpg", 10: "d.jpg", 11: "e.jpg", 12: "f.jpg"}
    file = make_coco(images, [annotation(1)], categories={3: "cat", 18: "dog", 5: "catt"})
    bad = [annotation(1, 900), annotation(5, 8), annotation(6, 7, 4), annotation(7, 7, 5)]
    values = {"bbox": "x", "image_id": 2.5, "category_id": True, "iscrowd": 2, "area": -1, "id": None}

    def change(content):
        content["images"][2].update(id=900)
        for image, width in zip(content["images"][3:], (0, -4, None), strict=True):
            image["width"] = width
        content["annotations"] += [*bad, *(annotation(8) | {key: value} for key, value in values.items())]
        no_box = {"id": 8, "image_id": 7, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]]}
        content["annotations"] += [no_box, annotation(9, 900)]
        content["categories"].append({"id": 3, "name": "dog"})

    edit_json(file, change)
    index, problems = read(file)
    assert index.ends.tolist() == [1, 2]
    expected = {
        "3 (dog)": "duplicate category id",
        "image 900 (c.jpg)": "duplicate image id",
        "image 10 (d.jpg): height is 60, width is 0": "image size",
        "image 11 (e.jpg): height is 60, width is -4": "image size",
        "images[5]: width is None": "image record",
        "annotation 1 of image 900": "duplicate annotation id",
        "annotation 5 of image 8": "annotation of an image that is not listed",
        "annotation 6 of image 7, category_id 4; the file has 3, 5, 18": "category id out of range",
        "annotation 7 of image 7, 'catt'; did you mean 'cat'?": "class that the card lacks",
        "annotations[11] (id 8, image_id 7): bbox is missing, expected [x, y, width, height]": "annotation record",
    }
    for row, (key, value) in enumerate(values.items(), start=5):
        record = annotation(8) | {key: value}
        said = f"annotations[{row}] (id {record['id']}, image_id {record['image_id']}): {key} is {value!r}"
        expected[said] = "annotation record"
    for said, kind in expected.items():
        (found,) = [problem for problem in problems if problem.detail.startswith(said)]
        assert (found.severity, found.kind, found.file) == ("error", kind, str(file))
    assert len([problem for problem in problems if problem.severity == "error"]) == len(expected)
    assert [problem.detail[:15] for problem in problems if "add the box" in problem.detail] == ["annotations[11]"]


def with_file_names(file, names):
    records = [{"id": number, "file_name": name, "height": 60, "width": 80} for number, name in enumerate(names, 10)]
    content = json.loads(file.read_text())
    content["images"] += records
    file.write_text(json.dumps(content))
    return read(file)


def test_file_names_that_lead_elsewhere_are_refused(make_coco) -> None:
    file = make_coco(IMAGES, [])
    (file.parent / "train/sub").mkdir()
    missing, twice = ["", ".", "sub", "unlike.gif"], ["a.jpg", "./a.jpg", "../train/a.jpg"]
    outside = ["../../a.jpg", "/etc/a.jpg", "x/../../../a.jpg", "../../coco", "../../coco2/a.jpg"]
    index, problems = with_file_names(file, [*missing, *outside, *twice])
    kinds = ["missing image", "image outside the data set's folder", "image file under two ids"]
    assert {problem.severity for problem in problems} == {"error"}
    for kind, names in zip(kinds, (missing, outside, twice), strict=True):
        details = [problem.detail for problem in problems if problem.kind == kind]
        assert all(f"({name})" in detail for name, detail in zip(names, details, strict=True)), details
    assert not any("is there" in problem.detail for problem in problems if problem.kind == kinds[0])
    assert index.image_ids.tolist() == [*IMAGES]


@pytest.mark.parametrize("stored", ["Capture_d\u00e9cran 1.jpg", "Capture_de\u0301cran 1.jpg"])
def test_a_missing_image_is_found_under_the_name_that_is_meant(make_coco, stored) -> None:
    file = make_coco({7: "a.jpg", 8: stored, 9: "gone.jpg"}, [annotation(1), annotation(2, 9)])
    (file.parent / "train/gone.jpg").unlink()
    same = ["train\\a.jpg", "a.JPG", "a.png", "a", "a.jpg ", "A.jpg", "C:\\data\\train\\a.jpg", "sub/a.jpg"]
    accents = ["Capture_d%C3%A9cran%201.jpg", "Capture_d\u00e9cran 1.JPG", "Capture_de\u0301cran 1.JPG"]
    index, (gone, *problems) = with_file_names(file, [*same, *accents])
    assert (gone.kind, gone.file) == ("missing image", str(file.parent / "train/gone.jpg"))
    assert gone.detail == f"image 9 (gone.jpg) of {file}"
    for name, problem in zip([*same, *accents], problems, strict=True):
        meant = stored if name in accents else "a.jpg"
        assert f"({name}) of {file}; {meant!r} is there" in problem.detail
    assert (index.image_ids.tolist(), len(index.boxes)) == ([7, 8], 1)


def test_records_of_another_kind_are_named(make_coco, edit_json) -> None:
    for name, kind in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
        file = make_coco(IMAGES, [annotation(1), annotation(2)])
        edit_json(file, lambda content, name=name: content[name].extend([None, 5, "x", [], {}]))
        _, problems = read(file)
        assert {(problem.severity, problem.kind) for problem in problems} == {("error", f"{kind} record")}
        assert [problem.detail.split(": ")[0] for problem in problems] == [f"{name}[{row}]" for row in range(2, 7)]


BROKEN = ["", '{"images": [', "no JSON", '{"images": [], "annotations": []', "[" * 100000, None]
OTHERS = ["[]", "5", "null", '{"images": [], "annotations": []}', '{"images": {}}']


def test_files_that_are_broken_of_another_kind_or_missing_are_named(make_coco) -> None:
    file = make_coco(IMAGES, [annotation(1)])
    whole = file.read_text()
    for text in [*BROKEN, *OTHERS]:
        file.write_text(whole[:100] if text is None else text)
        problem = only_problem(file)
        kind = "JSON that can't be read" if text in BROKEN else "no COCO annotations"
        assert (problem.severity, problem.kind, problem.file) == ("error", kind, str(file))
        assert len(read(file)[0]) == 0
    file.unlink()
    assert (only_problem(file).severity, only_problem(file).file) == ("error", str(file))
    for entry in ({"annotation": "train.json", "images": "x"}, {"images": "train"}, {}):
        with pytest.raises(ValueError, match="annotations"):
            read_coco(file.parent, entry, CLASSES, drop=True, exif="apply")


def test_bad_boxes_are_dropped_or_errors_and_areas_that_do_not_fit_them_noted(make_coco) -> None:
    file = make_coco(IMAGES, [annotation(1), annotation(2, 900, bbox=[float("nan"), 1, 5, 5]), annotation(3, 900)])
    (index, (dropped,)), (_, (error,)) = read(file), read(file, drop=False)
    assert (index.boxes.tolist(), index.ends.tolist()) == ([[10, 20, 40, 25]] * 2, [1, 2])
    assert (dropped.severity, error.severity, dropped.file) == ("dropped", "error", str(file))
    assert dropped.detail.startswith("annotation 2 of image 900, box")
    for bad in ({"area": -1}, {"iscrowd": 2}, {"bbox": "x", "attributes": [{"a": 1}, {"b": 2}]}):  # alone in its file
        problem = only_problem(make_coco(IMAGES, [annotation(1, **bad), annotation(2)]))
        assert (problem.kind, problem.detail[:20]) == ("annotation record", "annotations[0] (id 1")
    for area in (0, 0.03, 4800):
        problem = only_problem(make_coco(IMAGES, [annotation(1, area=area), annotation(2, 900, area=area)]))
        assert (problem.severity, problem.kind[:18]) == ("note", "areas that don't f")
        assert problem.detail.startswith(f"2 of 2; annotation 1 of image 7 has area {area:g} and a box of 30x5; leave")


POLYGON = [[10, 20, 40, 20, 40, 25, 10, 25]]
CROWD = {"size": [60, 80], "counts": [60 * 10 + 20, 5, 60 * 70 - 25]}  # five pixels of column 10


def masks_of(index, row) -> Any:
    return index.target(row, fields=("masks",)).masks


def test_masks_of_polygons_and_crowds_are_read_on_request(make_coco) -> None:
    crowd = annotation(2, 900, segmentation=CROWD, iscrowd=1)
    file = make_coco(IMAGES, [crowd, annotation(1, segmentation=POLYGON), annotation(3, 900, bbox=[0, 0, 0, 5])])
    index, problems = read(file, fields=("masks",))
    assert [problem.kind for problem in problems] == ["box outside the image or without area"]
    assert masks_of(index, 1)[0].nonzero().tolist() == [[y, 10] for y in range(20, 25)]
    polygon = masks_of(index, 0)
    assert (polygon.shape, int(polygon[0, 20:25, 10:40].sum()), int(polygon.sum())) == ((1, 60, 80), 150, 150)
    assert (index.target(0).masks, read(file)[0].fields) == (None, {})
    for none in ([], None):  # in the whole file
        index, problems = read(make_coco(IMAGES, [annotation(1, segmentation=none)]), fields=("masks",))
        assert (index.fields, problems) == ({}, [])


def test_an_object_without_a_mask_keeps_its_box_and_is_named(make_coco) -> None:
    reasons = [
        ([], "segmentation is []"),
        (None, "segmentation is None"),
        ([[1, 1, 2, 1]], "polygon 1 is [1, 1, 2, 1]"),
        ({"size": [60, 80], "counts": [1, 2]}, "RLE counts sum to 3"),
        ([[90, 1, 95, 1, 95, 9]], "its mask covers no pixel"),
    ]
    bad = [annotation(number, segmentation=value) for number, (value, _) in enumerate(reasons, start=1)]
    file = make_coco(IMAGES, [*bad, annotation(6, segmentation=POLYGON)])
    index, problems = read(file, fields=("masks",))
    for number, (problem, (_, reason)) in enumerate(zip(problems, reasons, strict=True), start=1):
        assert (problem.severity, problem.file, problem.kind[:20]) == ("dropped", str(file), "mask that is missing")
        assert problem.detail.startswith(f"annotation {number} of image 7: {reason}")
    assert index.boxes.tolist() == [[10, 20, 40, 25]] * 6
    assert [bool(mask.any()) for mask in masks_of(index, 0)] == [False] * 5 + [True]
    assert read(file)[1] == []


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 on numpy 2
def test_all_masks_of_coco128_are_those_of_pycocotools(data_root_for_tests) -> None:
    folder = data_root_for_tests / "coco128"
    entry = {"annotations": "annotations/instances_seg_train2017.json", "images": "train2017"}
    coco = COCO(str(folder / entry["annotations"]))
    classes = tuple(category["name"] for category in coco.dataset["categories"])
    index, problems = read_coco(folder, entry, classes, drop=True, exif="apply", fields=("masks",))
    assert (len(index.boxes), problems) == (746, [])
    for row, image in enumerate(index.image_ids.tolist()):
        expected = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(image))]
        np.testing.assert_array_equal(masks_of(index, row), np.reshape(expected, masks_of(index, row).shape))
