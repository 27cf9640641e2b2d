from typing import Any

from detection.report.verdict import fronts, in_question, lead, pair_matrix

PLAN = {"noise": {"seed": 0.01}, "gap": 0.01, "seeds": 12, "images": 3000, "visible": 0.03}
MINUS = "\N{MINUS SIGN}"


def claim(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "p": 0.01, "proven": abs(value) > half}


def numbers(half: float, ap: str, costs: str = "", *, second: bool = True, **plan: Any) -> dict[str, Any]:
    """Arms a, b, .. with these APs, all intervals of differences ``half`` wide to each side."""
    arms = dict(zip("abc", map(float, ap.split()), strict=False))
    gflops = dict(zip("abc", map(float, costs.split()), strict=False))
    pairs = []
    for a in arms:
        for b in (name for name in arms if name > a):
            own = {"AP": claim(arms[b] - arms[a], half)}
            missing = None if second else f"a second seed of {a} and of {b}"
            pairs.append({"a": a, "b": b, "detectors": own, "methods": own if second else None, "missing": missing})
    known = {"seeds": [0, 1] if second else [0]}
    variants = {name: {"costs": {"gflops": gflops[name]} if name in gflops else {}, **known} for name in arms}
    return {"variants": variants, "pairs": pairs, "confidence": 0.95, "planning": PLAN | plan if plan else None}


def test_the_proven_best_is_named_with_what_is_proven() -> None:
    first, second, third = lead(numbers(0.02, "0.3 0.4 0.2", "1 2 3", gap=0.01))
    assert first.startswith("Take b: proven best")
    assert "8.0 AP" in first
    assert "2.0 GFLOPs" in second
    assert "a (1.0)" in second  # cheaper, but proven worse
    assert "c (" not in second
    assert "12 seeds" in third
    assert "3,000 images" in third


def test_without_a_winner_the_cheapest_that_is_not_proven_worse_is_named() -> None:
    found = numbers(0.03, "0.30 0.31 0.2", "5 9 1", gap=0.01)
    first, second, _ = lead(found)
    assert in_question(found) == ["a", "b"]
    assert first.startswith("No proven winner")
    assert "a and b" in first
    assert "proven worse: c" in first
    assert "is a, 5.0 GFLOPs" in second
    _, second, _ = lead(numbers(0.03, "0.30 0.31 0.32", "5 9", gap=0.01))
    assert "is a, 5.0 GFLOPs" in second
    assert "not measured: c" in second
    # b is proven better than c alone, and nobody is proven better than b: a stays in question.
    assert in_question(numbers(0.03, "0.30 0.32 0.28")) == ["a", "b"]


def test_what_one_seed_one_arm_and_unknown_noise_leave_unsaid() -> None:
    first, second, third = lead(numbers(0.1, "0.3 0.5", second=False))
    assert "this very detector on other images" in first
    assert "not known" in second
    assert "a second seed of a and b" in third
    few = {"seeds": None, "images": None}
    plans: list[dict[str, Any]] = [{"visible": 2.285}, few, few | {"noise": None}]
    far, both, unknown = (lead(numbers(0.1, "0.3 0.5", **plan))[2] for plan in plans)
    assert "228" not in far  # a gap beyond all AP is not promised
    assert "No gap" in far
    assert "more seeds and more images" in both
    assert "can't be computed" in unknown
    assert lead(numbers(0.1, "0.3")) == []


def test_the_front_holds_what_no_cheaper_arm_is_proven_better_than() -> None:
    found = numbers(0.03, "0.30 0.31 0.2")
    for costs, expected in (((5, 9, 6), "ab"), ((5, 9, 1), "abc"), ((None, 9, 10), "b")):
        front = fronts(found, dict(zip("abc", costs, strict=True)))
        assert "".join(name for name, held in front.items() if held) == expected


def test_the_matrix_turns_signs_and_marks_what_is_proven() -> None:
    table = pair_matrix(numbers(0.02, "0.3 0.4"))
    assert table.rows == [["a", "", f"{MINUS}10.0 [{MINUS}12.0, {MINUS}8.0]"], ["b", "+10.0 [+8.0, +12.0]", ""]]
    assert table.bold == {(0, 2), (1, 1)}
    assert pair_matrix(numbers(0.02, "0.3 0.31")).bold == set()
