"""Mirrors detection/data/readers/coco_panoptic.py, detection/data/panoptic_files.py and the panoptic label maps."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.cards import load_card, load_dataset
from detection.data.images import ImageError
from detection.data.panoptic_files import panoptic_annotation, panoptic_categories, save_segments
from detection.data.readers.coco_panoptic import coco_panoptic_classes, read_coco_panoptic
from detection.segments import Segment, Segments
from detection.structures import VOID

CLASSES = ("cat", "dog", "sky")  # the last is stuff
ENTRY = {"panoptic": "panoptic.json", "segments": "segments", "images": "images"}
IDS = np.zeros((4, 6), np.int32)
IDS[:2] = 70_000  # sky: all three bytes of a pixel
IDS[2, :2] = 5  # a cat
IDS[2:, 4:] = 300  # a crowd of dogs
SEGMENTS = Segments(IDS, (Segment(5, 0), Segment(300, 1, crowd=True), Segment(70_000, 2)))


@pytest.fixture
def folder(draw, tmp_path):
    """A data set of one image with a cat, a crowd of dogs and sky, and one that is void."""
    for name in ("images/1.jpg", "images/2.jpg", "segments/1.png"):
        draw(tmp_path / name, size=(4, 6))
    save_segments(SEGMENTS, tmp_path / "segments/1.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 4, "width": 6} for n in (1, 2)],
        "annotations": [panoptic_annotation(SEGMENTS, (3, 18, 187), image_id=1, file_name="1.png")],
        "categories": panoptic_categories(CLASSES, (3, 18, 187), 2),
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return tmp_path


def read(folder, *, fields=("masks",), **entry) -> tuple[Any, Any]:
    split = ENTRY | entry
    return read_coco_panoptic(folder, split, CLASSES, drop=True, exif="apply", fields=fields, label_maps=True)


def test_things_are_objects_with_masks_and_all_classes_are_labels_and_segments(folder) -> None:
    index, problems = read(folder)
    assert (problems, index.class_names, index.category_ids) == ([], ("cat", "dog"), (3, 18))
    target = index.target(0, fields=("masks",), label_maps=True)
    assert target.boxes.tolist() == [[0, 2, 2, 3], [4, 2, 6, 4]]
    assert (target.labels.tolist(), target.ignore.tolist()) == ([0, 1], [False, True])
    np.testing.assert_array_equal(target.masks, [IDS == 5, IDS == 300])
    assert target.label_map.tolist() == [[2] * 6, [2] * 6, [0, 0, VOID, VOID, 1, 1], [VOID] * 4 + [1, 1]]
    void = index.target(1, label_maps=True)  # without an annotation
    assert (len(void), void.label_map is not None and set(void.label_map.flatten().tolist())) == (0, {VOID})
    maps = read(folder)[0].label_maps
    assert (maps.class_names, maps.num_things) == (CLASSES, 2)
    found = maps.read_segments(0, (4, 6))
    assert found.found == SEGMENTS.found
    np.testing.assert_array_equal(found.ids, IDS)


def test_objects_of_an_instances_file_take_the_place_of_the_segments(folder) -> None:
    content = json.loads((folder / "panoptic.json").read_text())
    square = [[1.0, 1, 3, 1, 3, 4, 1, 4]]
    own = {"id": 1, "image_id": 1, "category_id": 18, "bbox": [1, 1, 2, 3], "segmentation": square}
    (folder / "instances.json").write_text(json.dumps(content | {"annotations": [own]}))
    index, problems = read(folder, annotations="instances.json")
    assert not [problem for problem in problems if problem.severity == "error"]
    assert index.boxes.tolist() == [[1, 1, 3, 4]]
    assert index.label_maps.read_segments(0, (4, 6)).found == SEGMENTS.found


def test_cards_lead_to_it_with_things_before_stuff(folder, edit_json) -> None:
    edit_json(folder / "panoptic.json", lambda content: content["categories"].reverse())
    assert coco_panoptic_classes(folder, ENTRY) == CLASSES
    card = folder / "card.yaml"
    card.write_text(f"{{format: coco_panoptic, root: {folder}, splits: {{train: {json.dumps(ENTRY)}}}}}")
    index, _ = load_dataset([f"{card}:train"], folder, label_maps=True)
    assert (index.class_names, index.label_maps is None) == (CLASSES[:2], False)
    assert load_dataset([f"{card}:train"], folder)[0].label_maps is None
    assert len(load_card("coco2017_panoptic").classes) == 133
    assert load_card("coco2017_panoptic").classes[:80] == load_card("coco2017").classes


@pytest.mark.parametrize(
    ("change", "kind", "value"),
    [
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=77), "category id", "77"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=300), "duplicate segment id", "300"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=1 << 24), "segment record", "16777216"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="x"), "segment record", "x"),
        (lambda c: c["annotations"][0]["segments_info"][0].pop("bbox"), "segment record", "bbox"),
        (lambda c: c["annotations"][0].update(image_id=9), "image that is not listed", "9"),
        (lambda c: c["annotations"][0].update(file_name="7.png"), "missing label image", "7.png"),
        (lambda c: c["annotations"][0].update(file_name="../../7.png"), "outside", "7.png"),
        (lambda c: c["annotations"][0].update(segments_info=None), "annotation record", "segments_info"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "two annotations", "1.png"),
        (lambda c: c["categories"][0].pop("isthing"), "category record", "isthing"),
        (lambda c: c["categories"].pop(0), "class of the card that the file lacks", "cat"),
        (lambda c: c["categories"][0].update(name="lynx"), "class that the card lacks", "lynx"),
        (lambda c: c.pop("annotations"), "no panoptic annotations", "annotations"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(folder, edit_json, change, kind, value) -> None:
    edit_json(folder / "panoptic.json", change)
    errors = [problem for problem in read(folder, fields=())[1] if problem.severity == "error"]
    assert [error for error in errors if kind in error.kind and value in str(error)], errors
    assert all(str(folder) in error.file for error in errors)


def test_png_files_that_do_not_fit_are_named_with_the_value(folder, edit_json) -> None:
    def assert_named(value):
        with pytest.raises(ImageError, match=rf"1\.png.*{value}"):
            read(folder, fields=())[0].target(0, label_maps=True)
        error = next(problem for problem in read(folder)[1] if problem.severity == "error")
        assert (error.file.endswith("1.png"), value in error.detail) == (True, True)

    png = folder / "segments/1.png"
    save_segments(Segments(np.where(IDS == 300, 0, IDS).astype(np.int32), ()), png)
    assert_named("300")  # which the PNG lacks
    save_segments(Segments(IDS[:3], ()), png)
    assert_named("6x3")
    Image.new("L", (6, 4)).save(png)
    assert_named("mode is L")
    save_segments(SEGMENTS, png)
    edit_json(folder / "panoptic.json", lambda content: content["annotations"][0]["segments_info"].pop(0))
    assert_named("5")  # which the JSON lacks
