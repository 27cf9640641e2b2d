"""Mirrors detection/data/readers/truth.py and results.py."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from detection.data.readers.results import Known, read_results
from detection.data.readers.truth import read_truth
from detection.masks import decode, encode, is_empty

OBJECT = {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1.1, 2.2, 100, 4], "area": 300.5}
TRUTH = {
    "images": [{"id": 5, "file_name": "five.jpg", "height": 40, "width": 60}, {"id": 2, "height": 40, "width": 60}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}],
    "annotations": [OBJECT | {"image_id": 2, "category_id": 7, "iscrowd": 1}, OBJECT],
}
FACE = {"id": 7, "name": "cat", "keypoints": ["nose", "left_eye"], "skeleton": [[1, 2]]}
DOG = {"id": 90, "name": "dog"}


@pytest.fixture
def read(tmp_path):
    """Reads what is written as JSON: truth, or results beside what is ``known`` of it."""

    def read(content, known=None):
        file = tmp_path / ("results.json" if known else "truth.json")
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_results(file, known) if known else read_truth(file)

    return read


def test_numbers_are_kept_as_they_are_without_images(read) -> None:
    truth = read(TRUTH)
    assert (truth.class_names, truth.file_names, truth.masks) == (("cat", "dog"), ("five.jpg", "2"), None)
    assert (truth.known.image_ids, truth.known.category_ids) == ((5, 2), (7, 90))
    assert truth.boxes[truth.rows(0)].tolist() == [[1.1, 2.2, 101.1, 6.2]]  # not cut at the border, as pycocotools
    assert (truth.labels.tolist(), truth.ignore.tolist()) == ([1, 0], [False, True])
    assert truth.areas.tolist() == [300.5, 300.5]
    bare = {key: value for key, value in OBJECT.items() if key != "area"}
    assert read(TRUTH | {"annotations": [bare]}).areas.tolist() == [400]
    masked = OBJECT | {"segmentation": [[1, 1, 20, 1, 20, 20]]}
    masks = read(TRUTH | {"annotations": [masked, OBJECT]}).masks
    assert [is_empty(mask) for mask in masks] == [False, True]  # the second is unknown
    assert read(TRUTH | {"annotations": [masked], "images": [{"id": 5}]}).masks is None  # of unknown size
    truth = read({"images": [], "annotations": [], "categories": []})
    assert (truth.ends.tolist(), truth.boxes.shape, truth.class_names) == ([], (0, 4), ())


def test_the_file_and_the_record_are_named(read) -> None:
    for section, row, changes, told in [
        ("images", 1, {"id": 5}, "images[1]: id 5 occurs twice"),
        ("categories", 1, {"name": "dog"}, "categories[1]: id 7, name 'dog' occurs twice"),
        ("annotations", 0, {"image_id": 4}, "annotations[0]: image_id is 4"),
        ("annotations", 1, {"category_id": 4}, "annotations[1]: category_id is 4, expected one of 7, 90"),
        ("annotations", 1, {"bbox": [0, 0, 1, float("inf")]}, "annotations[1]: bbox is"),
        ("annotations", 1, {"iscrowd": 2}, "annotations[1]: iscrowd is 2"),
        ("annotations", 1, {"segmentation": [[1, 2, 3]]}, "mask in image 5"),
    ]:
        content = copy.deepcopy(TRUTH)
        content[section][row] |= changes
        with pytest.raises(ValueError, match=r"truth\.json") as raised:
            read(content)
        assert told in str(raised.value)
    for lacking in TRUTH:
        with pytest.raises(ValueError, match=rf"truth\.json .* without the list {lacking}"):
            read({key: value for key, value in TRUTH.items() if key != lacking})
    with pytest.raises(ValueError, match="--detections"):
        read([OBJECT])


def test_keypoints_keep_all_digits_and_are_not_labelled_where_an_object_has_none(read) -> None:
    seen = OBJECT | {"category_id": 7, "keypoints": [10.1, 20, 2, 0, 0, 0]}
    truth = read(TRUTH | {"categories": [FACE, DOG], "annotations": [seen, OBJECT]})
    assert truth.keypoint_spec.names == truth.known.keypoints == ("nose", "left_eye")
    assert truth.keypoints.tolist() == [[[10.6, 20.5, 2], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    wrong = OBJECT | {"keypoints": [1, 2, 7, 0, 0, 0]}
    with pytest.raises(ValueError, match=r"truth\.json: annotations\[0\]: visibility of keypoint 'nose' is 7"):
        read(TRUTH | {"categories": [FACE, DOG], "annotations": [wrong]})
    truth = read(TRUTH | {"categories": [FACE, DOG | {"keypoints": ["tail"]}]})  # which matters to keypoints alone
    assert truth.keypoints is None
    assert "category 'cat' has the 2 keypoints" in truth.known.no_keypoints


KNOWN = Known(source="truth.json", image_ids=(7, 3), sizes=((40, 60), None), category_ids=(18, 44))
POSES = replace(KNOWN, keypoints=("nose", "tail"))
GOOD = {"image_id": 7, "category_id": 18, "bbox": [1.5, 2, 10, 20], "score": 0.75}
POSED, MASKED = GOOD | {"keypoints": [3, 4, 0.5, 9.5, 6, 0.25]}, GOOD | {"segmentation": [[0, 0, 9, 0, 9, 9]]}


@pytest.fixture
def results(read):
    return lambda content, known=KNOWN: read(content, known)


def without_box(entry):
    return {key: value for key, value in entry.items() if key != "bbox"}


def test_detections_stand_by_image_in_the_order_of_the_annotations(results) -> None:
    exact = 0.1 + 1e-15
    found = results([GOOD | {"image_id": 3, "score": exact}, GOOD, GOOD | {"category_id": 44, "bbox": [0, 0, 1, 0.0]}])
    assert (found.ends.tolist(), found.labels[found.rows(0)].tolist(), found.masks) == ([2, 3], [0, 1], None)
    assert found.boxes.tolist() == [[1.5, 2, 11.5, 22], [0, 0, 1, 0], [1.5, 2, 11.5, 22]]
    assert found.scores[found.rows(1)].tolist() == [exact]
    found = results([])
    assert (found.ends.tolist(), found.boxes.shape) == ([0, 0], (0, 4))


def test_masks_and_keypoints_give_the_box_where_there_is_none(results) -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[10:20, 30:50] = True
    as_text = {"size": [40, 60], "counts": encode(mask)["counts"].decode()}
    polygon = [[30, 10, 50, 10, 50, 20, 30, 20]]
    found = results([without_box(GOOD) | {"segmentation": as_text}, GOOD | {"segmentation": polygon}])
    assert found.boxes.tolist() == [[30, 10, 50, 20], [1.5, 2, 11.5, 22]]
    assert all(np.array_equal(decode([rle], (40, 60))[0], mask) for rle in found.masks)
    found = results([without_box(POSED), POSED], POSES)
    assert found.keypoints.tolist() == [[[3.5, 4.5, 0.5], [10, 6.5, 0.25]]] * 2
    assert found.boxes.tolist() == [[3.5, 4.5, 10, 6.5], [1.5, 2, 11.5, 22]]
    assert results([POSED]).keypoints is None  # beside annotations without
    with pytest.raises(ValueError, match=r"results\.json has keypoints, which truth\.json has not: two kinds"):
        results([POSED], replace(KNOWN, no_keypoints="two kinds"))


def test_the_file_and_the_entry_are_named(results) -> None:
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
            results([first, GOOD | changes], POSES if first is POSED else KNOWN)
        assert f"entry 1: {told}" in str(raised.value)


def test_what_is_no_list_of_detections_is_refused(results, tmp_path) -> None:
    for content in ('{"annotations": []}', "{}", "7", "[", '{"annotations": {}}'):
        with pytest.raises(ValueError, match=r"results\.json.* expected"):
            results(content)
    with pytest.raises(ValueError, match="look like labels"):
        results([GOOD | {"category_id": 0}, GOOD | {"category_id": 1}])
    with pytest.raises(ValueError, match=r"none\.json can't be read"):
        read_results(tmp_path / "none.json", KNOWN)
