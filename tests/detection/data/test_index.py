"""Mirrors detection/data/index.py and packed_strings.py."""

import pickle
from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.data.bad_images import usable_images
from detection.data.index import AnnotationIndex, index_digest
from detection.data.packed_strings import PackedStrings
from detection.masks import encode

BOX, OTHER = (1.0, 2.0, 11.0, 22.0), (5.0, 5.0, 15.0, 10.0)
PATTERNS = [torch.arange(80).reshape(8, 10) == number for number in range(6)]


@pytest.fixture
def index(make_index):
    """Four images with 2, 0, 1 (ignored) and 3 objects."""
    last = [(OTHER, 0, True), (BOX, 1, False), (BOX, 0, False)]
    return make_index([[(BOX, 0, False), (OTHER, 1, False)], [], [(BOX, 1, True)], last])


def with_masks(index, *masks):
    return replace(index, fields={"masks": PackedStrings.pack([encode(mask.numpy())["counts"] for mask in masks])})


def masks_of(index, row) -> Any:
    return index.target(row, fields=("masks",)).masks


def test_packed_strings_come_back() -> None:
    for strings in ([], [""], ["", "", ""], ["a", "", "bc"], ["grüße.jpg", "画像/猫.png", "🐈"], ["/x" * 200, "y"]):
        packed = PackedStrings.pack(strings)
        assert (len(packed), [packed[row] for row in range(len(packed))]) == (len(strings), strings)
        assert list(PackedStrings.concatenate([packed, PackedStrings.pack([]), packed]).all()) == strings * 2
        with pytest.raises(IndexError):
            packed[len(strings)]


def test_packed_strings_are_one_tensor_of_characters_of_which_rows_are_taken() -> None:
    packed = PackedStrings.pack(["ab", "ö"])
    assert (packed.characters.tolist(), packed.ends.tolist()) == (list("abö".encode()), [2, 4])
    strings = ["ab", "", "画像", "c"]
    for rows in ([], [2], [3, 0, 0, 1], [0, 1, 2, 3]):
        taken = PackedStrings.pack(strings).take(torch.tensor(rows, dtype=torch.int64))
        assert list(taken.all()) == [strings[row] for row in rows]
        assert len(taken.characters) == sum(len(strings[row].encode()) for row in rows)


def test_objects_belong_to_their_images(index, make_index) -> None:
    assert [index.target(row).labels.tolist() for row in range(len(index))] == [[0, 1], [], [1], [0, 1, 0]]
    assert index.target(3).ignore.tolist() == [True, False, False]
    assert (index.target(0).boxes.tolist(), index.target(1).boxes.shape) == ([list(BOX), list(OTHER)], (0, 4))
    assert index.num_wanted().tolist() == [2, 0, 0, 2]
    assert make_index([[], [], []]).num_wanted().tolist() == [0, 0, 0]
    assert make_index([]).num_wanted().tolist() == []


def test_a_pickled_index_has_equal_rows(index) -> None:
    index = with_masks(index, *PATTERNS)
    for dumps in (pickle.dumps, ForkingPickler.dumps):
        again = pickle.loads(dumps(index))
        assert (again.class_names, again.category_ids) == (index.class_names, index.category_ids)
        for field in fields(index):
            if isinstance(value := getattr(index, field.name), torch.Tensor):
                assert torch.equal(getattr(again, field.name), value)
        assert list(again.paths.all()) == list(index.paths.all())
        assert again.stored("masks", 3) == index.stored("masks", 3)


def test_the_first_images_keep_their_objects(index) -> None:
    masked = with_masks(index, *PATTERNS)
    for count, objects in enumerate([0, 2, 2, 3, 6, 6]):
        first = masked.first(count)
        assert (len(first), len(first.boxes)) == (min(count, 4), objects)
        for row in range(len(first)):
            assert first.paths[row] == masked.paths[row]
            assert first.stored("masks", row) == masked.stored("masks", row)
            assert torch.equal(first.target(row).boxes, masked.target(row).boxes)
        assert first.num_wanted().tolist() == masked.num_wanted().tolist()[:count]


