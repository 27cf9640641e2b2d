"""Mirrors detection/evaluation/average_precision.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.matching import match
from detection.evaluation.record import Record

Make = Callable[..., Record]
Records = Callable[..., list[Record]]
NAMES = ["cat", "dog", "cow", "unseen"]
BOX, NOWHERE = (0, 0, 10, 10), (50, 50, 60, 60)


def test_known_value_under_weights(record: Make) -> None:
    # By score: a hit in image 1, a miss in image 2, a hit in image 2; one object in each image.
    images = [record([BOX], [(BOX, 0.9)]), record([BOX], [(NOWHERE, 0.8), (BOX, 0.7)], image_id=2)]
    weights = np.array([[1, 1], [2, 1], [0, 2], [0, 0]])
    both, first_twice, second_twice, none = average_precision(match(images, ["cat"]), weights)[:, 0, 0].tolist()
    assert both == pytest.approx((51 + 50 * 2 / 3) / 101)  # recall 1/2 at precision 1, then 2/3
    assert first_twice == pytest.approx((67 + 34 * 3 / 4) / 101)  # recall 2/3 at precision 1 (0 to 0.66), then 3/4
    assert second_twice == pytest.approx(1 / 2)  # two misses, then two hits
    assert math.isnan(none)


def test_weights_give_the_ap_of_the_repeated_images(
    random_records: Records, repeated: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = random_records(0, 8)
    weights = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=8)
    found = average_precision(match(records, NAMES), weights)
    for ap, counts in zip(found, weights.tolist(), strict=True):
        expected = reference(repeated(records, counts), NAMES)
        np.testing.assert_allclose(ap.mean(axis=1), expected.class_ap, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ap[:, 0], expected.class_ap50, rtol=0, atol=1e-9)
    monkeypatch.setattr("detection.evaluation.average_precision._CHUNK", 100)  # many resamples are taken in parts
    np.testing.assert_array_equal(average_precision(match(records, NAMES), weights), found)


def test_a_class_missing_from_a_resample_stays_out_of_its_mean(record: Make) -> None:
    # Class 0 has its only object in image 1, class 1 in both; the detector finds all of class 1 only.
    images = [record([(BOX, 0), (BOX, 1)], [(BOX, 1, 0.9)]), record([(BOX, 1)], [(BOX, 1, 0.8)], image_id=2)]
    ap = average_precision(match(images, ["a", "b"]), np.array([[1, 1], [0, 2]]))
    np.testing.assert_array_equal(mean_over_classes(ap[:, :, 0]), [0.5, 1.0])
