"""Sections on the origin of a difference: classes, error types, curves, pictures.

Reports of experiments and analyses of runs use them; ``numbers`` are the numbers of either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from detection.evaluation.curves import RECALLS, THRESHOLDS
from detection.evaluation.metrics import percent
from detection.evaluation.tide import ERROR_TYPES
from detection.pages.page import Block, Figure, Pictures, Section, Table, Text
from detection.pages.plots import forest, lines
from detection.report.training import training_figures
from detection.report.words import bar, claimed, deciding, differing, pair_name, percent_interval

__all__ = ["classes_section", "curves_section", "errors_section", "operating_figures", "pictures_section"]

MAX_CLASSES = 20  # classes in a figure; the table shows all
MAX_COLUMNS, MAX_PAIRS = 7, 4  # columns of a table on a printed page, as differences are wide

T = TypeVar("T")
ERROR_NAMES = {
    "Cls": "class",
    "Loc": "place",
    "Both": "class and place",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FP": "all false positives",
    "FN": "all false negatives",
}
ERROR_LEGEND = (
    "TIDE's types (Bolya et al., 2020), each as the AP50 that fixing it alone would bring: class, the right place "
    "under a wrong name; place, the right name at an IoU of 0.1 to 0.5; both at once; duplicate, an object found "
    "twice; background, nothing there; missed, an object without any detection. They do not add up to the whole."
)


def classes_section(numbers: dict[str, Any]) -> Section:
    variants, pairs = numbers["variants"], numbers["pairs"]
    columns = {name: lambda label, v=v: percent(v["class_ap"][label]["value"]) for name, v in variants.items()}
    gains = {pair_name(pair): lambda label, p=pair: claimed(p["class_ap"][label]) for pair in pairs}
    caption = f"differences {_discovered(numbers, 'classes')}" if pairs else ""
    if len(columns) + len(gains) <= MAX_COLUMNS:
        both = f"{_class_figure_name(numbers)} per class in percent, mean over seeds" + (
            f", and {caption}" if pairs else "."
        )
        tables = [_class_table(numbers, both, columns | gains)]
    else:
        tables = [
            _class_table(numbers, f"{_class_figure_name(numbers)} per class in percent, mean over seeds.", columns)
        ]
        tables += [
            _class_table(numbers, f"{_class_figure_name(numbers)} per class, {caption}", dict(part))
            for part in _parts([*gains.items()])
        ]
    return Section("Per class", [*tables, *(_class_figure(pair, _class_figure_name(numbers)) for pair in pairs)])


def _class_table(numbers: dict[str, Any], caption: str, columns: Mapping[str, Callable[[str], str]]) -> Table:
    """Returns a table with a row for each class and cells from ``columns``."""
    rows = [[label, *(cell(label) for cell in columns.values())] for label in numbers["class_names"]]
    return Table(caption, ["class", *columns], rows)


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    """Splits ``items`` into parts that fit beside each other on a printed page."""
    return [items[start : start + MAX_PAIRS] for start in range(0, len(items), MAX_PAIRS)]


def _class_figure_name(numbers: dict[str, Any]) -> str:
    return numbers.get("deciding", {"of_class": "AP"})["of_class"]


def _class_figure(pair: dict[str, Any], figure: str) -> Figure:
    known = {name: interval for name, interval in pair["class_ap"].items() if interval["value"] is not None}
    largest = sorted(known, key=lambda name: -abs(known[name]["value"]))[:MAX_CLASSES]
    shown = sorted(largest, key=lambda name: -known[name]["value"])
    name = f"classes_{pair['a']}_{pair['b']}"
    picked = f" The {len(shown)} largest of {len(known)}." if len(shown) < len(known) else ""
    drawn = forest(
        name,
        {label: {"": bar(known[label])} for label in shown},
        x_label=f"{figure} of {pair['b']} less that of {pair['a']}, points",
        zero=True,
    )
    alt = ", ".join(f"{label} {differing(known[label])}" for label in shown)
    return Figure(name, drawn, f"{pair['b']} against {pair['a']}, class by class; right of 0 is better.{picked}", alt)


def errors_section(numbers: dict[str, Any]) -> Section:
    variants, pairs = numbers["variants"], numbers["pairs"]
    if not all("errors" in variant for variant in variants.values()):  # they find no objects
        return Section("Types of errors", [])
    rows = [[n, *(percent_interval(v["errors"][key]) for key in ERROR_TYPES)] for n, v in variants.items()]
    gains = [[pair_name(pair), *(claimed(pair["errors"][key]) for key in ERROR_TYPES)] for pair in pairs]
    header = ["variant", *(ERROR_NAMES[key] for key in ERROR_TYPES)]
    drawn = {
        ERROR_NAMES[key]: {name: bar(variant["errors"][key]) for name, variant in variants.items()}
        for key in ERROR_TYPES[:6]
    }
    blocks: list[Block] = [
        Text(ERROR_LEGEND),
        Table("AP50 lost to each type of error, in points, mean over seeds; of these detectors.", header, rows),
        Figure(
            "errors",
            forest("errors", drawn, x_label="AP50 lost, points"),
            "AP50 lost to each type of error: shorter is better.",
            "The table above, drawn.",
        ),
    ]
    if gains:
        caption = (
            "Where a gain comes from: change of the AP50 lost to each type, negative for fewer such errors, "
            f"{_discovered(numbers, 'types')}"
        )
        blocks.append(Table(caption, ["pair", *header[1:]], gains))
    return Section("Types of errors", blocks)


def _discovered(numbers: dict[str, Any], what: str) -> str:
    """Returns the question that the differences of many ``what`` answer, and the number of false claims to expect."""
    questions = {pair["question"] for pair in numbers["pairs"]}
    asked = {
        "methods": "of these methods, trained anew",
        "detectors": "of these very detectors on other images (of methods where there are seeds)",
    }["detectors" if "detectors" in questions else "methods"]
    share = f"{100 * (1 - numbers['confidence']):g} %"
    return f"{asked}. *: discovered; of these, over all {what} and pairs, {share} are false on average."


def curves_section(numbers: dict[str, Any]) -> Section:
    return Section("Curves", [*training_figures(numbers["variants"], deciding(numbers)), *operating_figures(numbers)])


def operating_figures(numbers: dict[str, Any]) -> list[Block]:
    """Returns precision against recall, and F1 against the score threshold; empty for variants without objects."""
    variants = numbers["variants"]
    if not all("precision_at_recall" in variant for variant in variants.values()):
        return []
    precision = {name: [(100 * RECALLS, variant["precision_at_recall"])] for name, variant in variants.items()}
    f1 = {name: [(THRESHOLDS, variant["f1_at_score"])] for name, variant in variants.items()}
    best = ", ".join(f"{name} {variant['threshold']:.2f}" for name, variant in variants.items())
    return [
        Figure(
            "precision_recall",
            lines("precision_recall", precision, x_label="recall, percent", y_label="precision, percent"),
            "Precision against recall at IoU 0.5, mean over the classes: the area under a line is AP50. First finished "
            "seed of each variant.",
            "Precision at 101 recalls per variant; numbers in report.json.",
        ),
        Figure(
            "f1",
            lines("f1", f1, x_label="score threshold", y_label="F1, percent"),
            f"F1 at IoU 0.5 by score threshold, mean over the classes. Best at: {best}.",
            "F1 at 101 score thresholds per variant; numbers in report.json.",
        ),
    ]


def pictures_section(numbers: dict[str, Any], pictures: Sequence[Pictures]) -> Section:
    if not all("objects" in pair for pair in numbers["pairs"]) or not numbers["pairs"]:
        return Section("Pictures", [])
    rows = [
        [f"{p['a']} and {p['b']}", *(str(p["objects"][key]) for key in ("only_a", "only_b", "all"))]
        for p in numbers["pairs"]
    ]
    caption = (
        "Objects found by one alone, and all objects to find. Each variant shows its best detections, as many as there "
        "are objects."
    )
    table = Table(caption, ["A and B", "found by A only", "found by B only", "objects"], rows)
    return Section("Where one finds what the other misses", [table, *pictures])
