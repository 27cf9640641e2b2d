"""Mirrors detection/data/copy_paste.py."""

import numpy as np
import torch

from detection.data.copy_paste import choose, paste
from detection.structures import Target

MIDDLE = (45, 35, 75, 60)


def scene(*boxes, size=(90, 120)):
    """Black with a filled rectangle per box, and the target that fits; label n is object n, and 1 is ignored."""
    image, masks = np.zeros((*size, 3), np.uint8), torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        image[y1:y2, x1:x2, 1] = 190
        mask[y1:y2, x1:x2] = True
    image.setflags(write=False)
    labels, rows = torch.arange(len(boxes)), torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return image, Target(boxes=rows, labels=labels, ignore=labels == 1, masks=masks)


def box_of(pixels):
    rows, columns = np.nonzero(np.asarray(pixels))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_ignored_objects_and_those_without_a_mask_are_not_chosen() -> None:
    _, objects = scene((0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20))
    objects.masks[2] = False
    assert choose(objects, np.random.default_rng(0)).labels.tolist() == [0]
    for none in (objects[1:], objects[:0]):
        assert len(choose(none, np.random.default_rng(0))) == 0


def test_pasting_by_hand_leaves_the_arguments() -> None:
    image, target = scene((0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20))
    other, objects = scene((10, 0, 30, 20), (40, 0, 60, 20))
    before = target.boxes.clone(), target.masks.clone()
    pasted, moved = paste(image, target, other + 1, objects)
    # The first is covered from x = 10 on, the second wholly, the third not; then come the new ones.
    assert moved.boxes.tolist() == [[0, 0, 10, 20], [80, 0, 100, 20], [10, 0, 30, 20], [40, 0, 60, 20]]
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([0, 2, 0, 1], [False, False, False, True])
    assert [box_of(mask) for mask in moved.masks] == moved.boxes.tolist()
    assert not (moved.masks[0] & moved.masks[2]).any()
    expected = image.copy()
    expected[0:20, 10:30], expected[0:20, 40:60] = other[0:20, 10:30] + 1, other[0:20, 40:60] + 1
    np.testing.assert_array_equal(pasted, expected)
    assert torch.equal(target.boxes, before[0])
    assert torch.equal(target.masks, before[1])


def test_masks_decide_what_is_pasted_and_unknown_ones_keep_their_box() -> None:
    other, objects = scene((10, 10, 30, 30))
    objects.masks[0, 20:] = False
    pasted, moved = paste(*scene(), other, objects)
    assert box_of(pasted[..., 1]) == [10, 10, 30, 20]
    assert moved.boxes.tolist() == [[10, 10, 30, 30]]  # its own, as annotated
    image, target = scene((0, 0, 20, 20), (40, 0, 60, 20))
    target.masks[0] = False
    _, moved = paste(image, target, *scene((0, 0, 80, 30)))
    assert moved.boxes.tolist() == [[0, 0, 20, 20], [0, 0, 80, 30]]
    assert not moved.masks[0].any()


def test_objects_of_larger_images_are_cut_and_those_of_smaller_ones_fit() -> None:
    others = scene((100, 70, 130, 110), (125, 0, 140, 20), (0, 0, 10, 10), size=(120, 150))
    pasted, moved = paste(*scene(MIDDLE), *others)
    assert (pasted.shape, moved.masks.shape) == ((90, 120, 3), (3, 90, 120))
    assert moved.boxes.tolist() == [list(MIDDLE), [100, 70, 120, 90], [0, 0, 10, 10]]  # the second is outside
    pasted, moved = paste(*scene(MIDDLE), *scene((5, 5, 20, 20), size=(40, 30)))
    assert (pasted.shape, moved.boxes.tolist()) == ((90, 120, 3), [list(MIDDLE), [5, 5, 20, 20]])
