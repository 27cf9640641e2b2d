"""Mirrors detection/report/recipe.py, on numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from detection.report.recipe import recipe, warnings

BASE = {
    "data.train": ["bccd:trainval"],
    "data.shorter_side": 240,
    "solver.iterations": 400,
    "solver.images_per_step": 2,
    "solver.base_lr": 0.02,
    "backbone.weights": None,
}


def numbers(ap: float | None = 0.4, curve: tuple[list[int], list[float]] = ([], []), **changes: Any) -> dict[str, Any]:
    run = {"seed": 0, "AP": {"iterations": curve[0], "values": curve[1]}, "train_images": 320}
    variant = {"metrics": {"AP": {"mean": ap}}, "training": [run]}
    return {
        "base": BASE,
        "seeds": [0, 1],
        "fairness": {"differences": []},
        "environment": {"gpu": None, "cpu": "AMD EPYC"},
        "variants": {"net": variant},
        "grid": None,
    } | changes


def test_one_line_holds_the_recipe() -> None:
    line = recipe(numbers())
    for part in (
        "bccd:trainval",
        "400 steps (2.5 epochs)",
        "240 px",
        "batch 2",
        "0.02",
        "from scratch",
        "0, 1",
        "EPYC",
    ):
        assert part in line


def test_what_the_arms_do_not_share_is_called_varied() -> None:
    varied = {"differences": [{"key": "solver.iterations"}, {"key": "backbone.weights"}]}
    line = recipe(numbers(fairness=varied, base=BASE | {"backbone.weights": "torchvision"}))
    assert "varied steps" in line
    assert "pre-training varied" in line
    assert "epochs" not in line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (numbers(ap=0.007), "net 0.7"),
        (numbers(curve=([100, 300, 400], [0.1, 0.3, 0.35])), "net +5.0"),
        (numbers(grid={"variants": {"net": {"scores": {"0.5": 0.1, "1": 0.2, "2": 0.3}}}}), "net at x 2"),
        # the rate beyond did not train: the best is at the edge of what did
        (numbers(grid={"variants": {"net": {"scores": {"0.5": 0.1, "1": 0.3, "2": None}}}}), "net at x 1"),
    ],
)
def test_doubtful_figures_are_warned_of(given, told) -> None:
    (warning,) = warnings(given)
    assert told in warning


@pytest.mark.parametrize(
    "given",
    [
        numbers(),
        numbers(ap=None),  # no objects to find, which is not the training's fault
        numbers(curve=([100, 300, 400], [0.1, 0.35, 0.355])),
        numbers(curve=([200, 400], [0.1, 0.35])),  # two looks say nothing of the end
        numbers(grid={"variants": {"net": {"scores": {"0.5": 0.1, "1": 0.3, "2": 0.2}}}}),
    ],
)
def test_sound_figures_are_not(given) -> None:
    assert warnings(given) == []


def test_runs_longer_than_equal_time_allows_are_warned_of() -> None:
    given = numbers(protocol={"name": "equal_time", "minutes": 10.0})
    variant = next(iter(given["variants"].values()))
    variant |= {"seeds": [0, 1], "hours": {"values": [10.5 / 60, 12 / 60]}}
    (warning,) = warnings(given)
    assert "seed 1 12.0" in warning
    assert "seed 0" not in warning
