"""Mirrors detection/evaluation/average_precision.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.coco import CocoResult
from detection.evaluation.matching import FlatMatches, MatchedRecords, match, pack
from detection.evaluation.overlaps import COCO_IOUS
from detection.evaluation.record import Record

Reference = Callable[..., CocoResult]

NAMES = ["cat", "dog", "cow", "unseen"]


def random_record(rng: np.random.Generator, image_id: int) -> Record:
    """Up to 7 objects of 3 classes, some ignored, and 25 detections around and beside them; no score occurs twice."""
    num_objects, num_detections = int(rng.integers(0, 8)), 25
    corner, size = rng.uniform(0, 80, (num_objects, 2)), rng.uniform(10, 90, (num_objects, 2))
    gt_boxes, gt_labels = np.concatenate([corner, corner + size], axis=1), rng.integers(0, 3, num_objects)
    boxes, labels = np.tile([0.0, 0.0, 20.0, 20.0], (num_detections, 1)), rng.integers(0, 4, num_detections)
    if num_objects:
        source = rng.integers(0, num_objects, 20)
        boxes[:20] = gt_boxes[source] + rng.normal(0, 0.08, (20, 4)) * np.tile(size[source], 2)
        labels[:20] = gt_labels[source]
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(200, 200),
        gt_boxes=gt_boxes.astype(np.float32),
        gt_labels=gt_labels,
        gt_ignore=rng.random(num_objects) < 0.2,
        gt_areas=size.prod(axis=1).astype(np.float32),
        boxes=boxes.astype(np.float32),
        scores=rng.random(num_detections, np.float32),
        labels=labels,
    )


def random_records(seed: int, count: int = 15) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [random_record(rng, 7 * i) for i in range(1, count + 1)]


def simple_rows(hits: Sequence[bool], images: Sequence[int], gt_images: Sequence[int]) -> FlatMatches:
    """One class; detections with falling scores that are right or wrong at every threshold."""
    rows = np.repeat(np.array(hits, np.bool_)[:, None], len(COCO_IOUS), axis=1)
    return FlatMatches(
        images=np.array(images, np.int64),
        labels=np.zeros(len(hits), np.int64),
        scores=np.linspace(1, 0, len(hits), dtype=np.float32),
        hits=rows,
        ignored=np.zeros_like(rows),
        gt_images=np.array(gt_images, np.int64),
        gt_labels=np.zeros(len(gt_images), np.int64),
    )


def simple(
    hits: Sequence[bool], images: Sequence[int], gt_images: Sequence[int], num_images: int = 2
) -> MatchedRecords:
    return pack(simple_rows(hits, images, gt_images), ["cat"], list(range(num_images)))


def ap_of(matches: MatchedRecords, weights: list[int]) -> float:
    return float(average_precision(matches, np.array([weights]))[0, 0, 0])


def draw_images(num_images: int, resamples: int, seed: int) -> np.ndarray:
    """How often each image counts (1 + B, N): once each in the first row, then as drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)
    return np.concatenate([np.ones((1, num_images), np.int64), drawn])


def test_known_value_under_weights() -> None:
    # By score: a hit in image 0, a miss in image 1, a hit in image 1; one object in each image.
    matches = simple([True, False, True], [0, 1, 1], [0, 1])
    assert ap_of(matches, [1, 1]) == pytest.approx((51 + 50 * 2 / 3) / 101)  # recall 1/2 at precision 1, then 2/3
    # Image 0 twice: recall 2/3 at precision 1 (recalls 0 to 0.66), then 3/4.
    assert ap_of(matches, [2, 1]) == pytest.approx((67 + 34 * 3 / 4) / 101)
    # Image 1 twice and no image 0: two misses, then two hits.
    assert ap_of(matches, [0, 2]) == pytest.approx(1 / 2)
    assert math.isnan(ap_of(matches, [0, 0]))


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_one_give_the_ap_of_pycocotools(seed: int, reference: Reference) -> None:
    records = random_records(seed)
    tied = [replace(record, scores=np.round(record.scores, 1)) for record in records]
    for variant in (records, tied):
        expected = reference(variant, NAMES)
        ap = average_precision(match(variant, NAMES), np.ones((1, len(variant)), np.int64))[0]
        np.testing.assert_allclose(ap.mean(axis=1), expected.class_ap, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap[:, 0], expected.class_ap50, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap[:, 5], expected.class_ap75, rtol=0, atol=1e-9)
        assert mean_over_classes(ap[None].mean(axis=2))[0] == pytest.approx(expected.AP, abs=1e-9)
        assert 0.1 < expected.AP < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_weights_give_the_ap_of_the_repeated_images(seed: int, reference: Reference) -> None:
    records = random_records(seed, count=8)
    weights = draw_images(len(records), 5, seed)
    ap = average_precision(match(records, NAMES), weights)
    for row, counts in zip(ap, weights.tolist(), strict=True):
        repeated = [
            replace(record, image_id=100 * record.image_id + copy)
            for record, count in zip(records, counts, strict=True)
            for copy in range(count)
        ]
        expected = reference(repeated, NAMES)
        np.testing.assert_allclose(row.mean(axis=1), expected.class_ap, rtol=0, atol=1e-9)
        np.testing.assert_allclose(row[:, 0], expected.class_ap50, rtol=0, atol=1e-9)


def test_many_resamples_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    matches, weights = match(random_records(0), NAMES), draw_images(15, 20, 0)
    whole = average_precision(matches, weights)
    monkeypatch.setattr("detection.evaluation.average_precision._CHUNK", 400)
    np.testing.assert_array_equal(average_precision(matches, weights), whole)


def test_a_class_missing_from_a_resample_stays_out_of_its_mean() -> None:
    # Class 0 has its only object in image 0, class 1 in both; the detector finds all of class 1 only.
    both = replace(simple_rows([True, True], [0, 1], [0, 0, 1]), labels=np.array([1, 1]), gt_labels=np.array([0, 1, 1]))
    ap = average_precision(pack(both, ["a", "b"], [0, 1]), np.array([[1, 1], [0, 2]]))
    np.testing.assert_array_equal(mean_over_classes(ap[:, :, 0]), [0.5, 1.0])
