"""All numbers of COCO against pycocotools, on sets made to tell two implementations apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detection.evaluation.coco import COCO_NUMBERS, CocoResult, evaluate_coco
from detection.evaluation.record import Record
from detection.masks import empty_rle, encode

Array = np.ndarray[Any, Any]
Reference = Callable[..., CocoResult]

SETS = 150  # of each kind
SIZE = (400, 400)


def numbers(result: CocoResult) -> Array:
    """All twelve numbers and the three of each class, flat."""
    twelve = [getattr(result, name) for name in COCO_NUMBERS]
    return np.concatenate([twelve, result.class_ap, result.class_ap50, result.class_ap75])


def record(rng: np.random.Generator, image_id: int, boxes: Array, found: Array, *, classes: int) -> Record:
    """One image whose objects and detections have random classes, scores of few values and some crowds."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=SIZE,
        gt_boxes=boxes.astype(np.float32),
        gt_labels=rng.integers(0, classes, len(boxes)),
        gt_ignore=rng.random(len(boxes)) < rng.choice([0, 0.3]),
        gt_areas=(sides.prod(axis=1) * rng.choice([1, 1, 0.7])).astype(np.float32),
        boxes=found.astype(np.float32),
        scores=(rng.integers(0, 10, len(found)) / 10).astype(np.float32),
        labels=rng.integers(0, classes, len(found)),
    )


def at_limits(rng: np.random.Generator) -> list[Record]:
    """Sides of 31, 32, 33, 95, 96 and 97 pixels: areas at both limits; whole pixels: IoU of exactly 0.5 or 0.75."""
    records = []
    for image_id in rng.permutation(8)[: rng.integers(1, 9)].tolist():
        places = rng.integers(0, 20, (int(rng.integers(0, 7)), 2))
        boxes = np.concatenate([places, places + rng.choice([31, 32, 33, 95, 96, 97], places.shape)], axis=1)
        found = boxes[rng.integers(0, len(boxes), 12)] if len(boxes) else np.zeros((12, 4))
        found = found + rng.choice([0, 0, 1, 8, 16, 32], found.shape) * np.array([0, 0, 1, 1])
        records.append(record(rng, image_id, boxes, found, classes=2))
    return records


def tied(rng: np.random.Generator) -> list[Record]:
    """Small whole boxes in a small image: most overlaps, and all scores, occur many times."""
    records = []
    for image_id in range(int(rng.integers(1, 6))):
        corners, sides = rng.integers(0, 4, (30, 2)), rng.integers(1, 6, (30, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        objects = int(rng.integers(0, 11))
        records.append(record(rng, image_id, boxes[:objects], boxes[10:], classes=3))
    return records


def crowded(rng: np.random.Generator) -> list[Record]:
    """More than 100 detections of a class in an image, of which the last find what the first do not."""
    records = []
    for image_id, count in enumerate(rng.integers(1, 14, 2).tolist()):
        corners = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 100, (count, 2))], axis=1)
        found = np.repeat(boxes, 12, axis=0) + rng.normal(0, 3, (12 * count, 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        records.append(record(rng, image_id, boxes, found, classes=1))
    return records


def lopsided(rng: np.random.Generator) -> list[Record]:
    """Classes without objects, images without either, nothing at all."""
    records = [record(rng, 9, np.zeros((0, 4)), np.tile([0.0, 0.0, 9.0, 9.0], (int(rng.integers(0, 3)), 1)), classes=4)]
    for image_id in range(int(rng.integers(0, 4))):
        boxes = np.tile([10.0, 10.0, 60.0, 60.0], (int(rng.integers(0, 3)), 1))
        found = np.tile([10.0, 10.0, 60.0, 60.0], (int(rng.integers(0, 3)), 1))
        records.append(record(rng, image_id, boxes, found, classes=4))
    return records


@pytest.mark.slow
@pytest.mark.parametrize("make", [at_limits, tied, crowded, lopsided])
def test_boxes_give_the_numbers_of_pycocotools(make: Callable[..., list[Record]], reference: Reference) -> None:
    names, some = ["a", "b", "c", "d"], np.zeros(24, np.int64)
    for seed in range(SETS):
        records = make(np.random.default_rng(seed))
        ours, expected = numbers(evaluate_coco(records, names)), numbers(reference(records, names))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=f"{make.__name__}, seed {seed}")
        some += (expected > 0) & (expected < 1)
    assert (some[:3] > 0).all()  # the sets are neither trivial nor hopeless


def with_masks(rng: np.random.Generator, image: Record) -> Record:
    """Masks that fill the boxes of ``image`` in part, as ellipses; some are empty, those of some objects unknown."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5

    def drawn(boxes: Array) -> Any:
        masks = []
        for x1, y1, x2, y2 in boxes.astype(np.float64):
            place = [(x - (x1 + x2) / 2) / max(x2 - x1, 1), (y - (y1 + y2) / 2) / max(y2 - y1, 1)]
            filled = np.square(place).sum(axis=0) < rng.uniform(0.15, 0.3)
            masks.append(empty_rle(SIZE) if rng.random() < 0.1 else encode(filled))
        return tuple(masks)

    return replace(image, gt_masks=drawn(image.gt_boxes), masks=drawn(image.boxes))


@pytest.mark.slow
@pytest.mark.parametrize("make", [at_limits, tied, lopsided])
def test_masks_give_the_numbers_of_pycocotools(make: Callable[..., list[Record]], reference: Reference) -> None:
    names, known = ["a", "b", "c", "d"], 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        records = [with_masks(rng, image) for image in make(rng)]
        ours = numbers(evaluate_coco(records, names, iou_type="segm"))
        expected = numbers(reference(records, names, iou_type="segm"))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=f"{make.__name__}, seed {seed}")
        known += int((expected > 0).sum())
    assert known > 10
