"""Mirrors detection/evaluation/voc.py."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from detection.evaluation.record import Record
from detection.evaluation.voc import evaluate_voc

Box = tuple[float, float, float, float]

A, B, C, D = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]  # apart from each other
NOWHERE = (200.0, 200.0, 210.0, 210.0)


def both(*records: Record, iou_threshold: float = 0.5) -> tuple[float, float]:
    """(11-point AP, area AP) of a single class."""
    result = evaluate_voc(records, ["cat"], iou_threshold=iou_threshold)
    return float(result.ap_11point[0]), float(result.ap_area[0])


def test_known_value(record) -> None:
    # Four objects, ranked detections: hit, miss, hit, miss, hit; the fourth object is never found.
    #   precision  1    1/2  2/3  2/4  3/5
    #   recall     1/4  1/4  2/4  2/4  3/4
    # Best precision at recall >= r: 1 for r <= 1/4, 2/3 for r <= 2/4, 3/5 for r <= 3/4, 0 above.
    # 11 points: r = 0, .1, .2 -> 1; .3, .4, .5 -> 2/3; .6, .7 -> 3/5; .8, .9, 1 -> 0: (3 + 2 + 6/5) / 11 = 6.2 / 11.
    # Area: recall grows by 1/4 at each hit, so (1 + 2/3 + 3/5) / 4 = 17/30.
    first = record([A, B], [(A, 0.9), (NOWHERE, 0.8), (B, 0.7)])
    second = record([C, D], [(C, 0.5), (NOWHERE, 0.6)], image_id=2)
    assert both(first, second) == pytest.approx((6.2 / 11, 17 / 30))


def test_recall_of_three_tenths_reaches_the_point_at_three_tenths(record) -> None:
    # Recall is 3/10 with precision 1: the points 0, .1, .2 and .3 count. In floating point 3 * 0.1 > 3 / 10.
    objects = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(10)]
    assert both(record(objects, [(box, 0.9) for box in objects[:3]])) == pytest.approx((4 / 11, 3 / 10))


def test_iou_just_below_the_threshold_does_not_round_up(record) -> None:
    # The heights have the ratio 1/2 less 3e-8; areas rounded to float32 have an IoU of 1/2.
    box = (0.0, 0.0, 11.1, float(np.float32(14.43)))
    not_quite_half = (0.0, 0.0, 11.1, float(np.nextafter(np.float32(7.215), np.float32(0))))
    assert not_quite_half[3] < box[3] / 2
    assert both(record([box], [(not_quite_half, 0.9)])) == (0.0, 0.0)
    half = record([A], [((0.0, 0.0, 10.0, 5.0), 0.9)])
    assert [both(half, iou_threshold=threshold) for threshold in (0.5, 0.51)] == [(1.0, 1.0), (0.0, 0.0)]
    point = (5.0, 5.0, 5.0, 5.0)
    assert both(record([point], [(point, 0.9)])) == (0.0, 0.0)


def test_ties_keep_the_order_of_image_ids(record) -> None:
    for hit_id, miss_id, ap in ((1, 2, 1.0), (2, 1, 0.5)):
        with_hit, with_miss = record([A], [(A, 0.5)], image_id=hit_id), record([], [(NOWHERE, 0.5)], image_id=miss_id)
        assert both(with_hit, with_miss) == both(with_miss, with_hit) == (ap, ap)


def test_nothing_to_find_gives_no_value(record) -> None:
    for records in ([], [record()], [record([], [(A, 0.9)])]):
        result = evaluate_voc(records, ["a", "b"])
        assert np.isnan([*result.ap_11point, *result.ap_area, result.mean_ap_11point, result.mean_ap_area]).all()
    assert evaluate_voc([], []).ap_area.shape == (0,)


def test_mistakes_are_named(record) -> None:
    for label in (-1, 2):
        with pytest.raises(ValueError, match=rf"1\.jpg: label {label}, expected 0\.\.1"):
            evaluate_voc([record([A], [(A, label, 0.9)])], ["a", "b"])
    with pytest.raises(ValueError, match="image id 7 occurs twice"):
        evaluate_voc([record(image_id=7), record(image_id=7)], ["a"])
    for threshold in (0.0, 50.0):
        with pytest.raises(ValueError, match="fraction above 0 and at most 1"):
            evaluate_voc([], ["a"], iou_threshold=threshold)


# A second implementation, slow and exact, one loop per line of the definition. Pixels count from 1 and the corner
# (xmax, ymax) lies inside the box.

Pixels = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax
Found = Sequence[tuple[float, int, Pixels]]  # score, image, box
Curve = list[tuple[Fraction, Fraction]]  # recall, precision


def pixel_iou(a: Pixels, b: Pixels) -> Fraction:
    def area(box: Pixels) -> int:
        return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)

    width, height = (min(a[2 + i], b[2 + i]) - max(a[i], b[i]) + 1 for i in (0, 1))
    if width <= 0 or height <= 0:
        return Fraction(0)
    return Fraction(width * height, area(a) + area(b) - width * height)


def slow_curve(objects: Sequence[Sequence[tuple[Pixels, bool]]], detections: Found) -> Curve | None:
    """Recall and precision after each detection that counts, None without objects that count.

    ``objects`` are (box, difficult) of each image; ``detections`` stand in image and row order.
    """
    num_objects = sum(not difficult for image in objects for _, difficult in image)
    if num_objects == 0:
        return None
    taken, curve, hits, false = set[tuple[int, int]](), [], 0, 0
    for _, image, box in sorted(detections, key=lambda detection: -detection[0]):
        best, best_iou = -1, Fraction(-1)
        for row, (gt_box, _) in enumerate(objects[image]):
            if pixel_iou(box, gt_box) > best_iou:
                best, best_iou = row, pixel_iou(box, gt_box)
        if best_iou >= Fraction(1, 2):
            if objects[image][best][1]:
                continue
            hits, false = (hits, false + 1) if (image, best) in taken else (hits + 1, false)
            taken.add((image, best))
        else:
            false += 1
        curve.append((Fraction(hits, num_objects), Fraction(hits, hits + false)))
    return curve


def slow_ap(curve: Curve | None) -> tuple[float, float]:
    """(11-point AP, area AP)."""
    if curve is None:
        return math.nan, math.nan
    tenths = [max((p for recall, p in curve if recall >= Fraction(i, 10)), default=Fraction(0)) for i in range(11)]
    recalls = [Fraction(0), *(recall for recall, _ in curve), Fraction(1)]
    precisions = [Fraction(0), *(precision for _, precision in curve), Fraction(0)]
    for i in reversed(range(len(precisions) - 1)):
        precisions[i] = max(precisions[i], precisions[i + 1])
    area = sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls)))
    return float(sum(tenths) / 11), float(area)


def random_pixels(rng: np.random.Generator, count: int) -> list[Pixels]:
    """Small integer boxes in a small image: many overlaps, many IoUs of exactly 1/2."""
    corner, extent = rng.integers(1, 4, (count, 2)), rng.integers(1, 6, (count, 2))
    return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corner.tolist(), extent.tolist(), strict=True)]


def as_read(box: Pixels) -> Box:
    """What an annotation reader makes of inclusive pixels that count from 1."""
    return box[0] - 1, box[1] - 1, box[2], box[3]


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_slow_reading_of_the_definition(seed: int, record) -> None:
    rng, records = np.random.default_rng(seed), list[Record]()
    objects: list[list[list[Any]]] = [[[] for _ in range(12)] for _ in range(4)]
    detections: list[list[Any]] = [[] for _ in range(4)]
    for image in range(12):
        gt_boxes, boxes = random_pixels(rng, int(rng.integers(0, 6))), random_pixels(rng, int(rng.integers(0, 20)))
        difficult = rng.random(len(gt_boxes)) < 0.3
        gt_labels = rng.integers(0, 3, len(gt_boxes)).tolist()  # the last class has detections but no objects
        labels = rng.integers(0, 4, len(boxes)).tolist()
        scores = (rng.integers(0, 8, len(boxes)) / 8).tolist()  # eighths: many ties
        for label, box, flag in zip(gt_labels, gt_boxes, difficult.tolist(), strict=True):
            objects[label][image].append((box, flag))
        for label, box, score in zip(labels, boxes, scores, strict=True):
            detections[label].append((score, image, box))
        found = list(zip(map(as_read, boxes), labels, scores, strict=True))
        known = list(zip(map(as_read, gt_boxes), gt_labels, strict=True))
        records.append(record(known, found, image_id=image, ignore=np.flatnonzero(difficult).tolist()))
    expected = [slow_ap(slow_curve(*pair)) for pair in zip(objects, detections, strict=True)]
    result = evaluate_voc(records, ["a", "b", "c", "d"])
    np.testing.assert_allclose(np.stack([result.ap_11point, result.ap_area], axis=1), expected, atol=1e-12)
    means = result.mean_ap_11point, result.mean_ap_area
    assert means == pytest.approx(np.nanmean(expected, axis=0))  # a class without objects stays out
    assert 0 < max(means) < 1


SMALL, LARGE, SECOND = (50, 50, 60, 60), (0, 0, 40, 40), (10, 0, 50, 40)


@pytest.mark.parametrize(
    ("objects", "found", "expected"),
    [
        # 10 x 10 pixels: the threshold is 100 / (20 * 20) = 0.25, which a box of 20 x 20 around it just reaches.
        ([SMALL], [((45, 45, 65, 65), 0.9)], 1),
        ([SMALL], [((45, 45, 65, 66), 0.9)], 0),
        # 40 x 40 pixels would ask 1600 / 2500 = 0.64; the limit stays 0.5.
        ([LARGE], [((0, 0, 40, 80), 0.9)], 1),
        ([LARGE], [((0, 0, 40, 81), 0.9)], 0),
        # Both overlap the first object most; the second goes on to the object (IoU 0.6) that is not taken yet.
        ([LARGE, SECOND], [(LARGE, 0.9), ((2, 0, 42, 40), 0.8)], 1),
        # The worse one finds only the second object, which the better score has taken.
        ([LARGE, SECOND], [((20, 0, 60, 40), 0.3), (SECOND, 0.9)], 0.5),
        ([], [(LARGE, 0.5)], math.nan),
    ],
)
def test_imagenet_by_hand(objects: list[Box], found: list[Any], expected: float, record) -> None:
    found_ap = evaluate_voc([record(objects, found)], ["cat"], imagenet=True).ap_area
    assert found_ap == pytest.approx([expected], nan_ok=True)


def test_imagenet_takes_classes_apart(record) -> None:
    image = record([(A, 0), (A, 1)], [(A, 1, 0.9), (A, 1, 0.8)])
    assert evaluate_voc([image], ["cat", "dog"], imagenet=True).ap_area.tolist() == [0, 1]
