"""Mirrors detection/model/panoptic_merge.py."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from detection.masks import RLE, encode
from detection.model.panoptic_merge import Merging
from detection.segments import Segment, Segments

RULE = Merging(num_things=2, instance_score=0.5, overlap=0.5, stuff_area=3)
Mask = NDArray[np.bool_]


def columns(first: int, end: int) -> Mask:
    """Columns ``first`` to ``end`` of an image of 1 x 12 pixels."""
    return ((np.arange(12) >= first) & (np.arange(12) < end))[None]


def merge(
    found: list[tuple[float, int, Mask]], label_map: NDArray[np.uint8] | None = None, rule: Merging = RULE
) -> Segments:
    """``found`` are scores, labels and masks."""
    masks: tuple[RLE, ...] = tuple(encode(mask) for _, _, mask in found)
    scores, labels = np.array([s for s, _, _ in found]), np.array([label for _, label, _ in found], np.int64)
    return rule(scores, labels, masks, np.zeros((1, 12), np.uint8) if label_map is None else label_map)


def by_pixels(found: list[tuple[float, int, Mask]], label_map: NDArray[np.uint8], rule: Merging) -> list[list[int]]:
    """The paper's rule on sets of pixels: (label, pixels) of each segment, in their order."""
    taken, segments = set[int](), list[list[int]]()
    for score, label, mask in sorted(found, key=lambda item: -item[0]):
        pixels = set(np.flatnonzero(mask).tolist())
        if score < rule.instance_score or not pixels or len(pixels & taken) / len(pixels) > rule.overlap:
            continue
        segments.append([label, *sorted(pixels - taken)])
        taken |= pixels
    for stuff in range(1, int(label_map.max(initial=0)) + 1):
        pixels = set(np.flatnonzero(label_map == stuff).tolist()) - taken
        if pixels and len(pixels) >= rule.stuff_area:
            segments.append([rule.num_things + stuff - 1, *sorted(pixels)])
    return segments


def test_by_hand() -> None:
    # The better object keeps what both claim.
    found = merge([(0.7, 0, columns(2, 8)), (0.9, 1, columns(0, 4))])
    assert found.ids[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    assert found.found == (Segment(1, 1), Segment(2, 0))
    # An object that better ones cover by more than half is left out; weak, empty and covered ones too.
    for second, labels in (((0.7, 0, columns(2, 6)), [1, 0]), ((0.6, 0, columns(1, 4)), [1])):
        assert [s.label for s in merge([(0.9, 1, columns(0, 4)), second]).found] == labels
    assert merge([(0.49, 0, columns(0, 4)), (0.9, 0, columns(0, 0))]).found == ()
    both = [(0.9, 0, columns(0, 4)), (0.8, 0, columns(1, 3))]
    assert merge(both, rule=replace(RULE, overlap=1.0)).found == (Segment(1, 0),)
    assert merge([]).found == ()
    # Stuff fills what objects leave if it is enough: 2 pixels of the second are too few.
    label_map = np.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 0, 0, 0]], np.uint8)
    found = merge([(0.9, 0, columns(0, 4))], label_map)
    assert found.ids[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0]
    assert found.found == (Segment(1, 0), Segment(2, 2))


def test_equal_to_the_rule_pixel_by_pixel() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        rule = Merging(num_things=4, overlap=float(generator.random()), stuff_area=int(generator.integers(1, 30)))
        objects = list[tuple[float, int, Mask]]()
        for _ in range(generator.integers(0, 8)):
            top, left, height, width = generator.integers(0, 9, 4)
            mask = np.zeros((9, 11), np.bool_)
            mask[top : top + height, left : left + width] = True
            objects.append((float(generator.random()), int(generator.integers(4)), mask))
        label_map = generator.integers(0, 3, (9, 11)).astype(np.uint8)
        found = merge(objects, label_map, rule)
        got = [[s.label, *np.flatnonzero(found.ids == s.id).tolist()] for s in found.found]
        assert got == by_pixels(objects, label_map, rule)
