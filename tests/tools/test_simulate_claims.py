"""Mirrors tools/simulate_claims.py: a short simulation keeps the promises, and what breaks them is named."""

import numpy as np
import pytest

from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample


@pytest.fixture(scope="module")
def tool(names_of):
    return names_of("simulate_claims.py")


@pytest.fixture(scope="module")
def curve(tool):
    return tool["quality_curve"](np.random.default_rng(0), 2000)


@pytest.mark.slow
def test_a_short_simulation_keeps_the_promises_and_what_breaks_them_is_named(tool, curve) -> None:
    cells = tool["simulate"](40, "0.3 and 2.0", 40, curve)
    assert tool["judge"](cells) == []
    assert {(cell["seeds"], cell["variants"]) for cell in cells} == {(s, v) for s in (1, 2, 3, 5) for v in (2, 4, 7)}
    for cell in cells:
        assert 0.9 < cell["coverage"]["detectors"]["value"] <= 1
        assert ("false" in cell) == (cell["seeds"] > 1)  # with one seed nothing is said of methods
        assert ("heads_false" in cell) == (cell["seeds"] > 1 and cell["variants"] == 7)
    assert len(tool["heads_table"](cells)) == 3
    old = tool["judge"]([cell | {"false": cell["old_false"]} for cell in cells])
    assert any("1 seeds, 7 variants: false" in line for line in old)
    assert all("old" not in line for line in old)
    heads = tool["judge"]([cell | {"heads_false": 0.5} for cell in cells if "heads_false" in cell])
    assert [line for line in heads if "heads_false 50.0 %" in line]


def test_intervals_that_do_not_cover_are_named(tool, curve) -> None:
    cells = tool["simulate"](40, "0.3 and 2.0", 3, curve)
    narrow = [cell | {"coverage": {"detectors": {"value": 0.85, "error": 0.005}}} for cell in cells[:3]]
    assert any("detectors covered 85.0 %" in line for line in tool["judge"](narrow))
    assert any("1 seeds, 7 variants: false" in line for line in tool["judge"]([c | {"false": 0.9} for c in cells]))


def test_claims_are_those_of_the_comparison(tool, curve) -> None:
    (experiment,) = tool["experiments"](curve, 40, (0.003, 0.02), 1)
    analysis, images = tool["analyse"](experiment, 3), np.array([40])
    seeds = list(zip(experiment.values[:3], experiment.influence[:3], strict=True))
    arms = {
        str(arm): [Sample(names=("bbox.AP",), values=v[[arm]], influence=i[:, [arm]], images=images) for v, i in seeds]
        for arm in range(8)
    }
    pairs = compare_samples(arms).pairs
    np.testing.assert_allclose([pair.detectors["bbox.AP"].value for pair in pairs], analysis.difference)
    np.testing.assert_allclose([pair.noise["bbox.AP"].own for pair in pairs], analysis.noise.own)
