"""Mirrors detection/data/readers/coco_keypoints.py, through the reader of COCO's files."""

from typing import Any

import pytest
import torch
from PIL import Image

from detection.data.cards import load_card, load_dataset, read_split
from detection.data.index import AnnotationIndex
from detection.data.readers.coco import read_coco

NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [10, 20, 2, 12, 18, 1, 0, 0, 0]
FACE = {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
SEEN, UNSEEN = [[10.5, 20.5, 2], [12.5, 18.5, 1], [0, 0, 0]], [[0.0, 0, 0]] * 3


@pytest.fixture
def make(make_coco, edit_json):
    """A file whose first image has an object a set of ``points``; ``cat`` and ``dog`` are keys of the categories."""

    def write(*points, ids=(), cat=FACE, dog=FACE):
        records = [
            {"id": number, "image_id": 7, "category_id": category, "bbox": [10, 20, 30, 5]}
            | ({} if own is None else {"keypoints": own})
            for number, (own, category) in enumerate(zip(points, ids or [3] * len(points), strict=True), start=1)
        ]
        file = make_coco({7: "a.jpg", 900: "b.jpg"}, records)
        categories = [{"id": 3, "name": "cat", **cat}, {"id": 18, "name": "dog", **dog}]
        edit_json(file, lambda content: content.update(categories=categories))
        return file

    return write


def read(file, classes=("cat", "dog"), fields=("keypoints",), **options) -> tuple[Any, Any]:
    entry = {"annotations": file.name, "images": "train"}
    return read_coco(file.parent, entry, classes, drop=True, exif="apply", fields=fields, **options)


def labelled(index):
    return index.target(0, fields=("keypoints",)).keypoints.tolist()


def test_names_skeleton_and_places_are_read_where_they_are_wanted(make, edit_json) -> None:
    file = make(POINTS, None)
    index, problems = read(file)
    assert (index.keypoints.names, index.keypoints.edges) == (tuple(NAMES), ((0, 1), (0, 2)))
    assert index.keypoints.mirrored == (0, 2, 1)
    assert (labelled(index), problems, index.stored("keypoints", 1).shape) == ([SEEN, UNSEEN], [], (0, 3, 3))
    plain, problems = read(file, fields=())
    assert (plain.fields, plain.keypoints, problems) == ({}, None, [])
    edit_json(file, lambda content: content["annotations"][0].update(more=[{"a": 1}, {"b": 2}]))  # read as a whole
    assert labelled(read(file)[0]) == [SEEN, UNSEEN]
    Image.new("RGB", (160, 120)).save(file.parent / "train/a.jpg")
    assert labelled(read(file, other_size="scale")[0])[0] == [[21, 41, 2], [25, 37, 1], [0, 0, 0]]


def test_objects_and_categories_without_keypoints_have_none_labelled(make) -> None:
    index, problems = read(make(POINTS, None, None, [], [0] * 9, ids=[3, 3, 18, 18, 18], dog={}))
    assert (labelled(index), problems) == ([SEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN], [])
    index, problems = read(make(POINTS, dog={"keypoints": ["tail"]}), ("cat",))  # a class that is not wanted
    assert (labelled(index), problems) == ([SEEN], [])
    index, problems = read(make(None, cat={}, dog={}))
    assert (index.fields, problems) == ({}, [])
    with pytest.raises(ValueError, match=r"no keypoints.*`keypoints` in their categories"):
        index.require(("keypoints",))


def test_keypoints_and_categories_that_cannot_be_used_are_named_and_the_box_is_kept(make) -> None:
    bad = [
        (POINTS[:8], "keypoints have 8 numbers"),
        ([*POINTS[:5], 3, 0, 0, 0], "visibility of keypoint 'left_eye' is 3"),
        ([*POINTS[:5], 0.5, 0, 0, 0], "visibility of keypoint 'left_eye' is 0.5"),
        ([1e39, *POINTS[1:]], "x of keypoint 'nose' is 1e+39"),
        ({"nose": [1, 2]}, "expected a list"),
    ]
    file = make(*(points for points, _ in bad), POINTS)
    index, problems = read(file)
    assert labelled(index) == [UNSEEN] * len(bad) + [SEEN]
    for number, (problem, (_, said)) in enumerate(zip(problems, bad, strict=True), start=1):
        assert (problem.severity, problem.file) == ("dropped", str(file))
        assert problem.detail.startswith(f"annotation {number} of image 7: ")
        assert said in problem.detail
    for cat, dog, detail in [
        (FACE, {"keypoints": ["nose", "tail"]}, "category 'cat' has the 3 keypoints nose, left_eye, right_eye, 'dog'"),
        ({"keypoints": "nose"}, {}, "keypoints is 'nose'"),
        ({"keypoints": ["nose", "nose"]}, {}, "each once"),
        ({**FACE, "skeleton": [[0, 1]]}, {}, "skeleton is [0, 1]"),
        ({**FACE, "skeleton": [[1, 2, 3]]}, {}, "skeleton is [[1, 2, 3]]"),
        ({}, {}, "annotations have `keypoints`, and no category"),
    ]:
        file = make(POINTS, cat=cat, dog=dog)
        index, (problem,) = read(file)
        assert (problem.severity, problem.file, index.keypoints) == ("error", str(file), None)
        assert detail in problem.detail


def test_a_card_gives_sigmas(make, write_card, tmp_path) -> None:
    make(POINTS)
    for given, expected in (((), (0.026, 0.025, 0.025)), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))):  # COCO's, by their names
        card = write_card("coco", keypoint_sigmas=list(given))
        index: Any = load_dataset([f"{card}:train"], tmp_path, fields=("keypoints",))[0]
        assert index.keypoints.sigmas == expected
    wrong = load_card(write_card("coco", keypoint_sigmas=[0.1]))
    with pytest.raises(ValueError, match=r"keypoint_sigmas .* 3 keypoints"):
        read_split(wrong, "train", tmp_path, fields=("keypoints",))


def test_joined_sets_share_keypoints_or_are_refused(make) -> None:
    face, without = read(make(POINTS))[0], read(make(None, cat={}, dog={}))[0]
    joined = AnnotationIndex.concatenate([without, face])
    assert joined.keypoints == face.keypoints
    values: list[Any] = [joined.target(row, fields=("keypoints",)).keypoints for row in (0, 2)]
    assert torch.cat(values).tolist() == [UNSEEN, SEEN]
    other, _ = read(make(POINTS[:3], cat={"keypoints": ["tail"]}, dog={}))
    with pytest.raises(ValueError, match="different keypoints can't be joined: nose, left_eye, right_eye; and tail"):
        AnnotationIndex.concatenate([face, other])
