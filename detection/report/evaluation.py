"""Evaluates and compares detections of any program: OUTPUT/evaluation.{html,md,json}."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.engine.evaluate import evaluate
from detection.evaluation.metrics import METRICS, figures, shown_in
from detection.evaluation.report import VocMetric, describe_left_out, format_tables
from detection.evaluation.text_table import text_table
from detection.files import write_text
from detection.pages.page import Block, Page, Section, Table, write_page
from detection.report.analysis import compare_records, confusions_section
from detection.report.calibration import Wanted, calibration_section
from detection.report.conclusion import claims_tables
from detection.report.details import classes_section, errors_section, operating_figures, pictures_section
from detection.report.numbers import as_json, over_seeds, result_numbers
from detection.report.verdict import lead, pair_matrix
from detection.report.words import best_cells, deciding, percent_interval, spread
from detection.tasks.evaluate import Judged, read_judged
from detection.tasks.evaluate_maps import read_judged_maps

__all__ = ["Evaluation", "write_evaluation", "write_map_evaluation"]


_SECTIONS = {
    "panoptic": "Panoptic quality {}",
    "semseg": "Label maps {}",
    "bbox": "COCO box AP and AR {}",
    "segm": "COCO mask AP and AR",
    "boundary": "COCO boundary AP and AR",
    "keypoints": "COCO keypoint AP and AR",
    "voc": "VOC mAP",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The written page and all its numbers."""

    page: Path
    numbers: dict[str, Any]

    @property
    def tables(self) -> str:
        """Returns the tables to print."""
        variants = self.numbers["variants"]
        if len(variants) == 1:
            (variant,) = variants.values()
            return format_tables(variant["results"][0])
        known = [variant["metrics"] for variant in variants.values()]
        names = [metric.name for metric in shown_in("report") if all(metric.name in metrics for metrics in known)]
        rows = [[name, *(spread(metrics[name]) for metrics in known)] for name in names]
        title = "AP and AR (%)" if deciding(self.numbers) == "AP" else "Label maps (%)"
        return "\n".join([title, text_table(["", *variants], rows), *lead(self.numbers)])


def write_evaluation(
    truth: Path,
    files: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    voc_metric: VocMetric = "area",
    wanted: Wanted | None = None,
    keypoint_sigmas: Sequence[float] = (),
    boundary: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluates detections in COCO's results format and writes the page to ``output``.

    Args:
        truth: annotations in COCO's format; images are not read.
        files: method -> one file of detections for each of its seeds.
        output: the folder to write into.
        voc_metric: the definition behind VOC mAP.
        wanted: precision and recall to find the score threshold for.
        keypoint_sigmas: sigma of OKS for each keypoint; empty: COCO's for its keypoint names, else 0.05.
        boundary: also compute boundary AP, if there are masks.
        say: called with each line of progress.

    Raises:
        ValueError: a file that can't be used; it is named, with its entries.
    """
    judged = read_judged(truth, files, keypoint_sigmas=keypoint_sigmas)
    return _write(judged, str(truth), files, output, voc_metric=voc_metric, wanted=wanted, boundary=boundary, say=say)


def write_map_evaluation(
    truth: str,
    files: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    root: Path | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluates label maps and writes the page to ``output``.

    Args:
        truth: a data set with label maps, CARD:SPLIT.
        files: method -> one folder of label images, or one file in COCO's panoptic format, for each of its seeds.
        output: the folder to write into.
        root: data root; None: $RESDET_DATA_ROOT, else datasets/.
        say: called with each line of progress.

    Raises:
        ValueError: a data set or files that can't be used; the file is named.
    """
    return _write(read_judged_maps(truth, files, root=root), truth, files, output, say=say)


def _write(
    judged: Judged,
    truth: str,
    files: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    voc_metric: VocMetric = "area",
    wanted: Wanted | None = None,
    boundary: bool = False,
    say: Callable[[str], None],
) -> Evaluation:
    names, labels = judged.class_names, judged.labels
    results = {
        name: [evaluate(list(records), names, voc_metric, labels=labels, boundary=boundary) for records in seeds]
        for name, seeds in judged.runs.items()
    }
    for name, seeds in results.items():
        if left_out := sum(result.get("left_out", 0) for result in seeds):
            say(f"{name}: {describe_left_out(left_out)}")
    metrics = {name: result_numbers(seeds) for name, seeds in results.items()}
    numbers, _ = compare_records(
        judged.runs,
        dict.fromkeys(judged.runs, names),
        metrics,
        voc_metric=voc_metric,
        boundary=boundary,
        labels=labels,
        wanted=wanted,
    )
    numbers |= {"ground_truth": truth, "voc_metric": voc_metric}
    for name, seeds in results.items():
        numbers["variants"][name] |= {"files": list(map(str, files[name])), "results": as_json(seeds)}
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "evaluation.json", json.dumps(numbers, indent=2) + "\n")
    return Evaluation(write_page(_page(numbers), output, "evaluation"), numbers)


