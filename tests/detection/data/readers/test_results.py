"""Mirrors detection/data/readers/results.py."""

import json
from dataclasses import replace

import numpy as np
import pytest

from detection.data.readers.results import Known, read_results
from detection.masks import decode, encode

KNOWN = Known(source="truth.json", image_ids=(7, 3), sizes=((40, 60), None), category_ids=(18, 44))
POSES = replace(KNOWN, keypoints=("nose", "tail"))
GOOD = {"image_id": 7, "category_id": 18, "bbox": [1.5, 2, 10, 20], "score": 0.75}
POSED, MASKED = GOOD | {"keypoints": [3, 4, 0.5, 9.5, 6, 0.25]}, GOOD | {"segmentation": [[0, 0, 9, 0, 9, 9]]}


@pytest.fixture
def read(tmp_path):
    """Reads what is written as JSON into results.json."""

    def read(content, known=KNOWN):
        (tmp_path / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_results(tmp_path / "results.json", known)

    return read


def without_box(entry):
    return {key: value for key, value in entry.items() if key != "bbox"}


def test_detections_stand_by_image_in_the_order_of_the_annotations(read) -> None:
    exact = 0.1 + 1e-15
    found = read([GOOD | {"image_id": 3, "score": exact}, GOOD, GOOD | {"category_id": 44, "bbox": [0, 0, 1, 0.0]}])
    assert (found.ends.tolist(), found.labels[found.rows(0)].tolist(), found.masks) == ([2, 3], [0, 1], None)
    assert found.boxes.tolist() == [[1.5, 2, 11.5, 22], [0, 0, 1, 0], [1.5, 2, 11.5, 22]]
    assert found.scores[found.rows(1)].tolist() == [exact]
    found = read([])
    assert (found.ends.tolist(), found.boxes.shape) == ([0, 0], (0, 4))


def test_masks_and_keypoints_give_the_box_where_there_is_none(read) -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[10:20, 30:50] = True
    as_text = {"size": [40, 60], "counts": encode(mask)["counts"].decode()}
    polygon = [[30, 10, 50, 10, 50, 20, 30, 20]]
    found = read([without_box(GOOD) | {"segmentation": as_text}, GOOD | {"segmentation": polygon}])
    assert found.boxes.tolist() == [[30, 10, 50, 20], [1.5, 2, 11.5, 22]]
    assert all(np.array_equal(decode([rle], (40, 60))[0], mask) for rle in found.masks)
    found = read([without_box(POSED), POSED], POSES)
    assert found.keypoints.tolist() == [[[3.5, 4.5, 0.5], [10, 6.5, 0.25]]] * 2
    assert found.boxes.tolist() == [[3.5, 4.5, 10, 6.5], [1.5, 2, 11.5, 22]]
    assert read([POSED]).keypoints is None  # beside annotations without
    with pytest.raises(ValueError, match=r"results\.json has keypoints, which truth\.json has not: two kinds"):
        read([POSED], replace(KNOWN, no_keypoints="two kinds"))


def test_the_file_and_the_entry_are_named(read) -> None:
    for first, changes, told in [
        (GOOD, {"image_id": 9}, "image_id is 9, expected an image of truth.json"),
        (GOOD, {"category_id": 2}, "category_id is 2, expected one of 18, 44"),
        (GOOD, {"score": None}, "score is None"),
        (GOOD, {"score": float("nan")}, "score is nan"),
        (GOOD, {"bbox": [1, 2, 3]}, "bbox is"),
        (GOOD, {"bbox": [1, 2, -3, 4]}, "bbox is"),
        (GOOD, {"bbox": None}, "bbox is missing"),
        (MASKED, {"image_id": 3, "segmentation": [[0, 0, 1, 0, 1, 1]]}, "segmentation needs the size of its image"),
        (MASKED, {"segmentation": {"size": [60, 40], "counts": "0"}}, "RLE size"),
        (MASKED, {}, "segmentation is missing"),
        (POSED, {"keypoints": POSED["keypoints"][:3]}, "keypoints have 3 numbers"),
        (POSED, {"keypoints": [float("inf"), 4, 1, 9, 6, 1]}, "x of keypoint 'nose' is inf"),
        (POSED, {}, "keypoints is missing"),
    ]:
        with pytest.raises(ValueError, match=r"results\.json") as raised:
            read([first, GOOD | changes], POSES if first is POSED else KNOWN)
        assert f"entry 1: {told}" in str(raised.value)


def test_what_is_no_list_of_detections_is_refused(read, tmp_path) -> None:
    for content in ('{"annotations": []}', "{}", "7", "[", '{"annotations": {}}'):
        with pytest.raises(ValueError, match=r"results\.json.* expected"):
            read(content)
    with pytest.raises(ValueError, match="look like labels"):
        read([GOOD | {"category_id": 0}, GOOD | {"category_id": 1}])
    with pytest.raises(ValueError, match=r"none\.json can't be read"):
        read_results(tmp_path / "none.json", KNOWN)