def test_joined_indexes_hold_all_images_in_order(index, make_index) -> None:
    second = make_index([[], [(OTHER, 1, False)]], ids=[70, 60], sizes=[(5, 6), (7, 8)], paths=["x.jpg", "y.jpg"])
    second = replace(second, apply_exif=torch.tensor([False, True]))
    joined = AnnotationIndex.concatenate([index, make_index([]), second])
    assert list(joined.paths.all()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "x.jpg", "y.jpg"]
    assert (joined.sizes[4:].tolist(), joined.target(5).boxes.tolist()) == ([[5, 6], [7, 8]], [list(OTHER)])
    assert joined.num_wanted().tolist() == [2, 0, 0, 2, 0, 1]
    assert joined.areas.tolist() == [*index.areas.tolist(), 50.0]
    assert joined.apply_exif.tolist() == [True] * 4 + [False, True]
    assert joined.image_ids.tolist() == [1, 2, 3, 4, 70, 60]
    clash = AnnotationIndex.concatenate([index, make_index([[], []], ids=[70, 4])])
    assert clash.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert AnnotationIndex.concatenate([index]) is index
    with pytest.raises(ValueError, match=r"different classes .*cat, dog; and dog, cat; .*cat and dog"):
        AnnotationIndex.concatenate([index, make_index([[]], class_names=("dog", "cat"))])
    with pytest.raises(ValueError, match="no data set"):
        AnnotationIndex.concatenate([])


def test_masks_are_decoded_on_request_only(index, make_index) -> None:
    small, large = torch.rand(2, 4, 6) > 0.5, torch.rand(1, 9, 5) > 0.5
    plain = make_index([[(BOX, 0, False), (BOX, 1, False)], [], [(BOX, 0, True)]], sizes=[(4, 6), (2, 3), (9, 5)])
    masked = with_masks(plain, *small, *large)
    for row, masks in enumerate([small, torch.zeros(0, 2, 3, dtype=torch.bool), large]):
        assert masked.target(row).masks is None
        assert torch.equal(masks_of(masked, row), masks)
        assert [rle["size"] for rle in masked.stored("masks", row) or ()] == [[*masks.shape[1:]]] * len(masks)
    with pytest.raises(ValueError, match=r"no masks, or they were not read; .*`instances: SegmentationObject`"):
        index.target(0, fields=("masks",))


def test_objects_of_a_part_without_masks_get_empty_ones(make_index) -> None:
    mask = torch.rand(4, 6) > 0.5
    masked = with_masks(make_index([[], [(BOX, 0, False)]], sizes=[(3, 3), (4, 6)]), mask)
    plain = make_index([[(BOX, 0, False), (BOX, 1, False)], [(BOX, 0, False)]], sizes=[(5, 5), (7, 9)])
    for parts, shift in (([masked, plain], 0), ([plain, masked], 2)):
        joined = AnnotationIndex.concatenate(parts)
        assert torch.equal(masks_of(joined, 1 + shift), mask[None])
        assert torch.equal(masks_of(joined, 2 - shift), torch.zeros(2, 5, 5).bool())
        assert torch.equal(masks_of(joined, 3 - shift), torch.zeros(1, 7, 9).bool())
    assert not AnnotationIndex.concatenate([plain, plain]).fields


def test_the_digest_sees_every_annotation_and_not_where_the_files_lie(make_index) -> None:
    objects = [[(BOX, 0, False), (OTHER, 1, False)], []]
    plain = make_index(objects, paths=["/a/0.jpg", "/a/1.jpg"])
    moved = make_index(objects, paths=["/b/c/0.jpg", "1.jpg"], ids=[70, 4])
    assert index_digest(moved) == index_digest(plain)
    mask = torch.zeros(60, 80, dtype=torch.bool)
    others = [
        replace(plain, boxes=plain.boxes + 1),
        replace(plain, labels=plain.labels.flip(0)),
        replace(plain, ignore=~plain.ignore),
        replace(plain, class_names=("dog", "cat")),
        replace(plain, sizes=plain.sizes + 1),
        *(replace(plain, paths=PackedStrings.pack(["ab.jpg", name])) for name in ("c.jpg", "/a/2.jpg")),
        replace(plain, paths=PackedStrings.pack(["a", "b.jpgc.jpg"])),  # which only joins alike
        make_index([[], objects[0]], paths=["/a/0.jpg", "/a/1.jpg"]),
        plain.first(1),
        with_masks(plain, mask, mask),
        with_masks(plain, mask, ~mask),
    ]
    assert len({index_digest(each) for each in [plain, *others]}) == len(others) + 1


def test_labels_that_are_not_judged_move_with_their_images(index, draw, tmp_path) -> None:
    marked = replace(index, unjudged=torch.tensor([[1, 0], [3, 1]]))  # image 1 of class 0, image 3 of class 1
    joined = AnnotationIndex.concatenate([index, marked])
    assert [joined.unjudged_labels(row).tolist() for row in range(8)] == [[], [], [], [], [], [0], [], [1]]
    assert marked.first(3).unjudged.tolist() == [[1, 0]]
    paths = [tmp_path / "0.png", tmp_path / "1.png", draw(tmp_path / "2.png"), draw(tmp_path / "3.png")]
    rest, dropped = usable_images(replace(marked, paths=PackedStrings.pack(list(map(str, paths)))), "drop")
    assert [Path(problem.file).name for problem in dropped] == ["0.png", "1.png"]
    assert rest.unjudged.tolist() == [[1, 1]]
