"""Mirrors detection/data/readers/truth.py."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.data.readers.truth import Truth, read_truth
from detection.masks import is_empty

OBJECT: dict[str, Any] = {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1.1, 2.2, 100, 4], "area": 300.5}
TRUTH: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "five.jpg", "height": 40, "width": 60}, {"id": 2, "height": 40, "width": 60}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}],
    "annotations": [OBJECT | {"image_id": 2, "category_id": 7, "iscrowd": 1}, OBJECT],
}

Read = Callable[..., Truth]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads what is written as JSON into truth.json."""

    def read(content: Any) -> Truth:
        (tmp_path / "truth.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_truth(tmp_path / "truth.json")

    return read


def test_numbers_are_kept_as_they_are_without_images(read: Read) -> None:
    truth = read(TRUTH)
    assert truth.class_names == ("cat", "dog")
    assert (truth.known.image_ids, truth.known.category_ids) == ((5, 2), (7, 90))
    assert truth.file_names == ("five.jpg", "2")
    assert truth.boxes[truth.rows(0)].tolist() == [[1.1, 2.2, 101.1, 6.2]]  # not cut at the border, as pycocotools
    assert (truth.labels.tolist(), truth.ignore.tolist()) == ([1, 0], [False, True])
    assert truth.areas.tolist() == [300.5, 300.5]
    assert truth.masks is None


def test_without_an_area_the_box_gives_it(read: Read) -> None:
    bare = {key: value for key, value in OBJECT.items() if key != "area"}
    assert read(TRUTH | {"annotations": [bare]}).areas.tolist() == [400]


def test_masks_are_drawn_where_sizes_are_known(read: Read) -> None:
    masked = OBJECT | {"segmentation": [[1, 1, 20, 1, 20, 20]]}
    truth = read(TRUTH | {"annotations": [masked, OBJECT]})
    assert truth.masks is not None
    assert [is_empty(mask) for mask in truth.masks] == [False, True]  # the second is unknown
    assert read(TRUTH | {"annotations": [masked], "images": [{"id": 5}]}).masks is None


def test_an_empty_data_set(read: Read) -> None:
    truth = read({"images": [], "annotations": [], "categories": []})
    assert (truth.ends.tolist(), truth.boxes.shape, truth.class_names) == ([], (0, 4), ())


@pytest.mark.parametrize(
    ("place", "changes", "told"),
    [
        (("images", 1), {"id": 5}, "images[1]: id 5 occurs twice"),
        (("categories", 1), {"name": "dog"}, "categories[1]: id 7, name 'dog' occurs twice"),
        (("annotations", 0), {"image_id": 4}, "annotations[0]: image_id is 4"),
        (("annotations", 1), {"category_id": 4}, "annotations[1]: category_id is 4, expected one of 7, 90"),
        (("annotations", 1), {"bbox": [0, 0, 1, float("inf")]}, "annotations[1]: bbox is"),
        (("annotations", 1), {"iscrowd": 2}, "annotations[1]: iscrowd is 2"),
        (("annotations", 1), {"segmentation": [[1, 2, 3]]}, "mask in image 5"),
    ],
)
def test_the_file_and_the_record_are_named(
    read: Read, place: tuple[str, int], changes: dict[str, Any], told: str
) -> None:
    content = copy.deepcopy(TRUTH)
    content[place[0]][place[1]] |= changes
    with pytest.raises(ValueError, match=r"truth\.json") as raised:
        read(content)
    assert told in str(raised.value)


@pytest.mark.parametrize("lacking", ["images", "annotations", "categories"])
def test_a_missing_list_is_named(read: Read, lacking: str) -> None:
    with pytest.raises(ValueError, match=f"truth.json .* without the list {lacking}"):
        read({key: value for key, value in TRUTH.items() if key != lacking})


def test_detections_in_its_place_are_recognized(read: Read) -> None:
    with pytest.raises(ValueError, match="--detections"):
        read([OBJECT])


FACE = {"id": 7, "name": "cat", "keypoints": ["nose", "left_eye"], "skeleton": [[1, 2]]}


def test_keypoints_keep_all_digits_and_are_not_labelled_where_an_object_has_none(read: Read) -> None:
    seen = OBJECT | {"category_id": 7, "keypoints": [10.1, 20, 2, 0, 0, 0]}
    truth = read(TRUTH | {"categories": [FACE, {"id": 90, "name": "dog"}], "annotations": [seen, OBJECT]})
    assert truth.keypoint_spec is not None
    assert truth.keypoint_spec.names == truth.known.keypoints == ("nose", "left_eye")
    assert truth.keypoints is not None
    assert truth.keypoints.tolist() == [[[10.6, 20.5, 2], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    wrong = OBJECT | {"keypoints": [1, 2, 7, 0, 0, 0]}
    with pytest.raises(ValueError, match=r"truth\.json: annotations\[0\]: visibility of keypoint 'nose' is 7"):
        read(TRUTH | {"categories": [FACE, {"id": 90, "name": "dog"}], "annotations": [wrong]})


def test_categories_of_different_keypoints_matter_to_keypoints_alone(read: Read) -> None:
    truth = read(TRUTH | {"categories": [FACE, {"id": 90, "name": "dog", "keypoints": ["tail"]}]})
    assert truth.keypoints is None
    assert "category 'cat' has the 2 keypoints" in truth.known.no_keypoints
