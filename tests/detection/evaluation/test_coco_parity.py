"""All numbers of COCO against pycocotools, on sets made to tell two implementations apart."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detection.evaluation.coco import evaluate_coco
from detection.evaluation.record import Record

Array = np.ndarray[Any, Any]
Make = Callable[..., list[tuple[Array, Array]]]
NAMES = ["a", "b", "c", "d"]


def at_limits(rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Sides of 31, 32, 33, 95, 96 and 97 pixels: areas at both limits; whole pixels: IoU of exactly 0.5 or 0.75."""
    images = []
    for _ in range(int(rng.integers(1, 9))):
        places = rng.integers(0, 20, (int(rng.integers(0, 7)), 2))
        boxes = np.concatenate([places, places + rng.choice([31, 32, 33, 95, 96, 97], places.shape)], axis=1)
        found = boxes[rng.integers(0, len(boxes), 12)] if len(boxes) else np.zeros((12, 4))
        images.append((boxes, found + rng.choice([0, 0, 1, 8, 16, 32], found.shape) * np.array([0, 0, 1, 1])))
    return images


def tied(rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Small whole boxes in a small image: most overlaps, and all scores, occur many times."""
    images = []
    for _ in range(int(rng.integers(1, 6))):
        corners, sides = rng.integers(0, 4, (30, 2)), rng.integers(1, 6, (30, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        images.append((boxes[: int(rng.integers(0, 11))], boxes[10:]))
    return images


def crowded(rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """More than 100 detections of a class in an image, of which the last find what the first do not."""
    images = []
    for count in rng.integers(1, 14, 2).tolist():
        corners = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 100, (count, 2))], axis=1)
        found = np.repeat(boxes, 12, axis=0) + rng.normal(0, 3, (12 * count, 4))
        images.append((boxes, np.concatenate([found[:, :2], np.maximum(found[:, 2:], found[:, :2])], axis=1)))
    return images


def lopsided(rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Classes without objects, images without either, nothing at all."""
    box, counts = np.array([10.0, 10.0, 60.0, 60.0]), [(0, int(rng.integers(0, 3)))]
    counts += rng.integers(0, 3, (int(rng.integers(0, 4)), 2)).tolist()
    return [(np.tile(box, (objects, 1)), np.tile(box, (found, 1))) for objects, found in counts]


KINDS = {at_limits: 2, tied: 3, crowded: 1, lopsided: 4}  # and their numbers of classes


@pytest.fixture
def drawn(record):
    """Boxes of a kind with random classes, scores of few values, some crowds and ids in no order."""

    def draw(make: Make, rng: np.random.Generator) -> list[Record]:
        images, classes = make(rng), KINDS[make]
        ids = rng.permutation(len(images) + 3).tolist()
        return [
            record(
                list(zip(boxes, rng.integers(0, classes, len(boxes)), strict=True)),
                [(box, rng.integers(0, classes), rng.integers(0, 10) / 10) for box in found],
                image_id=number,
                size=(400, 400),
                ignore=np.flatnonzero(rng.random(len(boxes)) < rng.choice([0, 0.3])).tolist(),
                gt_areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.choice([1, 1, 0.7]),
            )
            for number, (boxes, found) in zip(ids, images, strict=False)
        ]

    return draw


# Kind of boxes, of IoU, and number of sets.
CASES = [*((make, "bbox", 10) for make in KINDS), (tied, "segm", 1)]
MORE = [*((make, "bbox", 150) for make in KINDS), *((make, "segm", 10) for make in (at_limits, tied, lopsided))]


@pytest.mark.parametrize(
    ("make", "iou_type", "sets"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_numbers_are_those_of_pycocotools(make: Make, iou_type, sets, drawn, with_masks, reference, numbers) -> None:
    some, known = np.zeros(24, np.int64), 0
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        records = drawn(make, rng)
        records = [with_masks(image, rng) for image in records] if iou_type == "segm" else records
        ours, expected = (numbers(of(records, NAMES, iou_type=iou_type)) for of in (evaluate_coco, reference))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=f"{make.__name__}, seed {seed}")
        some += (expected > 0) & (expected < 1)
        known += int((expected > 0).sum())
    assert known > sets  # the sets are neither trivial nor hopeless
    assert iou_type == "segm" or (some[:3] > 0).all()
