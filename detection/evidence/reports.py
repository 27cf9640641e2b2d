"""Checks that an experiment's report follows from the records of its runs.

For detectors, the figures in report.json must equal those of every result.json, and report.md and report.html must
match report.json.  ``recompute`` also recomputes each result.json from its detections, and report.json with intervals
and claims from all of them; it needs labels.json, or the test set on this machine.  A report of classifiers is
recomputed from the scores of each run on each image.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from detection.classification.compare import PER_IMAGE
from detection.data.index import AnnotationIndex, index_digest
from detection.engine.evaluate import evaluate
from detection.engine.label_counts import label_classes
from detection.engine.manifest import read_manifest
from detection.evaluation.metrics import figures
from detection.evidence.blocks import Block, compare_lines
from detection.evidence.findings import Finding, changed
from detection.evidence.labels import LABELS, read_labels
from detection.pages.page import markdown, write_html
from detection.pages.plots import undrawn
from detection.report.build import report_page
from detection.report.classifiers import write_classifier_report
from detection.report.numbers import experiment_numbers, gather, metric_numbers, over_seeds, read_found, voc_metric
from detection.report.reading import RunFolder, read_experiment

__all__ = ["check_report", "experiment_folders", "recompute"]

SAME = 1e-9  # recomputed figures differ only by rounding
COMPARISON = "comparison.json"  # of classifiers
CELLS = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL)


def experiment_folders(root: Path) -> list[Path]:
    """Returns the experiments of the checkout ``root`` whose runs are kept."""
    return sorted(path.parent for path in (root / "docs" / "experiments").glob("*/experiment.json"))


def check_report(folder: Path, root: Path) -> list[Finding]:
    """Returns where the report of the experiment in ``folder``, in the checkout ``root``, differs from the results.

    Raises:
        ValueError: a file that can't be read.
    """
    if (folder / "report" / COMPARISON).is_file():
        return _classifiers(_Place(folder, root))
    path = folder / "report" / "report.json"
    if not path.is_file():
        return []
    experiment, numbers = read_experiment(folder), json.loads(path.read_text(encoding="utf-8"))
    place, found = _Place(folder, root), list[Finding]()
    for name, variant in numbers["variants"].items():
        if runs := experiment.done(name):
            hours = over_seeds([run.hours for run in runs])
            known = {"metrics": metric_numbers([run.folder for run in runs]), "hours": hours}
            found += [place.finding(path, f"variants.{name}.{line}") for line in _differences(variant, known)]
    return found + _pages(place, numbers)


def recompute(folder: Path, root: Path) -> list[Finding]:
    """Returns where the records of the experiment in ``folder`` do not follow from its detections and labels.

    Raises:
        ValueError: there is no labels.json and the test set is not on this machine, or a file that can't be read.
    """
    if (folder / "report" / COMPARISON).is_file():
        return []
    experiment, place, kept = read_experiment(folder), _Place(folder, root), folder / LABELS
    index = read_labels(kept) if kept.is_file() else None
    found = [f for name in experiment.variants for run in experiment.done(name) for f in _result(run, index, place)]
    path = folder / "report" / "report.json"
    if path.is_file():
        known = experiment_numbers(experiment, gather(experiment, say=lambda _: None, index=index))
        printed = json.loads(path.read_text(encoding="utf-8"))
        found += [place.finding(path, line) for line in _differences(printed, json.loads(json.dumps(known)))]
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """An experiment's folder in the checkout ``root``."""

    folder: Path
    root: Path

    def finding(self, path: Path, text: str, line: int = 0) -> Finding:
        name = self.folder.name
        repair = f"resdet compare experiments/{name} --output-dir docs/experiments/{name} --report-only writes it again"
        return Finding(str(path.relative_to(self.root)), line, text, repair)


