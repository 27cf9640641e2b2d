"""Mirrors detection/evaluation/claims.py."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.claims import discoveries, family, is_discovered, single_level, step_down

P = np.array([0.01, 0.04, np.nan, 0.02, 0.5])


def test_corrections_by_hand() -> None:
    # 4 x 0.01, 3 x 0.02, 2 x 0.04 and 0.5.
    np.testing.assert_allclose(step_down(P), [0.04, 0.08, np.nan, 0.06, 0.5])
    np.testing.assert_allclose(step_down(np.array([0.03, 0.02])), [0.04, 0.04])  # never below a smaller one's
    # 4 / 1 x 0.01, 4 / 2 x 0.02, 4 / 3 x 0.04 and 0.5; never above a larger one's.
    np.testing.assert_allclose(discoveries(P), [0.04, 4 / 3 * 0.04, np.nan, 0.04, 0.5])
    nothing = np.full(3, np.nan)
    assert np.isnan([step_down(nothing), discoveries(nothing)]).all()
    assert step_down(np.empty(0)).shape == (0,)
    assert single_level(nothing, 0.05, discovered=True) == 0.05


def test_intervals_of_a_family_leave_out_zero_where_a_discovery_is() -> None:
    assert single_level(P, 0.05, discovered=False) == pytest.approx(0.05 / 4)
    level = single_level(P, 0.05, discovered=True)
    np.testing.assert_array_equal(level >= P, discoveries(P) <= 0.05)


def test_equal_variants_are_rarely_claimed_in_any_pair() -> None:
    p = np.random.default_rng(0).random((4000, 21))
    assert np.mean([(step_down(row) <= 0.05).any() for row in p]) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("key", "expected", "many"),
    [
        ("bbox.AP", "bbox.AP", False),
        ("bbox.per_class.a.b.AP50", "bbox.per_class.*.AP50", True),
        ("tide.Cls", "tide.*", True),
        ("tide.AP50", "tide.AP50", False),
    ],
)
def test_which_figures_are_claimed_together(key: str, expected: str, many: bool) -> None:
    assert (family(key), is_discovered(key)) == (expected, many)
