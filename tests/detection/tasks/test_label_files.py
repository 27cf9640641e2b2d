import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.engine.label_maps import Labelled
from detection.label_colors import VOID_COLOR
from detection.segments import Segment, Segments
from detection.structures import VOID
from detection.tasks.evaluate import without_objects
from detection.tasks.label_files import LabelFiles, file_stems, predicted_maps, read_counts, write_counts

VALUES = {7: 0, 8: 1, 0: VOID, 255: VOID}


@pytest.fixture
def index(make_index, tmp_path) -> Any:
    paths = [str(tmp_path / name) for name in ("a/one.jpg", "b/One.jpg", "two.jpg")]
    maps = LabelMaps(class_names=("road", "car"), files=PackedStrings.pack(["", "", ""]), values=VALUES)
    return replace(make_index([[], [], []], ids=[5, 9, 11], paths=paths, sizes=[(2, 3)] * 3), label_maps=maps)


def test_label_maps_are_written_in_the_values_of_the_card_and_read_back(index, tmp_path) -> None:
    assert file_stems(index) == ["one_5", "One_9", "two"]
    labels = np.array([[0, 1, VOID], [1, 1, 0]], np.uint8)
    write = LabelFiles(index, tmp_path)
    for row in range(3):
        write(row, Labelled(labels))
    write.finish()
    with Image.open(tmp_path / "label_maps" / "two.png") as image:
        assert np.asarray(image).tolist() == [[7, 8, 0], [8, 8, 7]]
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
    assert palette[0].tolist() == [*VOID_COLOR]
    assert len({tuple(palette[value]) for value in (0, 7, 8)}) == 3
    assert predicted_maps(index, tmp_path / "label_maps").read(2, (2, 3)).tolist() == labels.tolist()
    assert not (tmp_path / "panoptic.json").exists()
    (tmp_path / "label_maps" / "One_9.png").unlink()
    with pytest.raises(ValueError, match=r"label_maps lacks One_9\.png"):
        predicted_maps(index, tmp_path / "label_maps")


def test_segments_are_written_in_cocos_panoptic_format(index, tmp_path) -> None:
    values = {1: 0, 300: 1}  # ids of categories, which need not fit a pixel
    panoptic = replace(index.label_maps, values=values, num_things=1, segments=PackedStrings.pack(["[]"] * 3))
    write = LabelFiles(replace(index, label_maps=panoptic), tmp_path)
    segments = Segments(np.array([[1, 1, 0], [2, 2, 2]], np.int32), (Segment(1, 0), Segment(2, 1)))
    for row in (2, 0):
        write(row, Labelled(np.zeros((2, 3), np.uint8), segments))
    write.finish()
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [5, 11]
    assert [info["category_id"] for info in content["annotations"][0]["segments_info"]] == [1, 300]
    assert [category["isthing"] for category in content["categories"]] == [1, 0]
    assert sorted(path.name for path in (tmp_path / "panoptic").iterdir()) == ["one_5.png", "two.png"]


def test_counts_come_back_as_they_were(index, tmp_path) -> None:
    rng, plain, path = np.random.default_rng(0), without_objects(index), tmp_path / "segmentation.json"
    labels, panoptic = csr_array(rng.integers(0, 3, (2, 3)).astype(np.int32)), rng.random((2, 4)) * [[1], [0]]
    first, second = (replace(one, label_counts=labels, panoptic_counts=panoptic) for one in plain[:2])
    counted: list[Any] = [first, replace(second, label_counts=2 * labels, panoptic_counts=2 * panoptic)]
    write_counts(path, [*counted, plain[2]], index.label_maps)
    found: list[Any] = read_counts(path, plain, index.label_maps)
    for record, back in zip(counted, found, strict=False):
        np.testing.assert_array_equal(back.label_counts.toarray(), record.label_counts.toarray())
        np.testing.assert_array_equal(back.panoptic_counts, record.panoptic_counts)
    assert found[2].label_counts is None  # its labels are unknown
    with pytest.raises(ValueError, match=r"segmentation\.json has the classes .*car.*lorry"):
        read_counts(path, plain, replace(index.label_maps, class_names=("road", "lorry")))
    write_counts(path, counted, index.label_maps)
    for message in (r"two\.jpg", r"segmentation\.json"):
        with pytest.raises(ValueError, match=message):
            read_counts(path, plain, index.label_maps)
        path.write_text("{")