def _classifiers(place: _Place) -> list[Finding]:
    """Compares the report of classifiers with a recomputed one, and its figures with every result.json."""
    folder = place.folder / "report"
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "experiment"
        copy.mkdir()
        for path in place.folder.iterdir():
            if path.name != "report":
                (copy / path.name).symlink_to(path.resolve())
        write_classifier_report(copy, say=lambda _: None)
        known = json.loads((copy / "report" / COMPARISON).read_text(encoding="utf-8"))
        lines = (copy / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    known.pop("runs")  # places of folders
    printed = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
    found = [place.finding(folder / COMPARISON, line) for line in _differences(printed, known)]
    block = Block("report", 1, tuple((folder / "report.md").read_text(encoding="utf-8").splitlines()))
    found += [place.finding(folder / "report.md", text, line) for line, text in compare_lines(block, lines)]
    experiment = read_experiment(place.folder, [PER_IMAGE])
    for name, variant in known["variants"].items():
        results = [_read_figures(run.folder / "result.json") for run in experiment.done(name)]
        for key, stated in variant["detectors"].items():
            mean = statistics.fmean(result[key] for result in results)
            text = _differences({key: mean}, {key: stated["value"]})
            found += [place.finding(place.folder / "runs" / name, f"the mean over result.json of {t}") for t in text]
    return found


def _read_figures(path: Path) -> dict[str, Any]:
    return figures(json.loads(path.read_text(encoding="utf-8")))


def _result(run: RunFolder, kept: AnnotationIndex | None, place: _Place) -> list[Finding]:
    """Compares result.json with detections.json, and the labels with those of the test."""
    index, records = read_found(run.folder, kept, lambda _: None)
    printed = _read_figures(run.folder / "result.json")
    known = figures(evaluate(records, index.class_names, voc_metric(run.folder), labels=label_classes(index)))
    tested = [entry["data"]["test"]["sha256"] for entry in read_manifest(run.folder) if "test" in entry["data"]]
    if tested and index_digest(index) != tested[-1]:
        text = f"data.test.sha256 is {tested[-1]}, the labels here have {index_digest(index)}"
        return [Finding(str((run.folder / "manifest.json").relative_to(place.root)), 0, text, "put the labels back")]
    known = {name: value for name, value in known.items() if name in printed}
    return [place.finding(run.folder / "result.json", line) for line in _differences(printed, known)]


def _pages(place: _Place, numbers: dict[str, Any]) -> list[Finding]:
    """Compares report.md and, if it exists, report.html with ``numbers``; ignores pictures of images."""
    with undrawn():
        page, folder = report_page(numbers, []), place.folder / "report"
    printed = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    missing = [line for line in markdown(page).splitlines() if line not in set(printed)]
    found = list[Finding]()
    for line in missing:
        near = difflib.get_close_matches(line, printed, n=1, cutoff=0)
        found.append(place.finding(folder / "report.md", changed(near[0], line), printed.index(near[0]) + 1))
    path = folder / "report.html"
    if not path.is_file():  # no record: it is not kept in git
        return found
    with tempfile.TemporaryDirectory() as temporary:
        html = write_html(page, Path(temporary) / path.name).read_text(encoding="utf-8")
    pairs = zip_longest(CELLS.findall(path.read_text(encoding="utf-8")), CELLS.findall(html))
    return found + [place.finding(path, f"a cell {changed(a, b)}") for a, b in pairs if a != b]


def _differences(printed: Any, known: Any, key: str = "") -> Iterator[str]:
    """Yields the values of ``known`` that differ in ``printed``; ignores keys that only ``printed`` has."""
    if isinstance(known, Mapping) and isinstance(printed, Mapping):
        for name, value in known.items():
            yield from _differences(printed.get(name), value, f"{key}.{name}" if key else str(name))
    elif isinstance(known, list) and isinstance(printed, list) and len(known) == len(printed):
        for number, (a, b) in enumerate(zip(printed, known, strict=True)):
            yield from _differences(a, b, f"{key}[{number}]")
    elif isinstance(known, (int, float)) and isinstance(printed, (int, float)):
        if not math.isclose(printed, known, rel_tol=SAME, abs_tol=SAME):
            yield f"{key} is {printed}, the records give {known}"
    elif known != printed:
        yield f"{key} is {printed!r}, the records give {known!r}"
