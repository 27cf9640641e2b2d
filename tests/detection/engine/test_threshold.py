"""Mirrors detection/engine/threshold.py."""

from __future__ import annotations

import pytest

from detection.engine.threshold import shown_from


@pytest.mark.parametrize(
    ("result", "score"),
    [
        ({"best_f1": {"min_score": 0.21, "F1": 0.4}}, 0.21),
        ({"best_f1": {"min_score": None, "F1": None}}, 0.5),
        ({}, 0.5),
    ],
)
def test_pictures_show_what_is_above_the_best_f1_of_the_same_result(result: dict[str, object], score: float) -> None:
    assert shown_from(result) == score