def _page(numbers: dict[str, Any]) -> Page:
    variants = numbers["variants"]
    sections = [
        _results(numbers),
        errors_section(numbers),
        Section("Curves", operating_figures(numbers)),
        classes_section(numbers),
        confusions_section(numbers),
        calibration_section(numbers),
        pictures_section(numbers, []),
    ]
    return Page(
        title=f"Evaluation: {', '.join(variants)}",
        subtitle="COCO's and VOC's numbers of detections, with intervals, errors and comparison."
        if deciding(numbers) == "AP"
        else "Intersection over union and accuracy of label maps, with intervals and comparison.",
        facts=[
            ("Ground truth", numbers["ground_truth"]),
            ("Images", f"{numbers['images']:,}"),
            ("Classes", str(len(numbers["class_names"]))),
            *((name, ", ".join(Path(file).name for file in variant["files"])) for name, variant in variants.items()),
        ],
        sections=[section for section in sections if section.blocks],
        lead=lead(numbers),
    )


def _results(numbers: dict[str, Any]) -> Section:
    known = {name for variant in numbers["variants"].values() for result in variant["results"] for name in result}
    blocks: list[Block] = [
        _numbers_table(numbers, section, what.format(f"on {numbers['images']:,} images"))
        for section, what in _SECTIONS.items()
        if section in known
    ]
    blocks.append(_intervals_table(numbers))
    if numbers["pairs"]:
        blocks += [pair_matrix(numbers), *claims_tables(numbers)]
    return Section("Results", blocks)


def _intervals_table(numbers: dict[str, Any]) -> Table:
    """Returns a table with a row for each number and its interval."""
    variants = numbers["variants"].values()
    several = all(variant["methods"] for variant in variants)
    key = "methods" if several else "intervals"
    names = [metric.name for metric in METRICS if any(metric.name in variant[key] for variant in variants)]
    rows = [[name, *(percent_interval(variant[key][name]) for variant in variants)] for name in names]
    scope = (
        "other test images and other seeds"
        if several
        else "the choice of test images; of these detectors, for what another seed would change is not known"
    )
    caption = f"All numbers in percent with {100 * numbers['confidence']:g} % intervals over {scope}."
    return Table(caption, ["", *numbers["variants"]], rows, fixed=True)


def _numbers_table(numbers: dict[str, Any], section: str, what: str) -> Table:
    """Returns a table of one section of the results: mean and deviation over seeds, the best mean in bold."""
    metrics = [metric for metric in METRICS if metric.key.startswith(f"{section}.") and metric.compute is None]
    rows, means = [], []
    for name, variant in numbers["variants"].items():
        known = [figures(result) for result in variant["results"]]
        values = [over_seeds([result.get(metric.key) for result in known]) for metric in metrics]
        rows.append([name, *map(spread, values), str(len(known))])
        means.append([of_metric["mean"] for of_metric in values])
    caption = f"{what}, percent: mean ± standard deviation over the files of a method; bold: the best."
    header = ["method", *(metric.name for metric in metrics), "files"]
    return Table(caption, header, rows, bold=best_cells(means))
