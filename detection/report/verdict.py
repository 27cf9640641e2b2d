"""The first lines of a comparison: the arm to take, from what is proven of each pair.

An arm is behind if another is proven better.  Arms that are not behind any other stay in question, and the cheapest of
them is named: an unproven difference is no reason to pay more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detection.pages.page import Table
from detection.report.words import MINUS, deciding, number

__all__ = ["fronts", "in_question", "lead", "left_out", "pair_matrix"]

# Costs that decide which arm is cheapest: the first that is known for all arms.
COSTS: tuple[tuple[str, Callable[[dict[str, Any]], float | None]], ...] = (
    ("ms an image", lambda costs: costs.get("latency_ms", {}).get("p50")),
    ("GFLOPs", lambda costs: costs.get("gflops")),
)


def lead(numbers: dict[str, Any]) -> list[str]:
    """Returns lines on the arm to take (the cheapest that is not proven worse), on what would tell more, and on gaps.

    Empty without pairs.
    """
    if not numbers["pairs"]:
        return []
    left = in_question(numbers)
    return [_winner(numbers, left), _cheapest(numbers, left), _more(numbers), *left_out(numbers)]


def left_out(numbers: dict[str, Any]) -> list[str]:
    """Returns a line on each kind of figure that only some arms have."""
    return [
        f"Not compared: {what}, which only {_listed(names)} {'has' if len(names) == 1 else 'have'}."
        for what, names in numbers.get("not_compared", {}).items()
    ]


def in_question(numbers: dict[str, Any]) -> list[str]:
    """Returns the arms for which no other arm is proven better."""
    behind = {worse for _, worse in _proven(numbers)}
    return [name for name in numbers["variants"] if name not in behind]


def fronts(numbers: dict[str, Any], costs: dict[str, float | None]) -> dict[str, bool]:
    """Returns the arms on the Pareto front: no arm of at most the same cost is proven better.

    An unproven difference puts no arm behind; an arm without a cost is on no front.
    """
    known = {name: cost for name, cost in costs.items() if cost is not None}
    beaten = {
        worse
        for better, worse in _proven(numbers)
        if better in known and worse in known and known[better] <= known[worse]
    }
    return {name: name in known and name not in beaten for name in costs}


def pair_matrix(numbers: dict[str, Any]) -> Table:
    """Returns the figure of each row minus that of each column, with intervals; proven differences are bold."""
    names = [*numbers["variants"]]
    claims = {(pair["a"], pair["b"]): _claim(numbers, pair) for pair in numbers["pairs"]}
    rows, bold = [], set[tuple[int, int]]()
    for row, name in enumerate(names):
        cells = [name]
        for column, other in enumerate(names, start=1):
            if (other, name) in claims:
                cells.append(_cell(claims[other, name], sign=1))
            elif (name, other) in claims:
                cells.append(_cell(claims[name, other], sign=-1))
            else:
                cells.append("")
            if claims.get((other, name), claims.get((name, other), {})).get("proven"):
                bold.add((row, column))
        rows.append(cells)
    level = f"{100 * numbers['confidence']:g} %"
    caption = (
        f"{deciding(numbers)} of the row less that of the column, in points, with intervals that hold together with "
        f"{level}; bold: proven. {_SCOPES[_question(numbers)]}"
    )
    return Table(caption, ["", *(f"{MINUS} {name}" for name in names)], rows, fixed=True, bold=bold)


_SCOPES = {
    "methods": "Of the methods, trained anew and tested on other images.",
    "detectors": "Of these very detectors on other images: what another seed would change is not known.",
}


def _question(numbers: dict[str, Any]) -> str:
    """Returns the question that all pairs can answer, of the two."""
    return "methods" if all(pair["methods"] for pair in numbers["pairs"]) else "detectors"


def _claim(numbers: dict[str, Any], pair: dict[str, Any]) -> dict[str, Any]:
    return pair[_question(numbers)][deciding(numbers)]


def _proven(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns every (better, worse) that is proven."""
    found = []
    for pair in numbers["pairs"]:
        claim = _claim(numbers, pair)
        if claim["proven"]:
            found.append((pair["b"], pair["a"]) if claim["value"] > 0 else (pair["a"], pair["b"]))
    return found


