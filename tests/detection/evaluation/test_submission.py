"""Files for the challenges' servers: known lines, and COCO's own reader."""

import contextlib
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from detection.evaluation.record import Record
from detection.evaluation.submission import write_coco, write_imagenet_det, write_imagenet_loc, write_voc
from detection.masks import encode


@pytest.fixture
def records(record) -> tuple[Record, Record]:
    """The whole image is (0, 0, 60, 40); VOC calls that 1 1 60 40, ImageNet 0 0 59 39."""
    names = [{"size": (40, 60), "file_name": f"JPEGImages/2008_00000{i}.jpg"} for i in (1, 2)]
    found = [([0, 0, 60, 40], 1, 0.5), ([2.5, 3, 10, 12], 0, 0.5)]
    return record([], found, image_id=7, **names[0]), record(image_id=9, **names[1])


def test_voc_counts_pixels_from_1(records: list[Record], tmp_path) -> None:
    files = write_voc(records, ("cat", "dog", "cow"), tmp_path, year="VOC2012", split="test", first_pixel=1)
    main = tmp_path / "results" / "VOC2012" / "Main"
    assert files == [main / f"comp4_det_test_{name}.txt" for name in ("cat", "dog", "cow")]
    assert [file.read_text() for file in files] == [
        "2008_000001 0.500000000 3.500 4.000 10.000 12.000\n",
        "2008_000001 0.500000000 1.000 1.000 60.000 40.000\n",
        "",
    ]


def test_imagenet_counts_pixels_from_0_and_classes_from_1(records: list[Record], tmp_path) -> None:
    (file,) = write_imagenet_det(records, tmp_path, split="test", first_pixel=0)
    assert file.read_text().splitlines() == [
        "7 2 0.500000000 0.000 0.000 59.000 39.000",
        "7 1 0.500000000 2.500 3.000 9.000 11.000",
    ]


LOCALIZED = {0: "30 0 0 59 39 7 2 3 9 11\n7 59 39 59 39 30 0 0 0 0\n"}  # first pixel -> lines
LOCALIZED[1] = "30 1 1 60 40 7 3 4 10 12\n7 60 40 60 40 30 1 1 1 1\n"


@pytest.mark.parametrize(("first_pixel", "lines"), LOCALIZED.items())
def test_localisation_has_a_line_of_whole_pixels_an_image(tmp_path, first_pixel: int, lines: str) -> None:
    guesses = [
        (np.array([1, 0]), np.array([[0, 0, 60, 40], [2.4, 2.6, 9.8, 12.3]], np.float32)),
        (np.array([0, 1]), np.array([[60, 40, 60, 40], [0, 0, 0, 0.3]], np.float32)),  # thinner than a pixel
    ]
    file = write_imagenet_loc(guesses, tmp_path, class_numbers=(7, 30), split="test", first_pixel=first_pixel)
    assert file == tmp_path / "clsloc_test.txt"
    assert file.read_text() == lines


@pytest.mark.parametrize("kinds", [["bbox"], ["bbox", "segm"]])
def test_coco_reads_what_was_written(kinds: list[str], records: list[Record], tmp_path) -> None:
    whole = encode(np.ones((40, 60), np.bool_))
    masked = [replace(r, masks=(whole,) * len(r.boxes), gt_masks=()) for r in records]
    files = write_coco(masked if "segm" in kinds else records, (3, 5), tmp_path, split="test-dev2017")
    assert files == [tmp_path / kind / "detections_test-dev2017_resdet_results.json" for kind in kinds]
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = {"images": [{"id": 7, "height": 40, "width": 60}, {"id": 9, "height": 40, "width": 60}]}
        truth.dataset |= {"categories": [{"id": 3}, {"id": 5}], "annotations": []}
        truth.createIndex()
        read = [truth.loadRes(str(file)).dataset["annotations"] for file in files]
    assert [(found["image_id"], found["category_id"]) for found in read[0]] == [(7, 5), (7, 3)]
    assert read[0][0]["bbox"] == [0, 0, 60, 40]
    assert all("segmentation" not in entry for entry in json.loads(files[0].read_text()))
    for file, entries in zip(files[1:], read[1:], strict=True):
        assert [found["area"] for found in entries] == [2400, 2400]  # of the masks, not of the boxes
        assert all("bbox" not in entry for entry in json.loads(file.read_text()))


def test_coco_gets_keypoints_without_boxes_as_numbers_of_pixels(records: list[Record], tmp_path) -> None:
    points = np.array([[[10.5, 20.25, 0.75]], [[3.5, 4.5, 0.5]]], np.float32)
    files = write_coco([replace(records[0], keypoints=points)], (17, 18), tmp_path, split="test-dev2017")
    assert [file.parent.name for file in files] == ["bbox", "keypoints"]
    assert json.loads(files[1].read_text()) == [
        {"image_id": 7, "category_id": 18, "score": 0.5, "keypoints": [10, 19.75, 0.75]},
        {"image_id": 7, "category_id": 17, "score": 0.5, "keypoints": [3, 4, 0.5]},
    ]
    assert "keypoints" not in json.loads(files[0].read_text())[0]
