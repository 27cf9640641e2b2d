"""Mirrors detection/data/index.py."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.data.bad_images import usable_images
from detection.data.index import AnnotationIndex, index_digest
from detection.data.packed_strings import PackedStrings
from detection.masks import encode

MakeIndex = Callable[..., AnnotationIndex]
BOX = (1.0, 2.0, 11.0, 22.0)
OTHER = (5.0, 5.0, 15.0, 10.0)


@pytest.fixture
def index(make_index: MakeIndex) -> AnnotationIndex:
    """Four images with 2, 0, 1 (ignored) and 3 objects."""
    return make_index(
        [
            [(BOX, 0, False), (OTHER, 1, False)],
            [],
            [(BOX, 1, True)],
            [(OTHER, 0, True), (BOX, 1, False), (BOX, 0, False)],
        ]
    )


# strings


@pytest.mark.parametrize(
    "strings",
    [[], [""], ["", "", ""], ["a", "", "bc"], ["grüße.jpg", "画像/猫.png", "🐈"], ["/x" * 200, "y"]],
    ids=["none", "one empty", "only empty", "empty between", "non-ASCII", "long"],
)
def test_packed_strings_come_back(strings: list[str]) -> None:
    packed = PackedStrings.pack(strings)
    assert len(packed) == len(strings)
    assert [packed[row] for row in range(len(packed))] == strings


def test_packed_strings_are_one_tensor_of_characters() -> None:
    packed = PackedStrings.pack(["ab", "ö"])
    assert packed.characters.tolist() == list("abö".encode())
    assert packed.ends.tolist() == [2, 4]


@pytest.mark.parametrize("rows", [[], [2], [3, 0, 0, 1], [0, 1, 2, 3]])
def test_strings_of_chosen_rows(rows: list[int]) -> None:
    strings = ["ab", "", "画像", "c"]
    taken = PackedStrings.pack(strings).take(torch.tensor(rows, dtype=torch.int64))
    assert [taken[row] for row in range(len(taken))] == [strings[row] for row in rows]
    assert len(taken.characters) == sum(len(strings[row].encode()) for row in rows)


def test_a_row_that_does_not_exist_is_refused() -> None:
    with pytest.raises(IndexError):
        PackedStrings.pack(["a"])[1]


# rows


def test_objects_belong_to_their_images(index: AnnotationIndex) -> None:
    assert len(index) == 4
    assert [index.target(row).labels.tolist() for row in range(4)] == [[0, 1], [], [1], [0, 1, 0]]
    assert index.target(3).ignore.tolist() == [True, False, False]
    assert index.target(0).boxes.tolist() == [list(BOX), list(OTHER)]
    assert index.target(1).boxes.shape == (0, 4)


def test_wanted_objects_are_counted_per_image(index: AnnotationIndex) -> None:
    assert index.num_wanted().tolist() == [2, 0, 0, 2]


def test_wanted_objects_of_images_without_objects(make_index: MakeIndex) -> None:
    assert make_index([[], [], []]).num_wanted().tolist() == [0, 0, 0]
    assert make_index([]).num_wanted().tolist() == []
    assert make_index([[], [(BOX, 0, False)], []]).num_wanted().tolist() == [0, 1, 0]


# pickling


@pytest.mark.parametrize("dumps", [pickle.dumps, ForkingPickler.dumps])
def test_a_pickled_index_has_equal_rows(index: AnnotationIndex, dumps: Callable[[object], bytes]) -> None:
    index = with_masks(index, *(torch.arange(80).reshape(8, 10) == number for number in range(6)))
    again: AnnotationIndex = pickle.loads(dumps(index))
    assert (again.class_names, again.category_ids) == (index.class_names, index.category_ids)
    for field in fields(index):
        value = getattr(index, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(getattr(again, field.name), value)
    assert [again.paths[row] for row in range(len(again))] == [index.paths[row] for row in range(len(index))]
    assert again.stored("masks", 3) == index.stored("masks", 3)
    assert torch.equal(again.target(3).boxes, index.target(3).boxes)


# joining


def test_joined_indexes_hold_all_images_in_order(index: AnnotationIndex, make_index: MakeIndex) -> None:
    second = make_index([[], [(OTHER, 1, False)]], ids=[70, 60], sizes=[(5, 6), (7, 8)], paths=["x.jpg", "y.jpg"])
    joined = AnnotationIndex.concatenate([index, second])
    assert len(joined) == 6
    assert [joined.paths[row] for row in range(6)] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "x.jpg", "y.jpg"]
    assert joined.sizes[4:].tolist() == [[5, 6], [7, 8]]
    assert [len(joined.target(row)) for row in range(6)] == [2, 0, 1, 3, 0, 1]
    assert joined.target(5).boxes.tolist() == [list(OTHER)]
    assert joined.num_wanted().tolist() == [2, 0, 0, 2, 0, 1]
    assert joined.areas.tolist() == [*index.areas.tolist(), 50.0]


def test_ids_that_differ_are_kept(index: AnnotationIndex, make_index: MakeIndex) -> None:
    joined = AnnotationIndex.concatenate([index, make_index([[], []], ids=[70, 60])])
    assert joined.image_ids.tolist() == [1, 2, 3, 4, 70, 60]


def test_ids_that_clash_are_numbered_anew(index: AnnotationIndex, make_index: MakeIndex) -> None:
    joined = AnnotationIndex.concatenate([index, make_index([[], []], ids=[70, 4])])
    assert joined.image_ids.tolist() == [1, 2, 3, 4, 5, 6]


def test_each_part_keeps_its_exif_policy(index: AnnotationIndex, make_index: MakeIndex) -> None:
    second = replace(make_index([[]], ids=[9]), apply_exif=torch.tensor([False]))
    assert AnnotationIndex.concatenate([index, second]).apply_exif.tolist() == [True] * 4 + [False]


def test_three_parts_with_an_empty_one_between(index: AnnotationIndex, make_index: MakeIndex) -> None:
    joined = AnnotationIndex.concatenate([index, make_index([]), index])
    assert [len(joined.target(row)) for row in range(8)] == [2, 0, 1, 3] * 2


def test_one_part_is_itself(index: AnnotationIndex) -> None:
    assert AnnotationIndex.concatenate([index]) is index


def test_other_classes_are_refused(index: AnnotationIndex, make_index: MakeIndex) -> None:
    with pytest.raises(
        ValueError, match=r"different classes .*cat, dog; and dog, cat; they differ in cat and dog, dog"
    ):
        AnnotationIndex.concatenate([index, make_index([[]], class_names=("dog", "cat"))])


def test_no_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="no data set"):
        AnnotationIndex.concatenate([])


# masks


def with_masks(index: AnnotationIndex, *masks: Tensor) -> AnnotationIndex:
    return replace(index, fields={"masks": PackedStrings.pack([encode(mask.numpy())["counts"] for mask in masks])})


def masks_of(index: AnnotationIndex, row: int) -> Tensor:
    masks = index.target(row, fields=("masks",)).masks
    assert masks is not None
    return masks


def test_masks_are_decoded_on_request_only(make_index: MakeIndex) -> None:
    small, large = torch.rand(2, 4, 6) > 0.5, torch.rand(1, 9, 5) > 0.5
    plain = make_index([[(BOX, 0, False), (BOX, 1, False)], [], [(BOX, 0, True)]], sizes=[(4, 6), (2, 3), (9, 5)])
    index = with_masks(plain, *small, *large)
    expected = [small, torch.zeros(0, 2, 3, dtype=torch.bool), large]
    for row, masks in enumerate(expected):
        assert index.target(row).masks is None
        assert torch.equal(masks_of(index, row), masks)
        assert [rle["size"] for rle in index.stored("masks", row) or ()] == [[*masks.shape[1:]]] * len(masks)


def test_masks_that_were_not_read_are_refused(index: AnnotationIndex) -> None:
    with pytest.raises(ValueError, match=r"no masks, or they were not read; .*`instances: SegmentationObject`"):
        index.target(0, fields=("masks",))


@pytest.mark.parametrize("first", [True, False])
def test_objects_of_a_part_without_masks_get_empty_ones(make_index: MakeIndex, first: bool) -> None:
    mask = torch.rand(4, 6) > 0.5
    masked = with_masks(make_index([[], [(BOX, 0, False)]], sizes=[(3, 3), (4, 6)]), mask)
    plain = make_index([[(BOX, 0, False), (BOX, 1, False)], [(BOX, 0, False)]], sizes=[(5, 5), (7, 9)])
    joined = AnnotationIndex.concatenate([masked, plain] if first else [plain, masked])
    shift = 0 if first else 2
    assert torch.equal(masks_of(joined, 1 + shift), mask[None])
    assert torch.equal(masks_of(joined, 2 - shift), torch.zeros(2, 5, 5).bool())
    assert torch.equal(masks_of(joined, 3 - shift), torch.zeros(1, 7, 9).bool())
    assert not AnnotationIndex.concatenate([plain, plain]).fields


def test_packed_strings_are_joined_in_order() -> None:
    parts = [["ab", ""], [], ["画像", "c"]]
    joined = PackedStrings.concatenate([PackedStrings.pack(part) for part in parts])
    assert [joined[row] for row in range(len(joined))] == ["ab", "", "画像", "c"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
def test_the_first_images_keep_their_objects(index: AnnotationIndex, count: int) -> None:
    masked = with_masks(index, *(torch.arange(80).reshape(8, 10) == number for number in range(6)))
    first = masked.first(count)
    assert len(first) == min(count, 4)
    assert len(first.boxes) == [0, 2, 2, 3, 6, 6][min(count, 5)]
    for row in range(len(first)):
        assert first.paths[row] == masked.paths[row]
        assert first.stored("masks", row) == masked.stored("masks", row)
        assert torch.equal(first.target(row).boxes, masked.target(row).boxes)
    assert first.num_wanted().tolist() == masked.num_wanted().tolist()[:count]


# digest


def test_the_digest_sees_every_annotation_and_not_where_the_files_lie(make_index: MakeIndex) -> None:
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
        replace(plain, paths=PackedStrings.pack(["/a/0.jpg", "/a/2.jpg"])),
        make_index([[], objects[0]], paths=["/a/0.jpg", "/a/1.jpg"]),
        plain.first(1),
        with_masks(plain, mask, mask),
        with_masks(plain, mask, ~mask),
    ]
    assert len({index_digest(each) for each in [plain, *others]}) == len(others) + 1


def test_names_that_only_join_alike_differ(make_index: MakeIndex) -> None:
    first, second = (make_index([[], []], paths=paths) for paths in (["ab.jpg", "c.jpg"], ["a", "b.jpgc.jpg"]))
    assert index_digest(first) != index_digest(second)


class TestLabelsThatAreNotJudged:
    """Image 1 of class 0, image 3 of class 1."""

    PAIRS = torch.tensor([[1, 0], [3, 1]])

    def test_move_with_their_images(self, index: AnnotationIndex) -> None:
        marked = replace(index, unjudged=self.PAIRS)
        joined = AnnotationIndex.concatenate([index, marked])
        assert [joined.unjudged_labels(row).tolist() for row in range(8)] == [[], [], [], [], [], [0], [], [1]]
        assert marked.first(3).unjudged.tolist() == [[1, 0]]

    def test_stay_with_their_images_where_others_go(self, index: AnnotationIndex, tmp_path: Path) -> None:
        paths = [tmp_path / f"{row}.png" for row in range(4)]
        for path in paths[2:]:
            Image.new("RGB", (80, 60)).save(path)
        marked = replace(index, paths=PackedStrings.pack([str(path) for path in paths]), unjudged=self.PAIRS)
        rest, dropped = usable_images(marked, "drop")
        assert [Path(problem.file).name for problem in dropped] == ["0.png", "1.png"]
        assert rest.unjudged.tolist() == [[1, 1]]
