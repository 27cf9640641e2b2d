"""Mirrors coco.py and average_precision.py: values by hand, and all numbers of pycocotools."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.coco import COCO_NUMBERS, coco_results, evaluate_coco
from detection.evaluation.matching import match
from detection.evaluation.record import Record
from detection.masks import empty_rle, encode

NAMES = ["cat", "dog", "cow", "unseen"]
BOX, NOWHERE = (0, 0, 10, 10), (50, 50, 60, 60)


def perfect(image: Record) -> Record:
    """The objects of ``image``, all of which count, as its detections."""
    own = {name: getattr(image, f"gt_{name}") for name in ("boxes", "labels", "masks")}
    count = len(image.gt_boxes)
    return replace(image, gt_ignore=np.zeros(count, np.bool_), scores=np.full(count, 0.5, np.float32), **own)


def without(image: Record, *parts: str) -> Record:
    found = ("boxes", "scores", "labels") if "detections" in parts else ()
    objects = ("gt_boxes", "gt_labels", "gt_ignore", "gt_areas") if "objects" in parts else ()
    return replace(image, **{name: getattr(image, name)[:0] for name in (*found, *objects)})


def test_known_value(record, numbers) -> None:
    # Two objects of 50 x 50 and one detection of the first with IoU 30/50: a hit at 0.50, 0.55 and 0.60.
    # There recall is 1/2 with precision 1: 51 of the 101 recalls 0, 0.01, ..., 0.5 count 1.
    image = record([[0, 0, 50, 50], [100, 100, 150, 150]], [([0, 0, 50, 30], 0.9)])
    result = evaluate_coco([image], ["cat"])
    values = numbers(result)
    assert values[:3] == pytest.approx([51 / 101 * 3 / 10, 51 / 101, 0])  # AP, AP50, AP75
    assert values[6:9] == pytest.approx([1 / 2 * 3 / 10] * 3)  # AR1, AR10, AR100
    assert values[12:] == pytest.approx(values[:3])
    assert (result.APm, result.ARm) == (result.AP, result.AR100)  # 32 * 32 < 2500 < 96 * 96
    assert np.isnan([result.APs, result.APl, result.ARs, result.ARl]).all()


def test_known_mask_value(record, numbers) -> None:
    # Boxes that agree; the mask is half of its object's: an IoU of 0.5 is a hit at 0.5 only.
    x = np.arange(60)[None, :].repeat(60, axis=0)
    box = [10, 10, 50, 50]
    image = record([box], [(box, 0.9)], gt_masks=(encode((x >= 10) & (x < 50)),), masks=(encode((x >= 10) & (x < 30)),))
    assert numbers(evaluate_coco([image], ["cat"]))[:3] == pytest.approx([1, 1, 1])
    masks = evaluate_coco([image], ["cat"], iou_type="segm")
    assert numbers(masks)[:3] == pytest.approx([0.1, 1, 0])
    assert masks.APm == masks.AP  # by the object's area: 32 * 32 < 1600 < 96 * 96
    assert numbers(evaluate_coco([perfect(image)], ["cat"], iou_type="segm"))[:3] == pytest.approx([1, 1, 1])


def test_perfect_detections_reach_one(random_records) -> None:
    result = evaluate_coco([perfect(image) for image in random_records(0)], NAMES)
    assert [getattr(result, name) for name in COCO_NUMBERS if name not in ("AR1", "AR10")] == pytest.approx([1.0] * 10)
    assert 0 < result.AR1 < 1
    np.testing.assert_allclose(result.class_ap, [1, 1, 1, np.nan])


def test_nothing_to_find_gives_no_value_and_no_detections_give_zero(random_records, numbers) -> None:
    records = random_records(0)
    crowds = [replace(image, gt_ignore=np.ones(len(image.gt_boxes), np.bool_)) for image in records]
    blank = without(records[0], "objects", "detections")
    for empty in ([], [without(image, "objects") for image in records], [blank], crowds):
        assert np.isnan(numbers(evaluate_coco(empty, NAMES))).all()
    assert evaluate_coco([blank], []).class_ap.shape == (0,)
    assert np.isnan(evaluate_coco([], NAMES, iou_type="segm").AP)
    result = evaluate_coco([without(image, "detections") for image in records], NAMES)
    assert [getattr(result, name) for name in COCO_NUMBERS] == [0.0] * 12
    np.testing.assert_array_equal(result.class_ap50, [0, 0, 0, np.nan])


@pytest.mark.parametrize("scores", [np.nextafter(np.float32(0.5), np.ones(2, np.float32)), np.array([0.5 + 1e-12] * 2)])
def test_scores_are_not_rounded(scores: Any, record) -> None:
    # The hit ranks above the miss by the last digits: precision is 1 only if these survive.
    image = record([[0, 0, 50, 50]], [([500, 500, 550, 550], 0), ([0, 0, 50, 50], 0)])
    scores[0] = 0.5
    assert evaluate_coco([replace(image, scores=scores)], ["cat"]).class_ap == pytest.approx([1.0])


def test_an_object_of_unknown_mask_is_neither_hit_nor_miss(record) -> None:
    boxes, whole = [[0, 0, 300, 150], [0, 150, 300, 300]], encode(np.arange(300)[:, None].repeat(300, 1) >= 150)
    image = record(boxes, [(boxes[1], 0.9)], gt_masks=(empty_rle((300, 300)), whole), masks=(whole,))
    masks, own = (evaluate_coco([image], ["cat"], iou_type=kind).AP for kind in ("segm", "bbox"))
    assert masks == pytest.approx(1)
    assert own == pytest.approx(51 / 101)  # the object counts for boxes, and was not found


def test_mistakes_are_named(record, random_records) -> None:
    image = record([[0, 0, 9, 9]], [([0, 0, 9, 9], 1, 0.5)])
    with pytest.raises(ValueError, match="occurs twice"):
        evaluate_coco([image, image], NAMES)
    with pytest.raises(ValueError, match=r"expected 0\.\.0"):
        evaluate_coco([image], ["cat"])
    with pytest.raises(ValueError, match=r"expected 0\.\.1"):
        coco_results([replace(image, labels=np.full(1, -1))], [18, 44])
    (masked,) = random_records(2, 1, masks=True)
    for name, whose in (("gt_masks", "objects"), ("masks", "detections")):
        with pytest.raises(ValueError, match=rf"{masked.file_name}: no masks of its {whose}"):
            evaluate_coco([replace(masked, **{name: None})], NAMES, iou_type="segm")
    with pytest.raises(ValueError, match="rows of unequal length"):
        replace(masked, masks=())


def test_results_are_plain_numbers_in_coco_format_that_give_the_corners_back(record) -> None:
    # In float32 100.3 - 0.1 would be rounded.
    corners = np.array([0.1, 0.3, 100.3, 70.7], np.float32)
    image = record([], [([1.5, 2, 11.5, 22], 1, 0.75), (corners, 0, 0.1)], image_id=42, size=(40, 60))
    results = coco_results([image], np.array([18, 44]).tolist())
    assert results[0] == {"image_id": 42, "category_id": 44, "bbox": [1.5, 2.0, 10.0, 20.0], "score": 0.75}
    assert (results[1]["category_id"], results[1]["score"]) == (18, float(np.float32(0.1)))
    x, y, width, height = results[1]["bbox"]
    assert [x, y, x + width, y + height] == corners.tolist()
    assert json.loads(json.dumps(results)) == results
    assert coco_results([], [18, 44]) == []
    masks = (encode(np.ones((40, 60), np.bool_)), empty_rle((40, 60)))
    found = coco_results([replace(image, masks=masks)], [18, 44])
    assert found[0] == results[0] | {"segmentation": {"size": [40, 60], "counts": masks[0]["counts"].decode()}}


def test_known_value_under_weights(record) -> None:
    # By score: a hit in image 1, a miss in image 2, a hit in image 2; one object in each image.
    images = [record([BOX], [(BOX, 0.9)]), record([BOX], [(NOWHERE, 0.8), (BOX, 0.7)], image_id=2)]
    weights = np.array([[1, 1], [2, 1], [0, 2], [0, 0]])
    both, first_twice, second_twice, none = average_precision(match(images, ["cat"]), weights)[:, 0, 0].tolist()
    assert both == pytest.approx((51 + 50 * 2 / 3) / 101)  # recall 1/2 at precision 1, then 2/3
    assert first_twice == pytest.approx((67 + 34 * 3 / 4) / 101)  # recall 2/3 at precision 1 (0 to 0.66), then 3/4
    assert second_twice == pytest.approx(1 / 2)  # two misses, then two hits
    assert math.isnan(none)


def test_weights_give_the_ap_of_repeated_images(random_records, repeated, reference, monkeypatch) -> None:
    records = random_records(0, 8)
    weights = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=8)
    found = average_precision(match(records, NAMES), weights)
    for ap, counts in zip(found, weights.tolist(), strict=True):
        expected = reference(repeated(records, counts), NAMES)
        np.testing.assert_allclose(ap.mean(axis=1), expected.class_ap, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap[:, 0], expected.class_ap50, rtol=0, atol=1e-9)
    monkeypatch.setattr("detection.evaluation.average_precision._CHUNK", 100)  # many resamples are taken in parts
    np.testing.assert_array_equal(average_precision(match(records, NAMES), weights), found)


def test_a_class_missing_from_a_resample_stays_out_of_its_mean(record) -> None:
    # Class 0 has its only object in image 1, class 1 in both; the detector finds all of class 1 only.
    images = [record([(BOX, 0), (BOX, 1)], [(BOX, 1, 0.9)]), record([(BOX, 1)], [(BOX, 1, 0.8)], image_id=2)]
    ap = average_precision(match(images, ["a", "b"]), np.array([[1, 1], [0, 2]]))
    np.testing.assert_array_equal(mean_over_classes(ap[:, :, 0]), [0.5, 1.0])


# All numbers of COCO against pycocotools, on sets made to tell two implementations apart.

Array = np.ndarray[Any, Any]
Make = Callable[..., list[tuple[Array, Array]]]


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
