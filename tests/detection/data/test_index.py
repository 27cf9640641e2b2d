"""Mirrors detection/data/index.py, packed_strings.py and objects.py."""

import math
import pickle
from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.data.bad_images import usable_images
from detection.data.index import AnnotationIndex, index_digest
from detection.data.objects import ImageRows, ObjectRows, build_index, files_in, nearest_class
from detection.data.packed_strings import PackedStrings

BOX, OTHER = (1.0, 2.0, 11.0, 22.0), (5.0, 5.0, 15.0, 10.0)
PATTERNS = [torch.arange(80).reshape(8, 10) == number for number in range(6)]


@pytest.fixture
def index(make_index):
    """Four images with 2, 0, 1 (ignored) and 3 objects."""
    last = [(OTHER, 0, True), (BOX, 1, False), (BOX, 0, False)]
    return make_index([[(BOX, 0, False), (OTHER, 1, False)], [], [(BOX, 1, True)], last])


def masks_of(index, row) -> Any:
    return index.target(row, fields=("masks",)).masks


def test_packed_strings_come_back_from_one_tensor_of_characters_of_which_rows_are_taken() -> None:
    for strings in ([], [""], ["", "", ""], ["a", "", "bc"], ["grüße.jpg", "画像/猫.png", "🐈"], ["/x" * 200, "y"]):
        packed = PackedStrings.pack(strings)
        assert (len(packed), [packed[row] for row in range(len(packed))]) == (len(strings), strings)
        assert list(PackedStrings.concatenate([packed, PackedStrings.pack([]), packed]).all()) == strings * 2
        with pytest.raises(IndexError):
            packed[len(strings)]
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


def test_a_pickled_index_has_equal_rows_and_its_first_images_their_objects(index, with_masks) -> None:
    index = with_masks(index, PATTERNS)
    for dumps in (pickle.dumps, ForkingPickler.dumps):
        again = pickle.loads(dumps(index))
        assert (again.class_names, again.category_ids) == (index.class_names, index.category_ids)
        for field in fields(index):
            if isinstance(value := getattr(index, field.name), torch.Tensor):
                assert torch.equal(getattr(again, field.name), value)
        assert list(again.paths.all()) == list(index.paths.all())
        assert again.stored("masks", 3) == index.stored("masks", 3)
    masked = with_masks(index, PATTERNS)
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


def test_masks_are_decoded_on_request_and_empty_where_a_joined_part_has_none(index, make_index, with_masks) -> None:
    small, large = torch.rand(2, 4, 6) > 0.5, torch.rand(1, 9, 5) > 0.5
    plain = make_index([[(BOX, 0, False), (BOX, 1, False)], [], [(BOX, 0, True)]], sizes=[(4, 6), (2, 3), (9, 5)])
    masked = with_masks(plain, [*small, *large])
    for row, masks in enumerate([small, torch.zeros(0, 2, 3, dtype=torch.bool), large]):
        assert masked.target(row).masks is None
        assert torch.equal(masks_of(masked, row), masks)
        assert [rle["size"] for rle in masked.stored("masks", row) or ()] == [[*masks.shape[1:]]] * len(masks)
    with pytest.raises(ValueError, match=r"no masks, or they were not read; .*`instances: SegmentationObject`"):
        index.target(0, fields=("masks",))
    mask = torch.rand(4, 6) > 0.5
    masked = with_masks(make_index([[], [(BOX, 0, False)]], sizes=[(3, 3), (4, 6)]), [mask])
    plain = make_index([[(BOX, 0, False), (BOX, 1, False)], [(BOX, 0, False)]], sizes=[(5, 5), (7, 9)])
    for parts, shift in (([masked, plain], 0), ([plain, masked], 2)):
        joined = AnnotationIndex.concatenate(parts)
        assert torch.equal(masks_of(joined, 1 + shift), mask[None])
        assert torch.equal(masks_of(joined, 2 - shift), torch.zeros(2, 5, 5).bool())
        assert torch.equal(masks_of(joined, 3 - shift), torch.zeros(1, 7, 9).bool())
    assert not AnnotationIndex.concatenate([plain, plain]).fields


def test_the_digest_sees_every_annotation_and_not_where_the_files_lie(make_index, with_masks) -> None:
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
        with_masks(plain, [mask, mask]),
        with_masks(plain, [mask, ~mask]),
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


BAD = "box outside the image or without area"


