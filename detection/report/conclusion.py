"""Proven differences of each pair of an experiment, and the seeds or images that would tell more."""

from __future__ import annotations

from typing import Any

from detection.pages.page import Block, Notice, Section, Table, Text
from detection.report.recipe import recipe, warnings
from detection.report.verdict import pair_matrix
from detection.report.words import claimed, deciding, pair_name

__all__ = ["claims_tables", "conclusion"]

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "VOC mAP", "mask AP")  # columns, if known
SHOWN_MAPS = ("PQ", "SQ", "RQ", "PQ things", "PQ stuff", "mIoU", "fwIoU", "pixel accuracy")  # of label maps, first
EQUAL_DEVIATIONS = 0.05  # p-value below which a warning about pooling is shown


def conclusion(numbers: dict[str, Any]) -> Section:
    """Returns the section with recipe, warnings, figure of all pairs, and planning of an experiment."""
    missing = [f"{run['variant']} seed {run['seed']} ({run['state']})" for run in numbers["unfinished"]]
    blocks: list[Block] = [Text(f"Recipe: {recipe(numbers)}.")]
    if missing:
        blocks.append(Notice(f"Without a result, and not in any number here: {', '.join(missing)}.", warning=True))
    blocks += [Notice(warning, warning=True) for warning in warnings(numbers)]
    if numbers["pairs"]:
        blocks += [] if "heads" in numbers else [pair_matrix(numbers)]
        blocks += _planning(numbers["planning"], deciding(numbers))
    return Section("Conclusion", blocks)


def claims_tables(numbers: dict[str, Any]) -> list[Block]:
    """Returns the differences of all pairs, a table for each of the two questions that can be answered."""
    pairs, level = numbers["pairs"], f"{100 * numbers['confidence']:g} %"
    families = (
        f"Points, with intervals that hold for all {len(pairs)} pairs together with {level}"
        if len(pairs) > 1
        else f"Points, with {level} intervals"
    ) + "; *: proven, each column by itself."
    blocks: list[Block] = []
    with_methods = [pair for pair in pairs if pair["methods"]]
    if with_methods:
        caption = f"These methods, trained anew: other seeds and other test images. {families}"
        blocks.append(_table(caption, with_methods, "methods", deciding(numbers)))
    lacking = [f"{pair_name(pair)} takes {pair['missing']}" for pair in pairs if not pair["methods"]]
    if lacking:
        blocks.append(Text(f"Nothing can be said of methods where seeds are missing: {'; '.join(lacking)}."))
    caption = f"These very detectors on other test images; says nothing of other seeds. {families}"
    return [*blocks, _table(caption, pairs, "detectors", deciding(numbers))]


def _table(caption: str, pairs: list[dict[str, Any]], question: str, figure: str) -> Table:
    metrics = [name for name in (*SHOWN_MAPS, *SHOWN) if name in pairs[0][question]]
    rows = [
        [
            pair_name(pair),
            *(claimed(pair[question][name]) for name in metrics),
            _gap(pair["visible"][question]),
        ]
        for pair in pairs
    ]
    return Table(caption, ["pair", *metrics, f"{figure} gap seen 8 times in 10"], rows)


def _planning(plan: dict[str, Any], figure: str) -> list[Block]:
    blocks: list[Block] = []
    if plan["noise"] is not None and plan["visible"] is not None:
        design, gap, seen = plan["design"], _points(plan["gap"]), plan["visible"]
        ways = [
            f"{plan['seeds']} seeds of each variant on these images" if plan["seeds"] else "no number of seeds alone",
            f"{plan['images']:,} images with these seeds" if plan["images"] else "no number of images alone",
        ]
        least = "no true gap" if seen >= 1 else f"a true gap of {_points(seen)} {figure}"
        blocks.append(
            Text(
                f"With {design['seeds']} seeds of {design['variants']} variants and {design['images']:,} images, "
                f"{least} between two methods is claimed 8 times in 10. To see {gap} {figure}: {', or '.join(ways)}. "
                f"The deviation of a training is {_points(plan['noise']['seed'])} {figure} beyond what single images "
                "explain."
            )
        )
    pooling = plan["pooling"]
    if pooling is not None:
        wrong = pooling["equal_p"] <= EQUAL_DEVIATIONS
        text = (
            f"Claims of methods rest on one seed deviation for all variants, {_points(pooling['deviation'])} {figure} "
            f"with {pooling['freedom']} degrees of freedom. Test of equal deviations: p = {pooling['equal_p']:.2f}."
        )
        blocks.append(
            Notice(f"{text} They differ: take pool_seeds out of the experiment.", warning=True) if wrong else Text(text)
        )
    return blocks


def _gap(visible: float | None) -> str:
    return "none" if visible is not None and visible >= 1 else _points(visible or None)


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
