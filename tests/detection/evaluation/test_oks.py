"""Mirrors detection/evaluation/oks.py: keypoint AP against pycocotools."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detection.evaluation import oks
from detection.evaluation.coco import KEYPOINT_NUMBERS, KeypointResult, evaluate_keypoints
from detection.evaluation.jackknife import jackknife
from detection.evaluation.record import Record
from detection.evaluation.run_figures import run_statistic
from detection.keypoints import COCO_SIGMAS, KeypointSpec

PERSON = KeypointSpec(tuple(COCO_SIGMAS))
FOUR = KeypointSpec(("a", "b", "c", "d"), sigmas=(0.1, 0.05, 0.2, 0.3))
CLASSES = ("cat", "dog", "cow", "none")


@pytest.fixture
def drawn(random_records):
    """Objects without a labelled keypoint among them; up to 50 detections, about where these are, with tied scores."""

    def draw(seed: int, spec: KeypointSpec) -> list[Record]:
        rng, records, count = np.random.default_rng(seed), list[Record](), len(spec)
        for image in random_records(seed, 6, each=int(rng.choice([1, 2, 8]))):
            objects, found = len(image.gt_boxes), len(image.boxes)
            seen = rng.integers(0, 3, (objects, count)) * (rng.random((objects, 1)) > 0.2)
            sides = image.gt_boxes[:, None, 2:] - image.gt_boxes[:, None, :2]
            places = rng.uniform(0, 1, (objects, count, 2)) * sides + image.gt_boxes[:, None, :2]
            moved = rng.uniform(0, 200, (found, count, 2))
            if objects:
                near = np.arange(found - 3) % objects
                off = image.gt_areas[near] ** 0.5 * rng.choice([0.01, 0.2, 1.0], found - 3)
                moved[:-3] = places[near] + rng.normal(0, 1, (found - 3, count, 2)) * off[:, None, None]
            own = {"gt_keypoints": np.concatenate([places * (seen > 0)[..., None], seen[..., None]], axis=2)}
            own |= {"keypoints": np.concatenate([moved, np.ones((found, count, 1))], axis=2), "keypoint_spec": spec}
            own["boxes"] = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)  # as COCO takes their areas
            records.append(replace(image, scores=image.scores.round(1), **own))
        return records

    return draw


def numbers(result: KeypointResult) -> np.ndarray:
    return np.array([getattr(result, name) for name in KEYPOINT_NUMBERS])


@pytest.mark.parametrize("sets", [12, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", [PERSON, FOUR], ids=["person", "four"])
def test_keypoints_give_the_numbers_of_pycocotools(spec: KeypointSpec, sets: int, drawn, reference) -> None:
    some = np.zeros(len(KEYPOINT_NUMBERS), np.int64)
    for seed in range(sets):
        records = drawn(seed, spec)
        expected, of_classes = reference(records, CLASSES, iou_type="keypoints")
        result = evaluate_keypoints(records, CLASSES)
        np.testing.assert_allclose(numbers(result), expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        np.testing.assert_allclose(result.class_ap, of_classes, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        some += (expected > 0) & (expected < 1)
    assert (some > 0).all()


def test_intervals_have_the_figures_of_the_metric(drawn, monkeypatch) -> None:
    records = drawn(2, FOUR)
    statistic, result = run_statistic(records, CLASSES), evaluate_keypoints(records, CLASSES)
    values = dict(zip(statistic.names, statistic.compute(np.ones((1, len(records)), np.int64))[0], strict=True))
    expected = {f"keypoints.{name}": getattr(result, name) for name in KEYPOINT_NUMBERS}
    expected |= {f"keypoints.per_class.{name}.AP": ap for name, ap in zip(CLASSES, result.class_ap, strict=True)}
    assert {name: values[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert jackknife(statistic, len(records)).names == statistic.names
    monkeypatch.setattr(oks, "_CHUNK", 7)  # pairs in parts are all pairs
    np.testing.assert_array_equal(numbers(evaluate_keypoints(records, CLASSES)), numbers(result))


@pytest.fixture
def one(record):
    """One object of 100 square pixels and one detection of it, with two keypoints each."""
    box, spec = [0.0, 0.0, 10.0, 10.0], KeypointSpec(("a", "b"), sigmas=(0.1, 0.2))

    def make(points: Any, found: Any, **others: Any) -> Record:
        own = {"gt_keypoints": np.array([points]), "keypoints": np.array([found]), "keypoint_spec": spec}
        return record([box], [(box, 1.0)], **own | others)

    return make


def test_oks_by_hand(one) -> None:
    # 2 pixels off, area 100, sigma 0.1: exp(-4 / (2 * 0.2**2 * 100)) = exp(-0.5) = 0.607 passes 0.5, 0.55 and 0.6;
    # the other keypoint is not labelled.  With both: (0.607 + 1) / 2 = 0.803 passes seven thresholds.
    alone = one([[3, 3, 2], [0, 0, 0]], [[5, 3, 1], [90, 90, 1]])
    both = one([[3, 3, 2], [7, 7, 1]], [[5, 3, 1], [7, 7, 1]])
    found = [evaluate_keypoints([image], ("dog",)).AP for image in (alone, both)]
    assert found == pytest.approx([0.3, 0.7])
    hidden = one([[0, 0, 0], [0, 0, 0]], [[5, 3, 1], [7, 7, 1]])
    for records in ([], [hidden]):  # nothing to find has no value
        assert np.isnan(numbers(evaluate_keypoints(records, ("dog",)))).all()
    for others, message in (
        ({"keypoints": None}, r"1\.jpg: no keypoints of its detections"),
        ({"keypoint_spec": None}, r"1\.jpg: no keypoints of its objects"),
        ({"keypoints": np.zeros((1, 3, 3))}, r"1\.jpg: 3 keypoints of its detections, expected 2: a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_keypoints([replace(both, **others)], ("dog",))
