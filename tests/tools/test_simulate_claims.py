"""Mirrors tools/simulate_claims.py: a short simulation keeps the promises, and what breaks them is named."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample

TOOL = Path(__file__).parents[2] / "tools" / "simulate_claims.py"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


@pytest.fixture(scope="module")
def cells(tool: dict[str, Any]) -> list[dict[str, Any]]:
    curve = tool["quality_curve"](np.random.default_rng(0), 2000)
    return tool["simulate"](40, "0.3 and 2.0", 40, curve)


@pytest.mark.slow
def test_a_short_simulation_keeps_the_promises(tool: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    assert tool["judge"](cells) == []
    assert {(cell["seeds"], cell["variants"]) for cell in cells} == {(s, v) for s in (1, 2, 3, 5) for v in (2, 4, 7)}
    for cell in cells:
        assert 0.9 < cell["coverage"]["detectors"]["value"] <= 1
        assert ("false" in cell) == (cell["seeds"] > 1)  # with one seed nothing is said of methods
        assert ("heads_false" in cell) == (cell["seeds"] > 1 and cell["variants"] == 7)
    assert len(tool["heads_table"](cells)) == 3


@pytest.mark.slow
def test_heads_that_are_said_to_differ_too_often_are_named(tool: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    broken = tool["judge"]([cell | {"heads_false": 0.5} for cell in cells if "heads_false" in cell])
    assert [line for line in broken if "heads_false 50.0 %" in line]


def test_the_old_rule_breaks_them(tool: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    old = [cell | {"false": cell["old_false"]} for cell in cells]
    broken = tool["judge"](old)
    assert any("1 seeds, 7 variants: false" in line for line in broken)
    assert all("old" not in line for line in broken)


def test_intervals_that_do_not_cover_are_named(tool: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    narrow = [cell | {"coverage": {"detectors": {"value": 0.85, "error": 0.005}}} for cell in cells[:3]]
    assert any("detectors covered 85.0 %" in line for line in tool["judge"](narrow))


def test_claims_are_those_of_the_comparison(tool: dict[str, Any]) -> None:
    curve = tool["quality_curve"](np.random.default_rng(0), 2000)
    (experiment,) = tool["experiments"](curve, 40, (0.003, 0.02), 1)
    analysis = tool["analyse"](experiment, 3)
    arms = {
        str(arm): [
            Sample(
                names=("bbox.AP",),
                values=experiment.values[seed, arm : arm + 1],
                influence=experiment.influence[seed, :, arm : arm + 1],
                images=np.array([40]),
            )
            for seed in range(3)
        ]
        for arm in range(8)
    }
    pairs = compare_samples(arms).pairs
    difference = [pair.detectors["bbox.AP"].value for pair in pairs]
    np.testing.assert_allclose(difference, analysis.difference)
    np.testing.assert_allclose([pair.noise["bbox.AP"].own for pair in pairs], analysis.noise.own)
