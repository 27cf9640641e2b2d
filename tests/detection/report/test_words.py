"""Numbers as they are printed, as JSON gets them, and as the table of latencies shows them."""

import json
import math
from typing import Any

import numpy as np

from detection.evaluation.inference import Interval
from detection.report.latency import latency_blocks
from detection.report.numbers import as_json
from detection.report.words import differing, number, percent_interval, spread


def test_by_hand_and_no_value_is_a_dash() -> None:
    assert spread({"mean": 0.5, "sd": 0.012}) == "50.0 ± 1.2"
    assert spread({"mean": 1.234, "sd": None}, scale=1, digits=2) == "1.23"
    assert percent_interval({"value": 0.5, "low": 0.45, "high": 0.55}) == "50.0 [45.0, 55.0]"
    assert differing({"value": 0.01, "low": -0.02, "high": 0.04}) == "+1.0 [\N{MINUS SIGN}2.0, +4.0]"
    assert differing({"value": -0.0001, "low": None, "high": None}) == "+0.0"
    assert number(1234.56) == "1,234.6"
    unknown = percent_interval({"value": None, "low": None, "high": None})
    assert [spread({"mean": None, "sd": None}), unknown, differing(None), number(None)] == ["-"] * 4


def test_json_has_no_nan() -> None:
    value = {"a": Interval(math.nan, 0.1, 0.2), "b": np.array([1.0, math.nan]), "c": (1, "x", None, True)}
    expected = {"a": {"value": None, "low": 0.1, "high": 0.2}, "b": [1.0, None], "c": [1, "x", None, True]}
    assert as_json(value) == expected
    assert json.loads(json.dumps(as_json(value), allow_nan=False)) == expected


def test_a_column_of_latencies_for_each_place_and_a_dash_for_what_is_missing() -> None:
    def place(**variants: tuple[float, float, str | None]) -> dict[str, Any]:
        rows = {name: {"p50": p50, "p95": p95, "weights": weights} for name, (p50, p95, weights) in variants.items()}
        return {"host": "laptop", "described": "CPU, 4 threads", "precision": "bf16", "batch": 8, "variants": rows}

    blocks: Any = latency_blocks(
        [place(a=(12.34, 15, "run"), b=(250.4, 300, None)), place(a=(1, 2, "run"))], ["a", "b"]
    )
    (table,) = blocks
    assert table.header[1] == "laptop: CPU, 4 threads, bf16, 8 images at once"
    assert table.rows == [["a", "12.3 (15.0)", "1.0 (2.0)"], ["b", "250 (300)", "-"]]
    assert table.caption.endswith("detector's: b.")
    assert latency_blocks([], ["a"]) == []