def _winner(numbers: dict[str, Any], left: Sequence[str]) -> str:
    methods, names = _question(numbers) == "methods", [*numbers["variants"]]
    scope = "as methods trained anew" if methods else "as these very detectors on other images"
    own = "as a method trained anew" if methods else "as this very detector on other images"
    proven = _proven(numbers)
    if len(left) == 1 and all((left[0], other) in proven for other in names if other != left[0]):
        lows = [_lead_over(numbers, left[0], other) for other in names if other != left[0]]
        return f"Take {left[0]}: proven best, {own}, by {100 * min(lows):.1f} {deciding(numbers)} or more."
    behind = [name for name in names if name not in left]
    tail = f"; proven worse: {_listed(behind)}" if behind else ""
    return f"No proven winner among {_listed(left)}, {scope}{tail}."


def _lead_over(numbers: dict[str, Any], better: str, other: str) -> float:
    """Returns the smallest proven lead of ``better`` over ``other``."""
    for pair in numbers["pairs"]:
        if {pair["a"], pair["b"]} == {better, other}:
            claim = _claim(numbers, pair)
            return claim["low"] if pair["b"] == better else -claim["high"]
    raise KeyError(other)


def _cheapest(numbers: dict[str, Any], left: Sequence[str]) -> str:
    for unit, read in COSTS:
        costs = {name: read(variant.get("costs", {})) for name, variant in numbers["variants"].items()}
        known = {name: cost for name, cost in costs.items() if cost is not None}
        measured = [name for name in left if name in known]
        if not measured:
            continue
        name = min(measured, key=lambda name: known[name])
        others = [f"{n} ({number(cost)})" for n, cost in known.items() if n not in left and cost < known[name]]
        cheaper = f"; cheaper, but proven worse: {_listed(others)}" if others else ""
        unknown = [n for n in left if n not in known]
        unmeasured = f"; not measured: {_listed(unknown)}" if unknown else ""
        subject = f"{name} takes" if len(left) == 1 else f"The cheapest of those not proven worse is {name},"
        return f"{subject} {number(known[name])} {unit}{cheaper}{unmeasured}."
    return "Costs were not measured, so that the cheapest is not known."


def _more(numbers: dict[str, Any]) -> str:
    """Returns a line on the seeds or images that would tell more."""
    if any(pair["missing"] for pair in numbers["pairs"]):
        single = [name for name, variant in numbers["variants"].items() if len(variant["seeds"]) < 2]
        return f"To say anything of the methods takes a second seed of {_listed(single)}."
    plan = numbers.get("planning") or {}
    ways = [
        f"{plan[key]:,} {what}"
        for key, what in (("seeds", "seeds of each on these images"), ("images", "images with these seeds"))
        if plan.get(key)
    ]
    if not plan.get("noise"):
        return "What it would take to know more can't be computed from these runs."
    wanted = f"To see a gap of {100 * plan['gap']:g} {deciding(numbers)}"
    if not ways:
        return f"{wanted} takes more seeds and more images: neither alone is enough."
    visible = plan.get("visible")
    seen = "" if visible is None else f" True gaps of {100 * visible:.1f} are seen 8 times in 10 now."
    if visible is not None and visible >= 1:
        seen = " No gap at all is sure to be seen now."
    return f"{wanted}: {', or '.join(ways)}.{seen}"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _cell(claim: dict[str, Any], *, sign: int) -> str:
    value, low, high = (claim[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    ends = sorted((sign * low, sign * high)) if low is not None and high is not None else []
    shown = f" [{', '.join(f'{100 * end:+z.1f}' for end in ends)}]" if ends else ""
    return f"{100 * sign * value:+z.1f}{shown}".replace("-", MINUS)
