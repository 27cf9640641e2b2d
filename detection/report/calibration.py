"""The section on scores of a run: calibration, and the score threshold for a given precision or recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detection.evaluation.calibration import calibrate, joined_curve, point_of_precision, point_of_recall
from detection.evaluation.curves import matched_curves
from detection.evaluation.matching import MatchedRecords
from detection.evaluation.metrics import NONE, percent
from detection.pages.page import Block, Figure, Section, Table
from detection.pages.plots import lines

__all__ = ["Wanted", "calibration_numbers", "calibration_section"]

ALL = "all classes"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Precision and recall, fractions 0..1, to find the score threshold for."""

    precision: float = 0.9
    recall: float = 0.9


def calibration_numbers(matches: MatchedRecords, wanted: Wanted) -> dict[str, Any]:
    """Returns the calibration of a run, and its operating points for all classes and for each; None without any."""
    curves = matched_curves(matches)
    joined = joined_curve(curves)
    named = {ALL: joined, **dict(zip(matches.class_names, curves, strict=True))}
    return {
        "calibration": calibrate(joined),
        "wanted": wanted,
        "points": {
            name: {
                "precision": point_of_precision(curve, wanted.precision),
                "recall": point_of_recall(curve, wanted.recall),
            }
            for name, curve in named.items()
        },
    }


def calibration_section(numbers: dict[str, Any]) -> Section:
    """Returns the section "Scores" for ``numbers``; without objects it is empty."""
    variants = numbers["variants"]
    if not all("calibration" in variant for variant in variants.values()):
        return Section("Scores", [])
    curves = {
        name: [([100 * score for score in scores], precision)]
        for name, variant in variants.items()
        for scores, precision in [_known_bins(variant["calibration"])]
    }
    errors = ", ".join(f"{name} {percent(variant['calibration']['error'])}" for name, variant in variants.items())
    drawn = lines(
        "calibration",
        {**curves, "score = precision": [([0, 100], [0, 1])]},
        x_label="mean score of a bin, percent",
        y_label="precision, percent",
    )
    caption = (
        "How often detections of a score are right (IoU 0.5), in ten bins; below the diagonal scores promise too much. "
        f"Expected calibration error, percent: {errors}. First seed of each."
    )
    alt = "Precision by score in ten bins; numbers in the JSON file."
    blocks: list[Block] = [Figure("calibration", drawn, caption, alt)]
    blocks += [_points_table(name, variant) for name, variant in variants.items()]
    return Section("Scores", blocks)


def _known_bins(calibration: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Returns the mean scores and precisions of the bins with detections."""
    pairs = zip(calibration["score"], calibration["precision"], strict=True)
    known = [(score, precision) for score, precision in pairs if score is not None]
    return [score for score, _ in known], [precision for _, precision in known]


def _points_table(name: str, variant: dict[str, Any]) -> Table:
    wanted = variant["wanted"]
    precision, recall = (percent(wanted[key]) for key in ("precision", "recall"))
    header = ["class", f"score, precision {precision}", "recall there", f"score, recall {recall}", "precision there"]
    rows = [
        [label, *_cells(points["precision"], "recall"), *_cells(points["recall"], "precision")]
        for label, points in variant["points"].items()
    ]
    caption = (
        f"{name}: the lowest score from which on precision is {precision} % or more, and the highest from which on "
        f"recall is {recall} % or more, with the other of the two there; {NONE}: no score reaches it."
    )
    return Table(caption, header, rows)


def _cells(point: dict[str, float] | None, other: str) -> Sequence[str]:
    return (NONE, NONE) if point is None else (f"{point['score']:.3f}", percent(point[other]))
