"""Mirrors detection/model/panoptic_merge.py."""

from typing import Any

import numpy as np

from detection.masks import encode
from detection.model.panoptic_merge import Merging


def by_pixels(found: list[Any], label_map: Any, rule: Merging) -> list[list[int]]:
    """The paper's rule on sets of pixels: (label, pixels) of each segment, in their order."""
    taken, segments = set[int](), list[list[int]]()
    for score, label, mask in sorted(found, key=lambda item: -item[0]):
        pixels = set(np.flatnonzero(mask).tolist())
        if score < rule.instance_score or not pixels or len(pixels & taken) / len(pixels) > rule.overlap:
            continue
        segments += [[label, *sorted(pixels - taken)]] if pixels - taken else []
        taken |= pixels
    for stuff in range(1, int(label_map.max(initial=0)) + 1):
        pixels = set(np.flatnonzero(label_map == stuff).tolist()) - taken
        if pixels and len(pixels) >= rule.stuff_area:
            segments.append([rule.num_things + stuff - 1, *sorted(pixels)])
    return segments


def test_equal_to_the_rule_pixel_by_pixel() -> None:
    """Also with shares, scores and areas exactly at their limits, and without any object."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        overlap, area = float(generator.choice([0.25, 0.5, 0.75, 1.0])), int(generator.integers(1, 30))
        rule, objects = Merging(num_things=4, instance_score=0.5, overlap=overlap, stuff_area=area), list[Any]()
        for score in generator.permutation(20)[: generator.integers(0, 8)] / 20:
            top, left, height, width = generator.integers(0, 9, 4)
            mask = np.zeros((9, 11), np.bool_)
            mask[top : top + height, left : left + width] = True
            objects.append((float(score), int(generator.integers(4)), mask))
        label_map = generator.integers(0, 3, (9, 11)).astype(np.uint8)
        scores, labels = np.array([own[0] for own in objects]), np.array([own[1] for own in objects], np.int64)
        found = rule(scores, labels, tuple(encode(mask) for _, _, mask in objects), label_map)
        got = [[s.label, *np.flatnonzero(found.ids == s.id).tolist()] for s in found.found]
        assert got == by_pixels(objects, label_map, rule)
        assert set(np.unique(found.ids).tolist()) <= {0, *(s.id for s in found.found)}
