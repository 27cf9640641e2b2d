"""Mirrors detection/evaluation/voc.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from detection.evaluation.record import Record
from detection.evaluation.voc import evaluate_voc, match_voc, voc_precision

Box = tuple[float, float, float, float]

A, B, C, D = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(4)]  # apart from each other
NOWHERE = (200.0, 200.0, 210.0, 210.0)


def record(
    objects: Sequence[Box] = (),
    detections: Sequence[tuple[Box, float]] = (),
    *,
    image_id: int = 1,
    difficult: Sequence[bool] | None = None,
    gt_labels: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
) -> Record:
    """One image; every label is 0 and no object is difficult unless given."""
    gt_boxes = np.array(objects, np.float32).reshape(-1, 4)
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(300, 300),
        gt_boxes=gt_boxes,
        gt_labels=np.array(gt_labels or [0] * len(objects), np.int64),
        gt_ignore=np.array(difficult or [False] * len(objects), np.bool_),
        gt_areas=(gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(axis=1),
        boxes=np.array([box for box, _ in detections], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score in detections], np.float32),
        labels=np.array(labels or [0] * len(detections), np.int64),
    )


def both(*records: Record, iou_threshold: float = 0.5) -> tuple[float, float]:
    """(11-point AP, area AP) of a single class."""
    result = evaluate_voc(records, ["cat"], iou_threshold=iou_threshold)
    return float(result.ap_11point[0]), float(result.ap_area[0])


def test_known_value() -> None:
    # Four objects, ranked detections: hit, miss, hit, miss, hit; the fourth object is never found.
    #   precision  1    1/2  2/3  2/4  3/5
    #   recall     1/4  1/4  2/4  2/4  3/4
    # Best precision at recall >= r: 1 for r <= 1/4, 2/3 for r <= 2/4, 3/5 for r <= 3/4, 0 above.
    # 11 points: r = 0, .1, .2 -> 1; .3, .4, .5 -> 2/3; .6, .7 -> 3/5; .8, .9, 1 -> 0: (3 + 2 + 6/5) / 11 = 6.2 / 11.
    # Area: recall grows by 1/4 at each hit, so (1 + 2/3 + 3/5) / 4 = 17/30.
    first = record([A, B], [(A, 0.9), (NOWHERE, 0.8), (B, 0.7)], image_id=1)
    second = record([C, D], [(C, 0.5), (NOWHERE, 0.6)], image_id=2)
    assert both(first, second) == pytest.approx((6.2 / 11, 17 / 30))


def test_precision_that_rises_with_recall_is_carried_back() -> None:
    # Miss, hit, hit: precision 0, 1/2, 2/3 at recall 0, 1/2, 1; the best from any recall on is 2/3.
    assert both(record([A, B], [(NOWHERE, 0.9), (A, 0.8), (B, 0.7)])) == pytest.approx((2 / 3, 2 / 3))


def test_recall_of_three_tenths_reaches_the_point_at_three_tenths() -> None:
    # Recall is 3/10 with precision 1: the points 0, .1, .2 and .3 count. In floating point 3 * 0.1 > 3 / 10.
    objects = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(10)]
    assert both(record(objects, [(box, 0.9) for box in objects[:3]])) == pytest.approx((4 / 11, 3 / 10))


def test_duplicates_are_misses() -> None:
    # A, A again, B: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    # 11 points: 0 to .5 -> 1, .6 to 1 -> 2/3: (6 + 10/3) / 11. Area: (1 + 2/3) / 2.
    ap = both(record([A, B], [(A, 0.9), (A, 0.8), (B, 0.7)]))
    assert ap == pytest.approx(((6 + 10 / 3) / 11, 5 / 6))


def test_a_duplicate_does_not_fall_back_to_the_second_best_object() -> None:
    # Both detections overlap the first object most; the second object would still be free and above the threshold.
    near = (4.0, 0.0, 14.0, 10.0)  # IoU with A is 6/14
    duplicate = (1.0, 0.0, 11.0, 10.0)  # IoU with A is 9/11, with near 7/13
    assert both(record([A, near], [(A, 0.9), (duplicate, 0.8)])) == pytest.approx((6 / 11, 1 / 2))


def test_difficult_objects_are_neither_hit_nor_miss() -> None:
    # Two detections of the difficult object rank first and vanish; the one that counts has recall 1, precision 1.
    image = record([A, B], [(B, 0.9), (B, 0.8), (A, 0.7)], difficult=[False, True])
    assert both(image) == (1.0, 1.0)


def test_class_of_difficult_objects_only_has_no_value() -> None:
    assert np.isnan(both(record([A], [(A, 0.9), (B, 0.8)], difficult=[True]))).all()


def test_iou_of_exactly_the_threshold_counts() -> None:
    half = (0.0, 0.0, 10.0, 5.0)
    assert both(record([A], [(half, 0.9)])) == (1.0, 1.0)
    assert both(record([A], [((0.0, 0.0, 10.0, 4.99), 0.9)])) == (0.0, 0.0)
    assert both(record([A], [(half, 0.9)]), iou_threshold=0.51) == (0.0, 0.0)


def test_iou_just_below_the_threshold_does_not_round_up() -> None:
    # The heights have the ratio 1/2 less 3e-8; areas rounded to float32 have an IoU of 1/2.
    box = (0.0, 0.0, 11.1, float(np.float32(14.43)))
    not_quite_half = (0.0, 0.0, 11.1, float(np.nextafter(np.float32(7.215), np.float32(0))))
    assert not_quite_half[3] < box[3] / 2
    assert both(record([box], [(not_quite_half, 0.9)])) == (0.0, 0.0)


def test_objects_of_another_class_or_image_do_not_match() -> None:
    assert evaluate_voc([record([A, A], [(A, 0.9)], gt_labels=[0, 1], labels=[1])], "ab").ap_area.tolist() == [0.0, 1.0]
    assert both(record([A], image_id=1), record([], [(A, 0.9)], image_id=2)) == (0.0, 0.0)


def test_ties_keep_the_order_of_image_ids_and_rows() -> None:
    hit, miss = (A, 0.5), (NOWHERE, 0.5)
    assert both(record([A], [hit, miss])) == (1.0, 1.0)
    assert both(record([A], [miss, hit])) == (0.5, 0.5)
    for hit_id, miss_id, ap in ((1, 2, 1.0), (2, 1, 0.5)):
        with_hit, with_miss = record([A], [hit], image_id=hit_id), record([], [miss], image_id=miss_id)
        assert both(with_hit, with_miss) == both(with_miss, with_hit) == (ap, ap)


def test_class_without_ground_truth_stays_out_of_the_mean() -> None:
    # "a" is found, "b" is not, "c" has only a false detection.
    image = record([A, B], [(A, 0.9), (C, 0.8)], gt_labels=[0, 1], labels=[0, 2])
    result = evaluate_voc([image], ["a", "b", "c"])
    np.testing.assert_array_equal(result.ap_11point, [1.0, 0.0, np.nan])
    np.testing.assert_array_equal(result.ap_area, [1.0, 0.0, np.nan])
    assert (result.mean_ap_11point, result.mean_ap_area) == (0.5, 0.5)


@pytest.mark.parametrize("records", [[], [record()], [record([], [(A, 0.9)])]])
def test_nothing_to_find_gives_no_value(records: list[Record]) -> None:
    result = evaluate_voc(records, ["a", "b"])
    assert np.isnan(result.ap_11point).all()
    assert np.isnan(result.ap_area).all()
    assert math.isnan(result.mean_ap_11point)
    assert math.isnan(result.mean_ap_area)


def test_no_detections_and_no_classes() -> None:
    assert both(record([A])) == (0.0, 0.0)
    assert evaluate_voc([], []).ap_area.shape == (0,)


def test_boxes_without_area_match_nothing() -> None:
    point = (5.0, 5.0, 5.0, 5.0)
    assert both(record([point], [(point, 0.9)])) == (0.0, 0.0)


@pytest.mark.parametrize("label", [-1, 2])
def test_unknown_labels_are_named(label: int) -> None:
    with pytest.raises(ValueError, match=rf"1\.jpg: label {label}, expected 0\.\.1"):
        evaluate_voc([record([A], [(A, 0.9)], labels=[label])], ["a", "b"])


def test_repeated_images_are_named() -> None:
    with pytest.raises(ValueError, match="image id 7 occurs twice"):
        evaluate_voc([record(image_id=7), record(image_id=7)], ["a"])


@pytest.mark.parametrize("iou_threshold", [0.0, 50.0])
def test_threshold_is_a_fraction(iou_threshold: float) -> None:
    with pytest.raises(ValueError, match="fraction above 0 and at most 1"):
        evaluate_voc([], ["a"], iou_threshold=iou_threshold)


# A second implementation, slow and exact, one loop per line of the definition. Pixels count from 1 and the corner
# (xmax, ymax) lies inside the box.

Pixels = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax


def pixel_iou(a: Pixels, b: Pixels) -> Fraction:
    def area(box: Pixels) -> int:
        return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)

    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    return Fraction(width * height, area(a) + area(b) - width * height)


def slow_curve(
    objects: Sequence[Sequence[tuple[Pixels, bool]]], detections: Sequence[tuple[float, int, Pixels]]
) -> list[tuple[Fraction, Fraction]] | None:
    """(recall, precision) after each detection that counts, None without objects that count.

    ``objects`` are (box, difficult) of each image, ``detections`` (score, image, box) in image and row order.
    """
    num_objects = sum(not difficult for image in objects for _, difficult in image)
    if num_objects == 0:
        return None
    taken: set[tuple[int, int]] = set()
    true_positives = false_positives = 0
    curve = []
    for _, image, box in sorted(detections, key=lambda detection: -detection[0]):
        best, best_iou = -1, Fraction(-1)
        for row, (gt_box, _) in enumerate(objects[image]):
            iou = pixel_iou(box, gt_box)
            if iou > best_iou:
                best, best_iou = row, iou
        if best_iou >= Fraction(1, 2):
            if objects[image][best][1]:
                continue
            if (image, best) in taken:
                false_positives += 1
            else:
                true_positives += 1
                taken.add((image, best))
        else:
            false_positives += 1
        curve.append(
            (Fraction(true_positives, num_objects), Fraction(true_positives, true_positives + false_positives))
        )
    return curve


def slow_ap_11point(curve: Sequence[tuple[Fraction, Fraction]]) -> float:
    total = Fraction(0)
    for tenth in range(11):
        total += max((precision for recall, precision in curve if recall >= Fraction(tenth, 10)), default=Fraction(0))
    return float(total / 11)


def slow_ap_area(curve: Sequence[tuple[Fraction, Fraction]]) -> float:
    recalls = [Fraction(0), *(recall for recall, _ in curve), Fraction(1)]
    precisions = [Fraction(0), *(precision for _, precision in curve), Fraction(0)]
    for i in reversed(range(len(precisions) - 1)):
        precisions[i] = max(precisions[i], precisions[i + 1])
    return float(sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls))))


def random_pixels(rng: np.random.Generator, count: int) -> list[Pixels]:
    """Small integer boxes in a small image: many overlaps, many IoUs of exactly 1/2."""
    corner, extent = rng.integers(1, 4, (count, 2)), rng.integers(1, 6, (count, 2))
    return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corner.tolist(), extent.tolist(), strict=True)]


def shifted(boxes: Sequence[Pixels]) -> list[Box]:
    """What an annotation reader makes of inclusive pixels that count from 1."""
    return [(xmin - 1, ymin - 1, xmax, ymax) for xmin, ymin, xmax, ymax in boxes]


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_slow_reading_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_images, num_classes = 12, 4
    objects = [[[] for _ in range(num_images)] for _ in range(num_classes)]
    detections = [[] for _ in range(num_classes)]
    records = []
    for image in range(num_images):
        gt_boxes, boxes = random_pixels(rng, int(rng.integers(0, 6))), random_pixels(rng, int(rng.integers(0, 20)))
        difficult = (rng.random(len(gt_boxes)) < 0.3).tolist()
        # The last class has detections but no objects.
        gt_labels = rng.integers(0, num_classes - 1, len(gt_boxes)).tolist()
        labels = rng.integers(0, num_classes, len(boxes)).tolist()
        scores = (rng.integers(0, 8, len(boxes)) / 8).tolist()  # eighths: many ties
        for label, box, flag in zip(gt_labels, gt_boxes, difficult, strict=True):
            objects[label][image].append((box, flag))
        for label, box, score in zip(labels, boxes, scores, strict=True):
            detections[label].append((score, image, box))
        detected = list(zip(shifted(boxes), scores, strict=True))
        records.append(
            record(shifted(gt_boxes), detected, image_id=image, difficult=difficult, gt_labels=gt_labels, labels=labels)
        )
    curves = [slow_curve(objects[label], detections[label]) for label in range(num_classes)]
    result = evaluate_voc(records, ["a", "b", "c", "d"])
    np.testing.assert_allclose(
        result.ap_11point, [np.nan if curve is None else slow_ap_11point(curve) for curve in curves], atol=1e-12
    )
    np.testing.assert_allclose(
        result.ap_area, [np.nan if curve is None else slow_ap_area(curve) for curve in curves], atol=1e-12
    )
    assert 0 < result.mean_ap_area < 1


def test_weighted_images_give_the_ap_of_the_repeated_ones() -> None:
    rng = np.random.default_rng(0)
    records = []
    for image_id in range(10):
        gt_boxes, boxes = random_pixels(rng, int(rng.integers(0, 5))), random_pixels(rng, 12)
        detected = [(box, score) for box, score in zip(shifted(boxes), rng.random(12).tolist(), strict=True)]
        difficult = (rng.random(len(gt_boxes)) < 0.3).tolist()
        labels = [rng.integers(0, 2, count).tolist() for count in (len(gt_boxes), 12)]
        image = record(shifted(gt_boxes), detected, image_id=image_id, difficult=difficult, gt_labels=labels[0])
        records.append(replace(image, labels=np.array(labels[1])))
    weights = rng.integers(0, 4, (5, len(records)))
    for rule in (False, True):
        found = voc_precision(match_voc(records, "abc", imagenet=rule), weights)
        for row, counts in zip(found, weights.tolist(), strict=True):
            repeated = [
                replace(image, image_id=100 * image.image_id + copy)
                for image, count in zip(records, counts, strict=True)
                for copy in range(count)
            ]
            expected = evaluate_voc(repeated, "abc", imagenet=rule)
            np.testing.assert_allclose(row, np.stack([expected.ap_11point, expected.ap_area], axis=1), atol=1e-12)
            assert 0 < expected.mean_ap_area < 1


# ImageNet's rule


def imagenet(*records: Record) -> float:
    return float(evaluate_voc(records, ["cat"], imagenet=True).ap_area[0])


def test_imagenet_asks_less_of_small_objects() -> None:
    # 10 x 10 pixels: threshold 100 / (20 * 20) = 0.25, which a box of 20 x 20 around it just reaches.
    small, around = (50.0, 50.0, 60.0, 60.0), (45.0, 45.0, 65.0, 65.0)
    assert imagenet(record([small], [(around, 0.9)])) == 1
    assert imagenet(record([small], [((45.0, 45.0, 65.0, 66.0), 0.9)])) == 0
    assert both(record([small], [(around, 0.9)])) == (0, 0)


def test_imagenet_asks_half_of_large_objects() -> None:
    # 40 x 40 pixels would ask 1600 / 2500 = 0.64; the limit stays 0.5.
    large = (0.0, 0.0, 40.0, 40.0)
    assert imagenet(record([large], [((0.0, 0.0, 40.0, 80.0), 0.9)])) == 1
    assert imagenet(record([large], [((0.0, 0.0, 40.0, 81.0), 0.9)])) == 0


def test_imagenet_gives_a_second_detection_the_next_object() -> None:
    # Both detections overlap the first object most. VOC compares the second with it alone and counts a miss;
    # ImageNet goes on to the object that is not taken yet.
    first, second = (0.0, 0.0, 40.0, 40.0), (10.0, 0.0, 50.0, 40.0)  # IoU 30 / 50 = 0.6
    image = record([first, second], [(first, 0.9), ((2.0, 0.0, 42.0, 40.0), 0.8)])
    assert imagenet(image) == 1
    assert both(image)[1] == 0.5


def test_imagenet_lets_the_better_score_choose_first() -> None:
    first, second = (0.0, 0.0, 40.0, 40.0), (10.0, 0.0, 50.0, 40.0)
    ranked = record([first, second], [((20.0, 0.0, 60.0, 40.0), 0.3), (second, 0.9)])
    assert imagenet(ranked) == 0.5  # the worse finds only the second object, which is taken
    assert imagenet(record([], [(first, 0.5)])) != imagenet(ranked)  # no object: no value


def test_imagenet_takes_classes_apart() -> None:
    image = record([A, A], [(A, 0.9), (A, 0.8)], gt_labels=[0, 1], labels=[1, 1])
    result = evaluate_voc([image], ["cat", "dog"], imagenet=True)
    assert result.ap_area.tolist() == [0, 1]