def build(*objects, drop=True, num_images=2, areas=None):
    """Images of 60x80; object n has label n % 2, area n unless ``areas`` are given, and is ignored where n is 2."""
    rows, numbers = range(num_images), range(len(objects))
    exif = [row % 2 == 0 for row in rows]
    images = ImageRows([f"{row}.jpg" for row in rows], [10 + row for row in rows], [(60, 80)] * num_images, exif)
    found = ObjectRows(
        [image for image, _ in objects],
        [box for _, box in objects],
        [number % 2 for number in numbers],
        [number == 2 for number in numbers],
        list(areas or map(float, numbers)),
        [f"object {number}" for number in numbers],
    )
    options = {"class_names": ("cat", "dog"), "category_ids": (7, 3), "files": [f"{row}.xml" for row in rows]}
    return build_index(images, found, drop=drop, **options)


def test_objects_are_sorted_by_image_in_their_order_and_any_image_may_be_empty() -> None:
    index, problems = build((1, (1, 1, 5, 5)), (0, (2, 2, 6, 6)), (1, (3, 3, 7, 7)), (0, (4, 4, 8, 8)))
    assert (problems, index.boxes[:, 0].tolist(), index.ends.tolist()) == ([], [2, 4, 1, 3], [2, 4])
    assert (index.labels.tolist(), index.areas.tolist()) == ([1, 1, 0, 0], [1, 3, 0, 2])
    assert index.ignore.tolist() == [False, False, False, True]
    assert (index.image_ids.tolist(), index.sizes.tolist()) == ([10, 11], [[60, 80], [60, 80]])
    assert (index.category_ids, index.apply_exif.tolist()) == ((7, 3), [True, False])
    index, _ = build(*((number % 2, (number, 1, number + 5, 6)) for number in range(60)))
    assert index.boxes[:, 0].tolist() == [*range(0, 60, 2), *range(1, 60, 2)]
    index, _ = build((1, (1, 1, 5, 5)), (3, (2, 2, 6, 6)), num_images=5)
    assert [len(index.target(row)) for row in range(5)] == [0, 1, 0, 1, 0]
    assert build()[0].boxes.shape == (0, 4)
    index, problems = build(num_images=0)
    assert (len(index), index.sizes.shape, problems) == (0, (0, 2), [])


def test_boxes_are_dropped_or_cut_and_named_and_areas_over_the_border_those_of_the_box() -> None:
    good, nan, inf = (1.0, 1.0, 5.0, 5.0), math.nan, math.inf
    flat, outside = [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9)], [(80, 5, 90, 9), (-9, 5, 0, 9), (5, 60, 9, 70)]
    for box in (*flat, *outside, (nan, 5, 9, 9), (5, 5, inf, 9), (-inf, 5, 9, 9)):
        index, (problem,) = build((0, good), (1, box), (1, good))
        assert (index.boxes.tolist(), index.ends.tolist()) == ([list(good)] * 2, [1, 2])
        assert (index.labels.tolist(), index.ignore.tolist(), index.areas.tolist()) == ([0, 0], [False, True], [0, 2])
        assert (problem.severity, problem.kind, problem.file) == ("dropped", BAD, "1.xml")
        assert problem.detail.startswith("object 1, box")
    _, problems = build((0, (5, 5, 5, 9)), (0, (50, 5, 90, 9)), (0, (1, 1, 2, 2)), drop=False)
    cut = "box cut at the image border"
    assert [(problem.severity, problem.kind) for problem in problems] == [("error", BAD), ("error", cut)]
    index, (problem,) = build((0, (-5, -4, 90, 70)))
    assert index.boxes.tolist() == [[0, 0, 80, 60]]
    assert (problem.severity, problem.kind) == ("note", "box cut at the image border")
    index, problems = build((0, (-0.5, -1, 81, 60.9)), drop=False)
    assert (index.boxes.tolist(), problems) == ([[0, 0, 80, 60]], [])
    for area in (1e39, 4801.0):  # larger than the image
        index, (problem,) = build((0, (1, 1, 5, 6)), (0, (2, 2, 5, 5)), areas=(area, 4800.0), drop=False)
        assert (index.areas.tolist(), problem.severity) == ([20, 4800], "note")  # the first is that of the box
        assert problem.detail == f"object 0, area {area}, image 80x60"


def test_files_of_a_folder_and_the_nearest_class(tmp_path) -> None:
    (tmp_path / "a.jpg").touch()
    assert (files_in(tmp_path), files_in(tmp_path / "nothing")) == ({"a.jpg"}, set())
    assert nearest_class("cta", ("cat", "dog")) == "'cta'; did you mean 'cat'?"
    assert nearest_class("zebra", ("cat", "dog")) == "'zebra'; the card has cat, dog"
    assert nearest_class("zebra", tuple(f"n{number:08d}" for number in range(1000))).endswith("and 990 more")
