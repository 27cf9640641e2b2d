"""The Pareto front, and what JSON gets."""

from __future__ import annotations

import json
import math

import numpy as np

from detection.evaluation.inference import Interval
from detection.report.numbers import as_json


def test_json_has_no_nan() -> None:
    value = {"a": Interval(math.nan, 0.1, 0.2), "b": np.array([1.0, math.nan]), "c": (1, "x", None, True)}
    expected = {"a": {"value": None, "low": 0.1, "high": 0.2}, "b": [1.0, None], "c": [1, "x", None, True]}
    assert as_json(value) == expected
    assert json.loads(json.dumps(as_json(value), allow_nan=False)) == expected
