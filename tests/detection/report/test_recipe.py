from typing import Any

from detection.report.recipe import recipe, warnings

BASE = {
    **{"data.train": ["bccd:trainval"], "data.shorter_side": 240, "solver.iterations": 400},
    **{"solver.images_per_step": 2, "solver.base_lr": 0.02, "backbone.weights": None},
}


def numbers(ap: float | None = 0.4, looks: dict[int, float] | None = None, **changes: Any) -> dict[str, Any]:
    curve = {"iterations": [*(looks or {})], "values": [*(looks or {}).values()]}
    run = {"seed": 0, "AP": curve, "train_images": 320}
    return {
        "base": BASE,
        "seeds": [0, 1],
        "fairness": {"differences": []},
        "environment": {"gpu": None, "cpu": "AMD EPYC"},
        "variants": {"net": {"metrics": {"AP": {"mean": ap}}, "training": [run]}},
        "grid": None,
    } | changes


def grid(*scores: float | None) -> dict[str, Any]:
    return numbers(grid={"variants": {"net": {"scores": dict(zip(("0.5", "1", "2"), scores, strict=True))}}})


def test_one_line_holds_the_recipe_and_what_the_arms_do_not_share_is_called_varied() -> None:
    line = recipe(numbers())
    parts = ("bccd:trainval", "400 steps (2.5 epochs)", "240 px", "batch 2", "0.02", "from scratch", "0, 1", "EPYC")
    assert all(part in line for part in parts)
    varied = {"differences": [{"key": "solver.iterations"}, {"key": "backbone.weights"}]}
    line = recipe(numbers(fairness=varied, base=BASE | {"backbone.weights": "torchvision"}))
    assert "varied steps" in line
    assert "pre-training varied" in line
    assert "epochs" not in line


def test_doubtful_figures_are_warned_of_and_sound_ones_are_not() -> None:
    for given, told in (
        (numbers(ap=0.007), "net 0.7"),
        (numbers(looks={100: 0.1, 300: 0.3, 400: 0.35}), "net +5.0"),
        (grid(0.1, 0.2, 0.3), "net at x 2"),
        (grid(0.1, 0.3, None), "net at x 1"),  # the rate beyond did not train: the best is at the edge of what did
        (numbers(), None),
        (numbers(ap=None), None),  # no objects to find, which is not the training's fault
        (numbers(looks={100: 0.1, 300: 0.35, 400: 0.355}), None),
        (numbers(looks={200: 0.1, 400: 0.35}), None),  # two looks say nothing of the end
        (grid(0.1, 0.3, 0.2), None),
    ):
        found = warnings(given)
        assert (told in found[0] and len(found) == 1) if told else found == []


def test_runs_longer_than_equal_time_allows_are_warned_of() -> None:
    given = numbers(protocol={"name": "equal_time", "minutes": 10.0})
    given["variants"]["net"] |= {"seeds": [0, 1], "hours": {"values": [10.5 / 60, 12 / 60]}}
    (warning,) = warnings(given)
    assert "seed 1 12.0" in warning
    assert "seed 0" not in warning
