"""Analyses the errors of a run, or differences between runs on the same images: OUTPUT/analysis.{html,md,json}.

Also writes likely label errors as files for annotation tools (report/label_errors.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.engine.label_counts import label_classes
from detection.evaluation.confusion import confusion_matrix, rank_images
from detection.evaluation.label_errors import Suspect, find_label_errors
from detection.evaluation.label_maps import LabelClasses, pixel_counts
from detection.evaluation.matching import match
from detection.evaluation.metrics import percent, shown_in
from detection.evaluation.record import Record
from detection.evaluation.report import VocMetric
from detection.pages.page import Block, Figure, Page, Pictures, Section, Table, write_page
from detection.pages.plots import matrix
from detection.progress import SCREEN
from detection.report.build import only_found_by
from detection.report.calibration import Wanted, calibration_numbers, calibration_section
from detection.report.conclusion import claims_tables
from detection.report.details import classes_section, errors_section, operating_figures, pictures_section
from detection.report.label_errors import label_errors_section, suspect_numbers, write_suggestions
from detection.report.numbers import (
    Shown,
    as_json,
    has_boundaries,
    metric_numbers,
    pair_numbers,
    run_numbers,
    show_objects,
    tested_weights,
    voc_metric,
)
from detection.report.pictures import picture
from detection.report.proof import compare_runs, deciding_figure, not_compared, planning
from detection.report.verdict import lead
from detection.report.words import deciding, percent_interval
from detection.tasks.test import read_records

__all__ = ["compare_records", "confusions_section", "write_analysis"]

MAX_PICTURES = 4  # best images, and as many worst ones
CONFIDENT = 0.5  # smallest score of a detection that may contradict a label
MAX_PAIRS = 16  # pairs of pictures for all pairs of runs together
MAX_CONFUSIONS = 12  # rows of the table


def write_analysis(runs: Sequence[Path], output: Path, *, say: Callable[[str], None] = SCREEN.print) -> Path:
    """Writes the analysis of one or several run directories to ``output``; returns the path of the HTML page.

    Args:
        runs: directories with config.yaml, result.json and detections.json on the same test images.
        output: the folder to write into.
        say: called with each line of progress.

    Raises:
        ValueError: no run, a repeated run, broken files, or runs with different images or classes.
    """
    read = {name: read_records(run, say=say) for name, run in zip(_names(runs), runs, strict=True)}
    index = next(index for index, _ in read.values())
    metrics = {name: metric_numbers([run]) for name, run in zip(read, runs, strict=True)}
    numbers, shown = compare_records(
        {name: [records] for name, (_, records) in read.items()},
        {name: own.class_names for name, (own, _) in read.items()},
        metrics,
        voc_metric=voc_metric(runs[0]),
        boundary=all(map(has_boundaries, runs)),
        labels=label_classes(index),
    )
    for name, run in shown.items():
        numbers["variants"][name] |= as_json(_ranking(run))
    output.mkdir(parents=True, exist_ok=True)
    label_errors = _label_errors(numbers, index, shown, output)
    (output / "analysis.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    page = Page(
        title=f"Analysis: {' and '.join(read)}",
        subtitle="What goes wrong, how much each kind of error costs, and on which images.",
        facts=[
            ("Images", str(len(index))),
            ("Classes", str(len(numbers["class_names"]))),
            *((name, f"{run}: {tested_weights(run)}") for name, run in zip(read, runs, strict=True)),
        ],
        sections=_sections(numbers, index, shown, label_errors),
        lead=lead(numbers),
    )
    return write_page(page, output, "analysis")


def compare_records(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    classes: Mapping[str, Sequence[str]],
    metrics: Mapping[str, dict[str, Any]],
    *,
    voc_metric: VocMetric,
    boundary: bool = False,
    labels: LabelClasses | None = None,
    wanted: Wanted | None = None,
) -> tuple[dict[str, Any], dict[str, Shown]]:
    """Returns all numbers of an analysis, and curves and matched objects of the first seed of each detector.

    Args:
        runs: name -> the records of each of its seeds.
        classes: name -> the class names of its records.
        metrics: name -> ``result_numbers`` of its seeds.
        voc_metric: the definition behind "VOC mAP".
        boundary: also compare boundary AP of masks.
        labels: the classes of label maps; None without label maps.
        wanted: precision and recall to find the score threshold for; None: the defaults.

    Raises:
        ValueError: different images, objects or classes in two runs, or fewer than two images.
    """
    # First, as this rejects runs that can't be compared.
    comparison = compare_runs(runs, classes, voc_metric=voc_metric, boundary=boundary, labels=labels)
    of_objects = tuple(next(iter(classes.values())))
    names = of_objects if labels is None else labels.names
    images = len(next(iter(runs.values()))[0])
    shown = show_objects(runs, len(of_objects))
    variants = {
        name: {"seeds": list(range(1, len(seeds) + 1)), "metrics": metrics[name]}
        | run_numbers(comparison, name, shown, names)
        | ({} if labels is None else {"pixels": pixel_counts(seeds[0])})
        for name, seeds in runs.items()
    }
    for name, run in shown.items():
        variants[name] |= {"confusion": confusion_matrix(run.records, len(of_objects), min_score=run.threshold)}
        variants[name] |= calibration_numbers(match(run.records, of_objects), wanted or Wanted())
    numbers = {
        "images": images,
        "blocks": comparison.blocks,
        "confidence": comparison.confidence,
        "class_names": names,
        "object_names": of_objects if shown else (),
        "deciding": deciding_figure(comparison),
        "planning": planning(comparison, images=images, seeds=min(v.seeds for v in comparison.variants.values())),
        "variants": variants,
        "pairs": [pair_numbers(comparison, pair, shown, names) for pair in comparison.pairs],
    }
    if few := not_compared(runs):
        numbers["not_compared"] = few
    return as_json(numbers), shown


def _names(runs: Sequence[Path]) -> list[str]:
    """Returns the shortest unique endings of the paths of ``runs``."""
    resolved = [run.resolve() for run in runs]
    if not runs or len(set(resolved)) < len(runs):
        raise ValueError(f"an analysis takes run directories, each once, got {', '.join(map(str, runs)) or 'none'}")
    names = (["/".join(run.parts[-depth:]) for run in resolved] for depth in count(1))
    return next(tried for tried in names if len(set(tried)) == len(runs))


def _ranking(shown: Shown) -> dict[str, Any]:
    """Ranks all images from best to worst, at the score threshold of the run."""
    return {
        "ranking": [
            {
                "image": shown.records[score.row].file_name,
                "row": score.row,
                "f1": score.f1,
                "hits": score.hits,
                "misses": score.misses,
                "false": score.false,
            }
            for score in rank_images(shown.records, min_score=shown.threshold)
        ],
    }


def _label_errors(numbers: dict[str, Any], index: AnnotationIndex, shown: Mapping[str, Shown], output: Path) -> Section:
    """Adds likely label errors to ``numbers``, writes them to ``output`` and returns their section."""
    if not shown:
        return Section("Labels", [])
    suspects, records = _suspects(shown), next(iter(shown.values())).records
    numbers["label_errors"] = as_json(suspect_numbers(suspects, records, index.class_names))
    write_suggestions(output, suspects, index, records)
    return label_errors_section(suspects, index, records, runs=len(shown))


def _suspects(shown: Mapping[str, Shown]) -> list[Suspect]:
    """Returns the labels that confident detections of all runs together contradict."""
    return find_label_errors([run.records for run in shown.values()], min_score=CONFIDENT)


def _sections(
    numbers: dict[str, Any], index: AnnotationIndex, shown: Mapping[str, Shown], label_errors: Section
) -> list[Section]:
    results = claims_tables(numbers) if numbers["pairs"] else []
    ways = [way for a, b in combinations(shown, 2) for way in ((a, b), (b, a))][:MAX_PAIRS]
    each = min(MAX_PICTURES, max(1, MAX_PAIRS // max(len(ways), 1)))
    found = [figure for a, b in ways for figure in only_found_by(index, shown, a, b, each)]
    sections = [
        Section("Results", [*results, _results(numbers)]),
        errors_section(numbers),
        Section("Curves", operating_figures(numbers)),
        classes_section(numbers),
        confusions_section(numbers),
        calibration_section(numbers),
        pictures_section(numbers, found),
        label_errors,
        *(_images(name, numbers, index, run) for name, run in shown.items()),
    ]
    return [section for section in sections if section.blocks]


def _results(numbers: dict[str, Any]) -> Table:
    variants, figure = numbers["variants"], deciding(numbers)
    metrics = [metric for metric in shown_in("report") if all(metric.name in v["metrics"] for v in variants.values())]
    rows = [
        [
            name,
            *(metric.format(variant["metrics"][metric.name]["mean"]) for metric in metrics),
            percent_interval(variant["intervals"][figure]),
        ]
        for name, variant in variants.items()
    ]
    caption = f"Results in percent on {numbers['images']} images; the interval is over the choice of images."
    return Table(
        caption, ["run", *(metric.name for metric in metrics), f"{figure}, {100 * numbers['confidence']:g} %"], rows
    )


def confusions_section(numbers: dict[str, Any]) -> Section:
    figures: list[Block] = []
    tables: list[Block] = []
    for name, variant in numbers["variants"].items():
        if "pixels" in variant:
            tables += _confused_pixels(name, variant["pixels"], numbers["class_names"])
    labels = [*numbers.get("object_names", numbers["class_names"]), "nothing"]
    for name, variant in numbers["variants"].items():
        if "confusion" not in variant:
            continue
        counts = np.array(variant["confusion"], np.int64)
        drawn = matrix(f"confusion_{name}", counts, labels, x_label="shown as", y_label="object")
        caption = (
            f"{name}: objects (rows) and what is shown in their place, from score {variant['threshold']:.2f} on, where "
            "F1 is best. Last column: missed; last row: false alarms. The shade is the share of the row."
        )
        largest = _largest_confusions(counts, labels)
        alt = "; ".join(f"{truth} as {label}: {number}" for truth, label, number in largest) or "no confusion"
        figures.append(Figure(f"confusion_{name}", drawn, caption, alt))
        rows = [[truth, label, number] for truth, label, number in largest]
        if rows:
            tables.append(Table(f"{name}: the most frequent confusions.", ["object", "shown as", "times"], rows))
    return Section("Confusions", [*figures, *tables])


def _confused_pixels(name: str, pixels: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[Block]:
    """Returns the most frequent confusions of classes, by pixels."""
    counts = np.array(pixels, np.int64)  # (K, K + 1)
    found = _largest_confusions(counts, [*class_names, "nothing"])
    of_class = dict(zip(class_names, counts.sum(axis=1).tolist(), strict=True))
    rows = [[true, label, f"{int(n):,}", percent(int(n) / of_class[true])] for true, label, n in found]
    caption = f"{name}: the most frequent confusions of pixels, and the share of the true class in percent."
    return [Table(caption, ["true", "predicted", "pixels", "share"], rows)] if rows else []


def _largest_confusions(counts: NDArray[np.int64], labels: Sequence[str]) -> list[tuple[str, str, str]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order: list[int] = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS].tolist()
    cells = [divmod(place, counts.shape[1]) for place in order]
    return [(labels[row], labels[column], str(wrong[row, column])) for row, column in cells if wrong[row, column]]


def _images(name: str, numbers: dict[str, Any], index: AnnotationIndex, run: Shown) -> Section:
    """Returns the section with the best and worst images."""
    ranking = numbers["variants"][name]["ranking"]
    worst = ranking[::-1][:MAX_PICTURES]
    best = ranking[: max(0, min(MAX_PICTURES, len(ranking) - len(worst)))]
    blocks: list[Block] = []
    for what, entries in (("worst", worst), ("best", best)):
        for number, entry in enumerate(entries, start=1):
            row, file_name = entry["row"], Path(entry["image"]).name
            drawn = picture(index, row, run.records[row], min_score=run.threshold)
            caption = (
                f"{what} {number}: {file_name}, F1 {percent(entry['f1'])}; {entry['hits']} found, {entry['misses']} "
                f"missed, {entry['false']} false. Thin white: objects."
            )
            blocks.append(Pictures(f"{name}_{what}_{number}", [drawn], caption, [f"{file_name} with its detections"]))
    return Section(f"Worst and best images of {name}", blocks)
