"""Mirrors detection/data/copy_paste.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detection.data.copy_paste import choose, paste
from detection.structures import Target

Box = tuple[int, int, int, int]

MIDDLE: Box = (45, 35, 75, 60)


def scene(*boxes: Box, size: tuple[int, int] = (90, 120)) -> tuple[NDArray[np.uint8], Target]:
    """Black with a filled rectangle per box, and the target that fits; label n is object n, and 1 is ignored."""
    image = np.zeros((*size, 3), np.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        image[y1:y2, x1:x2, 1] = 190
        mask[y1:y2, x1:x2] = True
    target = Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
        ignore=torch.arange(len(boxes)) == 1,
        masks=masks,
    )
    return image, target


def box_of(pixels: NDArray[Any]) -> list[int]:
    rows, columns = np.nonzero(pixels)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_ignored_objects_and_those_without_a_mask_are_not_chosen() -> None:
    _, objects = scene((0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20))
    assert objects.masks is not None
    objects.masks[2] = False
    assert choose(objects, np.random.default_rng(0)).labels.tolist() == [0]
    assert len(choose(objects[1:], np.random.default_rng(0))) == 0
    assert len(choose(objects[:0], np.random.default_rng(0))) == 0


def test_pasting_by_hand() -> None:
    image, target = scene((0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20))
    other, objects = scene((10, 0, 30, 20), (40, 0, 60, 20))
    for array in (image, other):
        array.setflags(write=False)
    pasted, moved = paste(image, target, other + 1, objects)
    # The first is covered from x = 10 on, the second wholly, the third not; then come the new ones.
    assert moved.boxes.tolist() == [[0, 0, 10, 20], [80, 0, 100, 20], [10, 0, 30, 20], [40, 0, 60, 20]]
    assert moved.labels.tolist() == [0, 2, 0, 1]
    assert moved.ignore.tolist() == [False, False, False, True]
    assert moved.masks is not None
    assert [box_of(mask.numpy()) for mask in moved.masks] == moved.boxes.tolist()
    assert not (moved.masks[0] & moved.masks[2]).any()
    expected = image.copy()
    expected[0:20, 10:30], expected[0:20, 40:60] = other[0:20, 10:30] + 1, other[0:20, 40:60] + 1
    np.testing.assert_array_equal(pasted, expected)


def test_only_the_pixels_of_the_mask_are_pasted() -> None:
    image, target = scene()
    other, objects = scene((10, 10, 30, 30))
    assert objects.masks is not None
    objects.masks[0, 20:] = False
    pasted, moved = paste(image, target, other, objects)
    assert box_of(pasted[..., 1]) == [10, 10, 30, 20]
    assert moved.boxes.tolist() == [[10, 10, 30, 30]]  # its own, as annotated


def test_objects_of_a_larger_image_are_cut_at_the_border() -> None:
    image, target = scene(MIDDLE, size=(90, 120))
    other, objects = scene((100, 70, 130, 110), (125, 0, 140, 20), (0, 0, 10, 10), size=(120, 150))
    pasted, moved = paste(image, target, other, objects)
    assert pasted.shape == (90, 120, 3)
    assert moved.boxes.tolist() == [list(MIDDLE), [100, 70, 120, 90], [0, 0, 10, 10]]  # the second is outside
    assert moved.masks is not None
    assert moved.masks.shape == (3, 90, 120)


def test_objects_of_a_smaller_image_fit() -> None:
    pasted, moved = paste(*scene(MIDDLE, size=(90, 120)), *scene((5, 5, 20, 20), size=(40, 30)))
    assert pasted.shape == (90, 120, 3)
    assert moved.boxes.tolist() == [list(MIDDLE), [5, 5, 20, 20]]


def test_an_object_with_an_unknown_mask_keeps_its_box() -> None:
    image, target = scene((0, 0, 20, 20), (40, 0, 60, 20))
    assert target.masks is not None
    target.masks[0] = False
    _, moved = paste(image, target, *scene((0, 0, 80, 30)))
    assert moved.boxes.tolist() == [[0, 0, 20, 20], [0, 0, 80, 30]]
    assert moved.masks is not None
    assert not moved.masks[0].any()


def test_pasting_onto_nothing_and_leaving_the_arguments() -> None:
    image, target = scene(MIDDLE)
    other, objects = scene((30, 30, 60, 60))
    before = (image.copy(), target.boxes.clone(), None if target.masks is None else target.masks.clone())
    paste(image, target, other, objects)
    np.testing.assert_array_equal(image, before[0])
    assert torch.equal(target.boxes, before[1])
    assert target.masks is not None
    assert before[2] is not None
    assert torch.equal(target.masks, before[2])
    _, moved = paste(*scene(), other, objects)
    assert moved.boxes.tolist() == [[30, 30, 60, 60]]
