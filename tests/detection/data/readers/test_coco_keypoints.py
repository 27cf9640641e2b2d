"""Mirrors detection/data/readers/coco_keypoints.py, through the reader of COCO's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from detection.data.cards import load_card, load_dataset, read_split
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.readers.coco import read_coco

NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [10, 20, 2, 12, 18, 1, 0, 0, 0]
CLASSES = ("cat", "dog")
Make = Callable[..., Path]


@pytest.fixture
def make(make_coco: Make) -> Make:
    """A file whose two images have one object a set of ``points``; ``cat`` and ``dog`` are keys of the categories."""

    def write(
        *points: object, categories: list[int] | None = None, cat: Mapping[str, Any], dog: Mapping[str, Any]
    ) -> Path:
        records = [
            {"id": number, "image_id": 7, "category_id": category, "bbox": [10, 20, 30, 5]}
            | ({} if own is None else {"keypoints": own})
            for number, (own, category) in enumerate(zip(points, categories or [3] * len(points), strict=True), start=1)
        ]
        file = make_coco({7: "a.jpg", 900: "b.jpg"}, records)
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 3, "name": "cat", **cat}, {"id": 18, "name": "dog", **dog}]
        file.write_text(json.dumps(content))
        return file

    return write


def read(file: Path, classes: tuple[str, ...] = CLASSES, **options: Any) -> tuple[AnnotationIndex, list[Problem]]:
    entry = {"annotations": file.name, "images": "train"}
    options = {"drop": True, "exif": "apply", "fields": ("keypoints",)} | options
    return read_coco(file.parent, entry, classes, **options)


def labelled(index: AnnotationIndex) -> list[list[list[float]]]:
    found = index.target(0, fields=("keypoints",)).keypoints
    assert found is not None
    return found.tolist()


FACE = {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
SEEN = [[10.5, 20.5, 2], [12.5, 18.5, 1], [0, 0, 0]]
UNSEEN = [[0.0, 0, 0]] * 3


def test_names_skeleton_and_places_are_read_where_they_are_wanted(make: Make) -> None:
    file = make(POINTS, cat=FACE, dog=FACE)
    index, problems = read(file)
    assert index.keypoints is not None
    assert (index.keypoints.names, index.keypoints.edges) == (tuple(NAMES), ((0, 1), (0, 2)))
    assert index.keypoints.mirrored == (0, 2, 1)
    assert (labelled(index), problems) == ([SEEN], [])
    assert index.stored("keypoints", 1).shape == (0, 3, 3)
    plain, problems = read(file, fields=())
    assert (plain.fields, plain.keypoints, problems) == ({}, None, [])


def test_objects_and_categories_without_keypoints_have_none_labelled(make: Make) -> None:
    index, problems = read(make(POINTS, None, None, [], [0] * 9, categories=[3, 3, 18, 18, 18], cat=FACE, dog={}))
    assert (labelled(index), problems) == ([SEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN], [])


def test_a_file_read_as_a_whole_gives_the_same(make: Make) -> None:
    file = make(POINTS, None, cat=FACE, dog=FACE)
    content = json.loads(file.read_text())
    content["annotations"][0]["more"] = [{"a": 1}, {"b": 2}]  # its blocks are no JSON
    file.write_text(json.dumps(content))
    assert labelled(read(file)[0]) == [SEEN, UNSEEN]


@pytest.mark.parametrize(
    ("points", "detail"),
    [
        (POINTS[:8], "keypoints have 8 numbers, expected 9"),
        ([*POINTS[:5], 3, 0, 0, 0], "visibility of keypoint 'left_eye' is 3"),
        ([*POINTS[:5], 0.5, 0, 0, 0], "visibility of keypoint 'left_eye' is 0.5"),
        ([1e39, *POINTS[1:]], "x of keypoint 'nose' is 1e+39"),
        ({"nose": [1, 2]}, "expected a list"),
    ],
)
def test_keypoints_that_cannot_be_used_are_named_and_the_box_is_kept(make: Make, points: object, detail: str) -> None:
    file = make(points, POINTS, cat=FACE, dog=FACE)
    index, (problem,) = read(file)
    assert labelled(index) == [UNSEEN, SEEN]
    assert (problem.severity, problem.file) == ("dropped", str(file))
    assert problem.detail.startswith("annotation 1 of image 7: ")
    assert detail in problem.detail


@pytest.mark.parametrize(
    ("cat", "dog", "detail"),
    [
        (FACE, {"keypoints": ["nose", "tail"]}, "category 'cat' has the 3 keypoints nose, left_eye, right_eye, 'dog'"),
        ({"keypoints": "nose"}, {}, "keypoints is 'nose', expected a list of names"),
        ({"keypoints": ["nose", "nose"]}, {}, "each once"),
        ({**FACE, "skeleton": [[0, 1]]}, {}, "skeleton is [0, 1], expected pairs of the keypoints 1..3"),
        ({**FACE, "skeleton": [[1, 2, 3]]}, {}, "skeleton is [[1, 2, 3]], expected a list of pairs"),
        ({}, {}, "annotations have `keypoints`, and no category"),
    ],
)
def test_categories_that_cannot_be_used_are_an_error(
    make: Make, cat: dict[str, Any], dog: dict[str, Any], detail: str
) -> None:
    file = make(POINTS, cat=cat, dog=dog)
    index, (problem,) = read(file)
    assert (problem.severity, problem.file, index.keypoints) == ("error", str(file), None)
    assert detail in problem.detail


def test_other_keypoints_of_a_class_that_is_not_wanted_do_no_harm(make: Make) -> None:
    index, problems = read(make(POINTS, cat=FACE, dog={"keypoints": ["tail"]}), ("cat",))
    assert (labelled(index), problems) == ([SEEN], [])


def test_a_data_set_without_says_what_it_needs(make: Make) -> None:
    index, problems = read(make(None, cat={}, dog={}))
    assert (index.fields, problems) == ({}, [])
    with pytest.raises(ValueError, match=r"no keypoints.*`keypoints` in their categories"):
        index.require(("keypoints",))


def test_keypoints_follow_an_image_of_another_resolution(make: Make) -> None:
    file = make(POINTS, cat=FACE, dog=FACE)
    Image.new("RGB", (160, 120)).save(file.parent / "train" / "a.jpg")
    index, _ = read(file, other_size="scale")
    assert labelled(index) == [[[21, 41, 2], [25, 37, 1], [0, 0, 0]]]


def card(file: Path, **keys: Any) -> str:
    path = file.parent / f"card{len(keys)}.yaml"
    splits = {"train": {"annotations": file.name, "images": "train"}}
    path.write_text(
        yaml.safe_dump({"format": "coco", "root": str(file.parent), "classes": [*CLASSES], "splits": splits, **keys})
    )
    return str(path)


def test_a_card_gives_sigmas(make: Make, tmp_path: Path) -> None:
    file = make(POINTS, cat=FACE, dog=FACE)
    index, _ = load_dataset([f"{card(file)}:train"], tmp_path, fields=("keypoints",))
    assert index.keypoints is not None
    assert index.keypoints.sigmas == (0.026, 0.025, 0.025)  # COCO's, by their names
    index, _ = load_dataset([f"{card(file, keypoint_sigmas=[0.1, 0.2, 0.3])}:train"], tmp_path, fields=("keypoints",))
    assert index.keypoints is not None
    assert index.keypoints.sigmas == (0.1, 0.2, 0.3)
    wrong = load_card(card(file, keypoint_sigmas=[0.1], bad_boxes="drop"))
    with pytest.raises(ValueError, match=r"keypoint_sigmas needs a number above 0 for each of the 3 keypoints"):
        read_split(wrong, "train", tmp_path, fields=("keypoints",))


def test_joined_sets_share_keypoints_or_are_refused(make: Make) -> None:
    face, _ = read(make(POINTS, cat=FACE, dog=FACE))
    without, _ = read(make(None, cat={}, dog={}))
    joined = AnnotationIndex.concatenate([without, face])
    assert joined.keypoints == face.keypoints
    values = [joined.target(row, fields=("keypoints",)).keypoints for row in (0, 2)]
    assert torch.cat([of for of in values if of is not None]).tolist() == [UNSEEN, SEEN]
    other, _ = read(make(POINTS[:3], cat={"keypoints": ["tail"]}, dog={}))
    with pytest.raises(ValueError, match="different keypoints can't be joined: nose, left_eye, right_eye; and tail"):
        AnnotationIndex.concatenate([face, other])
