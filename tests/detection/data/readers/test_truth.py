"""Mirrors detection/data/readers/truth.py."""

import copy
import json

import pytest

from detection.data.readers.truth import read_truth
from detection.masks import is_empty

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
    """Reads what is written as JSON into truth.json."""

    def read(content):
        (tmp_path / "truth.json").write_text(json.dumps(content))
        return read_truth(tmp_path / "truth.json")

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
