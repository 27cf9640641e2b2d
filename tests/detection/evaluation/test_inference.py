"""Mirrors detection/evaluation/inference.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_ind

from detection.evaluation.coco import CocoResult, evaluate_coco
from detection.evaluation.inference import (
    BootstrapResult,
    average_precision,
    draw_images,
    mean_over_classes,
    paired_bootstrap,
)
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
    monkeypatch.setattr("detection.evaluation.inference._CHUNK", 400)
    np.testing.assert_array_equal(average_precision(matches, weights), whole)


def test_first_draw_is_the_set_itself_and_the_others_keep_its_size() -> None:
    weights = draw_images(50, 30, seed=1)
    np.testing.assert_array_equal(weights[0], np.ones(50))
    np.testing.assert_array_equal(weights.sum(axis=1), np.full(31, 50))
    assert len(np.unique(weights, axis=0)) == 31
    np.testing.assert_array_equal(weights, draw_images(50, 30, seed=1))


def test_values_are_those_of_coco_and_seeds_are_averaged() -> None:
    runs = [random_records(0), [replace(r, scores=r.scores[::-1].copy()) for r in random_records(0)]]
    expected = [evaluate_coco(run, NAMES) for run in runs]
    result = paired_bootstrap({"a": [match(run, NAMES) for run in runs]}, resamples=20)
    score = result.variants["a"]
    assert score.seeds == pytest.approx([one.AP for one in expected])
    assert score.AP.value == pytest.approx(np.mean([one.AP for one in expected]))
    assert score.AP50.value == pytest.approx(np.mean([one.AP50 for one in expected]))
    assert score.AP75.value == pytest.approx(np.mean([one.AP75 for one in expected]))
    class_ap = np.mean([one.class_ap for one in expected], axis=0)
    np.testing.assert_allclose([interval.value for interval in score.class_ap], class_ap)
    assert all(math.isnan(bound) for bound in (score.class_ap[3].low, score.class_ap[3].high))  # "unseen"
    assert (result.class_names, result.num_images, result.differences) == (tuple(NAMES), 15, ())


def test_intervals_are_percentiles_of_the_resamples_around_the_value() -> None:
    run, other = (
        match(random_records(0), NAMES),
        match([replace(r, scores=-r.scores) for r in random_records(0)], NAMES),
    )
    result = paired_bootstrap({"a": [run], "b": [other]}, resamples=50, confidence=0.8, seed=3)
    weights = draw_images(15, 50, 3)
    ap_a, ap_b = (mean_over_classes(average_precision(m, weights).mean(axis=2)) for m in (run, other))
    for samples, interval in ((ap_a, result.variants["a"].AP), (ap_b - ap_a, result.differences[0].AP)):
        low, high = np.percentile(samples[1:], [10, 90]) - samples[1:].mean() + samples[0]
        assert (interval.value, interval.low, interval.high) == pytest.approx((samples[0], low, high))


def test_a_run_does_not_differ_from_itself() -> None:
    run = match(random_records(0), NAMES)
    (difference,) = paired_bootstrap({"a": [run], "b": [run]}, resamples=20).differences
    assert (difference.AP.low, difference.AP.value, difference.AP.high, difference.resolvable) == (0, 0, 0, 0)


def test_every_pair_is_compared_second_less_first() -> None:
    runs = {name: [match(random_records(0), NAMES)] for name in ("a", "b")}
    runs["c"] = [match([replace(record, scores=-record.scores) for record in random_records(0)], NAMES)]
    result = paired_bootstrap(runs, resamples=20)
    assert [(d.a, d.b) for d in result.differences] == [("a", "b"), ("a", "c"), ("b", "c")]
    a, c = result.variants["a"], result.variants["c"]
    assert result.differences[1].AP.value == pytest.approx(c.AP.value - a.AP.value)
    assert result.differences[2].class_ap[1].value == pytest.approx(c.class_ap[1].value - a.class_ap[1].value)
    assert abs(c.AP.value - a.AP.value) > 0.01


def test_a_class_missing_from_a_resample_stays_out_of_its_mean() -> None:
    # Class 0 has its only object in image 0, class 1 in both; the detector finds all of class 1 only.
    both = replace(simple_rows([True, True], [0, 1], [0, 0, 1]), labels=np.array([1, 1]), gt_labels=np.array([0, 1, 1]))
    ap = average_precision(pack(both, ["a", "b"], [0, 1]), np.array([[1, 1], [0, 2]]))
    np.testing.assert_array_equal(mean_over_classes(ap[:, :, 0]), [0.5, 1.0])


# Seeds


def same_in_each_image(rank_of_hit: int, num_images: int = 10) -> MatchedRecords:
    """One object in each image, found by the detection of this rank of three: AP 1 / rank whatever is drawn."""
    hits = [rank == rank_of_hit for rank in (1, 2, 3) for _ in range(num_images)]
    return simple(hits, [*range(num_images)] * 3, [*range(num_images)], num_images)


def test_without_noise_of_images_the_interval_of_seeds_is_welchs() -> None:
    a, b = (1, 2, 2), (3, 2, 1, 1)
    variants = {"a": [same_in_each_image(rank) for rank in a], "b": [same_in_each_image(rank) for rank in b]}
    (difference,) = paired_bootstrap(variants, resamples=20, confidence=0.9).differences
    expected = ttest_ind([1 / rank for rank in b], [1 / rank for rank in a], equal_var=False).confidence_interval(0.9)
    assert difference.with_seeds is not None
    assert (difference.with_seeds.low, difference.with_seeds.high) == pytest.approx((expected.low, expected.high))
    assert difference.resolvable == pytest.approx((expected.high - expected.low) / 2)
    assert difference.AP.low == pytest.approx(difference.AP.high)


def test_a_single_seed_leaves_the_noise_of_seeds_unknown() -> None:
    runs = [same_in_each_image(1), same_in_each_image(2)]
    (difference,) = paired_bootstrap({"a": runs, "b": runs[:1]}, resamples=20).differences
    assert difference.with_seeds is None
    assert difference.verdict.endswith("; what another training seed would change is unknown")


def verdict(a: list[MatchedRecords], b: list[MatchedRecords]) -> str:
    return paired_bootstrap({"a": a, "b": b}, resamples=20).differences[0].verdict


def test_verdicts_in_plain_words() -> None:
    good, poor = [same_in_each_image(1)] * 2, [same_in_each_image(2)] * 2
    assert verdict(poor, good) == "b is better than a by 50.0 to 50.0 AP"
    assert verdict(good, poor) == "a is better than b by 50.0 to 50.0 AP"
    mixed = [same_in_each_image(1), same_in_each_image(2)]
    # t(0.975, 2) * sqrt(2 * 0.125 / 2) = 4.303 * 0.354
    assert verdict(mixed, mixed) == (
        "no difference shown between a and b; a gap under 152.1 AP cannot be seen with 10 images and 2 + 2 seeds"
    )
    nothing = [simple([False], [0], [])]
    assert verdict(nothing, nothing).startswith("a and b cannot be compared: there are no objects to find")


# Coverage


def scene(rng: np.random.Generator, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and class of each object, and how hard each image is."""
    gt_images = np.repeat(np.arange(num_images), rng.poisson(2.5, num_images))
    return gt_images, rng.integers(0, 2, len(gt_images)), rng.normal(0, 1, num_images)


