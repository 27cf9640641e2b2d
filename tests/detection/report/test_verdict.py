"""Mirrors detection/report/verdict.py, on numbers made by hand."""

from __future__ import annotations

from typing import Any

from detection.report.verdict import fronts, in_question, lead, pair_matrix


def claim(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "p": 0.01, "proven": abs(value) > half}


def numbers(
    ap: dict[str, float],
    half: float,
    *,
    costs: dict[str, float] | None = None,
    seeds: bool = True,
    planning: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arms with these APs, all intervals of differences ``half`` wide to each side."""
    names = [*ap]
    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            own = {"AP": claim(ap[b] - ap[a], half)}
            missing = None if seeds else f"a second seed of {a} and of {b}"
            methods = own if seeds else None
            pairs.append({"a": a, "b": b, "detectors": own, "methods": methods, "missing": missing})
    gflops = {name: {"gflops": cost} for name, cost in (costs or {}).items()}
    variants = {name: {"costs": gflops.get(name, {}), "seeds": [0, 1] if seeds else [0]} for name in names}
    return {"variants": variants, "pairs": pairs, "confidence": 0.95, "planning": planning}


PLAN = {"noise": {"seed": 0.01}, "gap": 0.01, "seeds": 12, "images": 3000, "visible": 0.03}


def test_the_proven_best_is_named_with_what_is_proven() -> None:
    first, second, third = lead(
        numbers({"a": 0.3, "b": 0.4, "c": 0.2}, 0.02, costs={"a": 1, "b": 2, "c": 3}, planning=PLAN)
    )
    assert first.startswith("Take b: proven best")
    assert "8.0 AP" in first
    assert "2.0 GFLOPs" in second
    assert "a (1.0)" in second  # cheaper, but proven worse
    assert "c (" not in second
    assert "12 seeds" in third
    assert "3,000 images" in third


def test_without_a_winner_the_cheapest_that_is_not_proven_worse_is_named() -> None:
    found = numbers({"a": 0.30, "b": 0.31, "c": 0.2}, 0.03, costs={"a": 5, "b": 9, "c": 1}, planning=PLAN)
    first, second, _ = lead(found)
    assert in_question(found) == ["a", "b"]
    assert first.startswith("No proven winner")
    assert "a and b" in first
    assert "proven worse: c" in first
    assert "is a, 5.0 GFLOPs" in second


def test_an_arm_without_costs_is_named() -> None:
    _, second, _ = lead(numbers({"a": 0.30, "b": 0.31, "c": 0.32}, 0.03, costs={"a": 5, "b": 9}, planning=PLAN))
    assert "is a, 5.0 GFLOPs" in second
    assert "not measured: c" in second


def test_one_seed_says_nothing_of_methods() -> None:
    first, second, third = lead(numbers({"a": 0.3, "b": 0.5}, 0.1, seeds=False))
    assert "this very detector on other images" in first
    assert "not known" in second
    assert "a second seed of a and b" in third


def test_a_gap_beyond_all_ap_is_not_promised() -> None:
    (*_, third) = lead(numbers({"a": 0.3, "b": 0.5}, 0.1, planning=PLAN | {"visible": 2.285}))
    assert "228" not in third
    assert "No gap" in third


def test_a_gap_that_takes_seeds_and_images_is_told_from_unknown_noise() -> None:
    arms = {"a": 0.3, "b": 0.5}
    both = lead(numbers(arms, 0.1, planning=PLAN | {"seeds": None, "images": None}))[2]
    unknown = lead(numbers(arms, 0.1, planning=PLAN | {"noise": None, "seeds": None, "images": None}))[2]
    assert "more seeds and more images" in both
    assert "can't be computed" in unknown


def test_a_single_arm_has_no_verdict() -> None:
    assert lead(numbers({"a": 0.3}, 0.1)) == []


def test_being_best_takes_a_proof_against_each() -> None:
    # b is proven better than c alone, and nobody is proven better than b: a stays in question.
    found = numbers({"a": 0.30, "b": 0.32, "c": 0.28}, 0.03)
    assert in_question(found) == ["a", "b"]


def test_the_front_holds_what_no_cheaper_arm_is_proven_better_than() -> None:
    found = numbers({"a": 0.30, "b": 0.31, "c": 0.2}, 0.03)
    assert fronts(found, {"a": 5, "b": 9, "c": 6}) == {"a": True, "b": True, "c": False}
    assert fronts(found, {"a": 5, "b": 9, "c": 1}) == {"a": True, "b": True, "c": True}
    assert fronts(found, {"a": None, "b": 9, "c": 10}) == {"a": False, "b": True, "c": False}


def test_the_matrix_turns_signs_and_marks_what_is_proven() -> None:
    table = pair_matrix(numbers({"a": 0.3, "b": 0.4}, 0.02))
    minus = "\N{MINUS SIGN}"
    assert table.rows == [["a", "", f"{minus}10.0 [{minus}12.0, {minus}8.0]"], ["b", "+10.0 [+8.0, +12.0]", ""]]
    assert table.bold == {(0, 2), (1, 1)}
    assert pair_matrix(numbers({"a": 0.3, "b": 0.31}, 0.02)).bold == set()
