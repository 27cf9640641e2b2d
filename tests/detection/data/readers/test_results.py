"""Mirrors detection/data/readers/results.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.readers.results import Known, Results, read_results
from detection.masks import decode, encode

KNOWN = Known(source="truth.json", image_ids=(7, 3), sizes=((40, 60), None), category_ids=(18, 44))
GOOD = {"image_id": 7, "category_id": 18, "bbox": [1.5, 2, 10, 20], "score": 0.75}

Read = Callable[..., Results]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads what is written as JSON into results.json."""

    def read(content: Any) -> Results:
        (tmp_path / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_results(tmp_path / "results.json", KNOWN)

    return read


def test_detections_stand_by_image_in_the_order_of_the_annotations(read: Read) -> None:
    exact = 0.1 + 1e-15
    found = read([GOOD | {"image_id": 3, "score": exact}, GOOD, GOOD | {"category_id": 44, "bbox": [0, 0, 1, 0.0]}])
    assert found.ends.tolist() == [2, 3]
    assert found.labels[found.rows(0)].tolist() == [0, 1]
    assert found.boxes.tolist() == [[1.5, 2, 11.5, 22], [0, 0, 1, 0], [1.5, 2, 11.5, 22]]
    assert found.scores[found.rows(1)].tolist() == [exact]
    assert found.masks is None


def test_a_mask_gives_the_box_where_there_is_none(read: Read) -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[10:20, 30:50] = True
    rle = encode(mask)
    as_text = {"size": [40, 60], "counts": rle["counts"].decode()}
    bare = {key: value for key, value in GOOD.items() if key != "bbox"}
    polygon = [[30, 10, 50, 10, 50, 20, 30, 20]]
    found = read([bare | {"segmentation": as_text}, GOOD | {"segmentation": polygon}])
    assert found.boxes.tolist() == [[30, 10, 50, 20], [1.5, 2, 11.5, 22]]
    assert found.masks is not None
    assert all(np.array_equal(decode([rle], (40, 60))[0], mask) for rle in found.masks)


def test_no_detections(read: Read) -> None:
    found = read([])
    assert (found.ends.tolist(), found.boxes.shape) == ([0, 0], (0, 4))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_id": 9}, "image_id is 9, expected an image of truth.json"),
        ({"category_id": 2}, "category_id is 2, expected one of 18, 44"),
        ({"score": None}, "score is None"),
        ({"score": float("nan")}, "score is nan"),
        ({"bbox": [1, 2, 3]}, "bbox is"),
        ({"bbox": [1, 2, -3, 4]}, "sides not below 0"),
        ({"bbox": None}, "bbox is missing"),
        ({"image_id": 3, "segmentation": [[0, 0, 1, 0, 1, 1]]}, "give width and height"),
        ({"segmentation": {"size": [60, 40], "counts": "0"}}, "RLE size"),
    ],
)
def test_the_file_and_the_entry_are_named(read: Read, changes: dict[str, Any], told: str) -> None:
    entries = [GOOD, GOOD | changes]
    if "segmentation" in changes:
        entries[0] = GOOD | {"segmentation": [[0, 0, 9, 0, 9, 9]]}
    with pytest.raises(ValueError, match=r"results\.json") as raised:
        read(entries)
    assert "entry 1: " in str(raised.value)
    assert told in str(raised.value)


def test_masks_of_some_detections_are_an_error(read: Read) -> None:
    with pytest.raises(ValueError, match="entry 1: segmentation is missing"):
        read([GOOD | {"segmentation": [[0, 0, 9, 0, 9, 9]]}, GOOD])


@pytest.mark.parametrize("content", ['{"annotations": []}', "{}", "7", "[", '{"annotations": {}}'])
def test_what_is_no_list_is_refused(read: Read, content: str) -> None:
    with pytest.raises(ValueError, match=r"results\.json.* expected"):
        read(content)


def test_labels_in_the_place_of_ids_are_guessed(read: Read) -> None:
    with pytest.raises(ValueError, match="look like labels"):
        read([GOOD | {"category_id": 0}, GOOD | {"category_id": 1}])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json can't be read"):
        read_results(tmp_path / "none.json", KNOWN)


POSED = GOOD | {"keypoints": [3, 4, 0.5, 9.5, 6, 0.25]}


def test_keypoints_give_the_box_where_there_is_none(tmp_path: Path) -> None:
    path, known = tmp_path / "results.json", replace(KNOWN, keypoints=("nose", "tail"))
    bare = {key: value for key, value in POSED.items() if key != "bbox"}
    path.write_text(json.dumps([bare, POSED]))
    found = read_results(path, known)
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[3.5, 4.5, 0.5], [10, 6.5, 0.25]]] * 2
    assert found.boxes.tolist() == [[3.5, 4.5, 10, 6.5], [1.5, 2, 11.5, 22]]


def test_keypoints_are_not_read_beside_annotations_without(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([POSED]))
    assert read_results(path, KNOWN).keypoints is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keypoints": POSED["keypoints"][:3]}, "entry 1: keypoints have 3 numbers, expected 6"),
        ({"keypoints": [float("inf"), 4, 1, 9, 6, 1]}, "entry 1: x of keypoint 'nose' is inf"),
        ({}, "entry 1: keypoints is missing"),
    ],
)
def test_keypoints_that_cannot_be_used_are_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([POSED, GOOD | changes]))
    with pytest.raises(ValueError, match=r"results\.json") as raised:
        read_results(path, replace(KNOWN, keypoints=("nose", "tail")))
    assert told in str(raised.value)


def test_keypoints_that_the_annotations_do_not_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([POSED]))
    with pytest.raises(ValueError, match=r"results\.json has keypoints, which truth\.json has not: two kinds"):
        read_results(path, replace(KNOWN, no_keypoints="two kinds"))
