"""The first section of an experiment with heads: do gains of backbones carry over to other heads?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detection.evaluation.metrics import NONE
from detection.pages.page import Block, Figure, Notice, Section, Table, Text
from detection.pages.plots import forest
from detection.report.verdict import left_out
from detection.report.words import MINUS, bar, claimed, deciding, differing, pair_name, percent_interval

__all__ = ["by_head", "heads_lead", "heads_section"]

Entry = tuple[str, Mapping[str, Any]]  # setting that differs, and its value in every arm


def heads_lead(numbers: dict[str, Any]) -> list[str]:
    """Returns a line per variant (mean gain over the first, whether heads agree), and lines on omitted figures."""
    means = numbers["heads"]["means"]
    return [*(f"{mean['verdict']}." for mean in means if mean["a"] == means[0]["a"]), *left_out(numbers)]


def heads_section(numbers: dict[str, Any]) -> Section:
    """Returns the section with the figure of each variant under each head, gains, mean gains and their differences.

    Empty for an experiment without heads.
    """
    found = numbers.get("heads")
    if found is None:
        return Section("Across heads", [])
    if not found["means"]:
        text = "No two variants have finished runs under two heads: nothing can be said across heads yet."
        return Section("Across heads", [Notice(text, warning=True)])
    question = _question(numbers)
    scope = {
        "methods": "of these methods, trained anew and tested on other images",
        "detectors": "of these very detectors on other images; says nothing of other seeds",
    }[question]
    level = f"{100 * numbers['confidence']:g} %"
    lacking = list(dict.fromkeys(mean["missing"] for mean in found["means"] if mean["missing"]))
    blocks: list[Block] = [
        *(Text(f"{mean['verdict']}.") for mean in found["means"]),
        *([Notice(f"Of methods nothing is said, which takes {'; '.join(lacking)}.", warning=True)] if lacking else []),
        _ap_table(numbers, question, level),
        _gains_table(numbers, question, scope, level),
        _figure(numbers, question, scope),
        _interactions_table(found["interactions"], question, scope, level, deciding(numbers)),
        Text(
            "Heads are said to differ where a difference of gains is proven, and to agree where the intervals of all "
            "differences are shorter than the gain that is proven in the mean, or than 1 point; else it is open. The "
            "mean is of these heads, not of heads in general."
        ),
    ]
    return Section("Across heads", blocks)


def by_head(entries: Sequence[Entry], heads: Mapping[str, Mapping[str, str]]) -> dict[str, list[Entry]]:
    """Groups ``entries`` by what they depend on: the head, the variant, or the arm.

    Args:
        entries: entries with a value per arm.
        heads: head -> variant -> arm.
    """
    variants = [*next(iter(heads.values()))]
    found: dict[str, list[Entry]] = {"between heads": [], "between variants": [], "of every arm": []}
    for what, values in entries:
        of_heads = {head: [values[arm] for arm in arms.values() if arm in values] for head, arms in heads.items()}
        of_variants = {v: [values[arms[v]] for arms in heads.values() if arms[v] in values] for v in variants}
        if all(map(_is_one, of_heads.values())):
            found["between heads"].append((what, {head: known[0] for head, known in of_heads.items() if known}))
        elif all(map(_is_one, of_variants.values())):
            found["between variants"].append((what, {v: known[0] for v, known in of_variants.items() if known}))
        else:
            found["of every arm"].append((what, values))
    return found


def _is_one(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _question(numbers: dict[str, Any]) -> str:
    """Returns the question that all gains can answer, of the two."""
    claims = [*numbers["pairs"], *numbers["heads"]["means"]]
    return "methods" if all(claim["methods"] for claim in claims) else "detectors"


def _ap_table(numbers: dict[str, Any], question: str, level: str) -> Table:
    arms, known = numbers["heads"]["arms"], numbers["variants"]
    variants = [*next(iter(arms.values()))]

    def cell(arm: str) -> str:
        if arm not in known:
            return NONE
        of_methods = known[arm]["methods"] if question == "methods" else None
        return percent_interval((of_methods or known[arm]["intervals"])[deciding(numbers)])

    rows = [[head, *(cell(named[variant]) for variant in variants)] for head, named in arms.items()]
    caption = (
        f"{deciding(numbers)} of every variant under every head, mean over its seeds, each with its own interval "
        f"({level})."
    )
    return Table(caption, ["head", *variants], rows, fixed=True)


def _together(claims: Sequence[Any], level: str) -> str:
    return f"all {len(claims)} intervals hold together with {level}" if len(claims) > 1 else f"with {level} intervals"


def _gains(numbers: dict[str, Any], question: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns row -> pair -> claim about the figure; rows are the heads and the mean."""
    found, figure = numbers["heads"], deciding(numbers)
    by_arms = {(pair["a"], pair["b"]): pair[question][figure] for pair in numbers["pairs"]}
    rows: dict[str, dict[str, dict[str, Any]]] = {
        head: {
            pair_name(mean): by_arms[arms]
            for mean in found["means"]
            if (arms := (named[mean["a"]], named[mean["b"]])) in by_arms
        }
        for head, named in found["arms"].items()
    }
    return rows | {"mean": {pair_name(mean): mean[question][figure] for mean in found["means"]}}


def _gains_table(numbers: dict[str, Any], question: str, scope: str, level: str) -> Table:
    pairs = [pair_name(mean) for mean in numbers["heads"]["means"]]
    rows = [[row, *(claimed(claims.get(pair)) for pair in pairs)] for row, claims in _gains(numbers, question).items()]
    caption = (
        f"Gains in {deciding(numbers)} under each head, {scope}; {_together(numbers['pairs'], level)}, means by "
        "themselves; *: proven."
    )
    return Table(caption, ["head", *pairs], rows, fixed=True)


def _figure(numbers: dict[str, Any], question: str, scope: str) -> Figure:
    gains = _gains(numbers, question)
    drawn = {row: {pair: bar(claim) for pair, claim in claims.items()} for row, claims in gains.items() if claims}
    alt = "; ".join(
        f"{row}: {', '.join(f'{pair} {differing(claim)}' for pair, claim in claims.items())}"
        for row, claims in gains.items()
        if claims
    )
    caption = (
        f"Gains in {deciding(numbers)} by head, with the intervals of the table above, {scope}; right of 0 is better."
    )
    return Figure(
        "heads", forest("heads", drawn, x_label=f"gain in {deciding(numbers)}, points", zero=True), caption, alt
    )


def _interactions_table(
    interactions: Sequence[dict[str, Any]], question: str, scope: str, level: str, figure: str
) -> Table:
    pairs = list(dict.fromkeys(map(pair_name, interactions)))
    rows: dict[str, dict[str, str]] = {}
    for found in interactions:
        row = rows.setdefault(f"{found['second']} {MINUS} {found['first']}", {})
        row[pair_name(found)] = claimed(found[question][figure])
    caption = (
        f"By how much the gain under one head exceeds that under another, in {figure}, {scope}; "
        f"{_together(interactions, level)}; *: proven, heads differ."
    )
    cells = [[name, *(row.get(pair, NONE) for pair in pairs)] for name, row in rows.items()]
    return Table(caption, ["heads", *pairs], cells, fixed=True)