def simulated(
    rng: np.random.Generator, images: tuple[np.ndarray, np.ndarray, np.ndarray], quality: float
) -> MatchedRecords:
    """What a detector makes of ``images``: in hard ones it finds less, worse, and sees more that is not there."""
    gt_images, gt_labels, difficulty = images
    skill = quality - difficulty[gt_images] + rng.normal(0, 0.7, len(gt_images))
    found = skill > -1
    false = np.repeat(np.arange(len(difficulty)), rng.poisson(np.exp(0.7 + 0.5 * difficulty)))
    scores = np.concatenate([skill[found] + rng.normal(0, 1, found.sum()), rng.normal(-0.6, 1, len(false))])
    iou = np.concatenate([1 / (1 + np.exp(-skill[found] - 0.5)), np.zeros(len(false))])
    rows = FlatMatches(
        images=np.concatenate([gt_images[found], false]),
        labels=np.concatenate([gt_labels[found], rng.integers(0, 2, len(false))]),
        scores=scores.astype(np.float32),
        hits=iou[:, None] >= COCO_IOUS,
        ignored=np.zeros((len(scores), len(COCO_IOUS)), np.bool_),
        gt_images=gt_images,
        gt_labels=gt_labels,
    )
    return pack(rows, ["a", "b"], list(range(len(difficulty))))


def compared(rng: np.random.Generator, num_images: int, resamples: int) -> BootstrapResult:
    images = scene(rng, num_images)
    variants = {name: [simulated(rng, images, quality)] for name, quality in (("a", 0.0), ("b", 0.15))}
    return paired_bootstrap(variants, resamples=resamples)


def test_intervals_of_95_percent_hold_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    truth = compared(rng, 40_000, resamples=2).differences[0]
    assert truth.AP.value > 0.02
    intervals = [compared(rng, 200, resamples=150).differences[0].AP for _ in range(200)]
    held = np.mean([interval.low <= truth.AP.value <= interval.high for interval in intervals])
    assert abs(held - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 200)
    # They are no wider than they have to be: most of the spread of AP is common to both and cancels.
    width = np.mean([interval.high - interval.low for interval in intervals])
    assert width == pytest.approx(2 * 1.96 * np.std([interval.value for interval in intervals]), rel=0.25)


# Errors


def test_impossible_requests_are_named() -> None:
    run = match(random_records(0), NAMES)
    with pytest.raises(ValueError, match="no variants"):
        paired_bootstrap({})
    with pytest.raises(ValueError, match="variant b has no runs, expected one or more"):
        paired_bootstrap({"a": [run], "b": []})
    with pytest.raises(ValueError, match="resamples is 2 or more, got 1"):
        paired_bootstrap({"a": [run]}, resamples=1)
    with pytest.raises(ValueError, match=r"confidence is a fraction between 0 and 1, got 95; 0\.95 is usual"):
        paired_bootstrap({"a": [run]}, confidence=95)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        paired_bootstrap({"a": [match(random_records(0, count=1), NAMES)]})


def test_runs_on_other_images_are_named() -> None:
    run, shorter = match(random_records(0), NAMES), match(random_records(0)[1:], NAMES)
    with pytest.raises(ValueError, match="a, seed 1 and b, seed 2 are not comparable: 15 and 14 images"):
        paired_bootstrap({"a": [run], "b": [run, shorter]})


def test_no_classes_give_no_value() -> None:
    nothing = pack(simple_rows([], [], []), [], [0, 1])
    result = paired_bootstrap({"a": [nothing]}, resamples=2)
    assert math.isnan(result.variants["a"].AP.value)
    assert result.variants["a"].class_ap == ()
