"""The Pareto front, and what JSON gets."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from detection.evaluation.inference import Interval
from detection.report.numbers import as_json, pareto_front


@pytest.mark.parametrize(
    ("costs", "values", "expected"),
    [
        ([1, 2, 3], [0.1, 0.3, 0.2], [True, True, False]),
        ([1, 1], [0.1, 0.2], [False, True]),
        ([1, 1], [0.2, 0.2], [True, True]),  # neither beats the other
        ([None, 2], [0.9, 0.1], [False, True]),  # an unknown cost beats nothing
        ([1, 2], [None, 0.1], [False, True]),
        ([], [], []),
    ],
)
def test_pareto_front_by_hand(costs: list[float | None], values: list[float | None], expected: list[bool]) -> None:
    assert pareto_front(costs, values) == expected


def test_json_has_no_nan() -> None:
    value = {"a": Interval(math.nan, 0.1, 0.2), "b": np.array([1.0, math.nan]), "c": (1, "x", None, True)}
    expected = {"a": {"value": None, "low": 0.1, "high": 0.2}, "b": [1.0, None], "c": [1, "x", None, True]}
    assert as_json(value) == expected
    assert json.loads(json.dumps(as_json(value), allow_nan=False)) == expected
