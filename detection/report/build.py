"""Writes the report of an experiment from its folder to OUTPUT/report/.

report.html    one self-contained page
report.md      the same as Markdown, with figures/
report.json    every number of both
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.pages.page import Page, Pictures, write_page
from detection.report.heads import heads_lead
from detection.report.numbers import Evidence, Shown, experiment_numbers, gather
from detection.report.pictures import picture
from detection.report.reading import read_experiment
from detection.report.robustness import robustness_numbers
from detection.report.sections import experiment_sections, protocol_name
from detection.report.verdict import lead

__all__ = ["only_found_by", "report_page", "write_report"]

MAX_PICTURES = 12  # pairs of pictures per page, which keeps it below a few megabytes


def write_report(output: Path, *, say: Callable[[str], None] = print) -> Path:
    """Writes the report of the experiment in the folder ``output`` and returns the path of its HTML page.

    Variants are shown with their finished seeds; runs without a result are listed.

    Args:
        output: the folder that resdet compare wrote.
        say: called with each line of progress.

    Raises:
        ValueError: no experiment there, broken files, or data other than those that were tested.
    """
    experiment = read_experiment(output)
    evidence = gather(experiment, say=say)
    numbers = experiment_numbers(experiment, evidence)
    numbers["robustness"] = {
        name: robustness_numbers([run.folder for run in experiment.done(name)]) for name in numbers["variants"]
    }
    folder = output / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    page = report_page(numbers, [] if evidence is None else _pictures(evidence))
    return write_page(page, folder, "report")


def report_page(numbers: dict[str, Any], pictures: Sequence[Pictures]) -> Page:
    """Returns the page that shows ``numbers``, the content of report.json."""
    heads = "heads" in numbers
    return Page(
        title=f"Backbones compared: {numbers['name']}",
        subtitle="One data set; every backbone under every head, each with one recipe for all backbones."
        if heads
        else "One detector, one recipe, one data set; the backbone changes, and what belongs to it.",
        facts=_facts(numbers),
        sections=experiment_sections(numbers, pictures),
        lead=heads_lead(numbers) if heads else lead(numbers),
    )


def _facts(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    base, planned = numbers["base"], [*numbers["fairness"]["hashes"]["initial_weights"]]
    planned += [name for name in numbers["variants"] if name not in planned]
    return [
        ("Variants", ", ".join(planned)),
        ("Seeds", ", ".join(map(str, numbers["seeds"]))),
        ("Trained on", ", ".join(base["data.train"])),
        ("Tested on", f"{', '.join(base['data.test'])} ({numbers.get('images', 'no')} images)"),
        ("Protocol", protocol_name(numbers["protocol"])),
    ]


def _pictures(evidence: Evidence) -> list[Pictures]:
    """Returns, for each pair in both directions, the images with most objects that one finds and the other misses."""
    pairs = [pair for pair in evidence.comparison.pairs if {pair.a, pair.b} <= {*evidence.shown}]
    ways = [way for pair in pairs for way in ((pair.a, pair.b), (pair.b, pair.a))]
    each = max(1, MAX_PICTURES // max(len(ways), 1))
    return [
        figure for a, b in ways[:MAX_PICTURES] for figure in only_found_by(evidence.index, evidence.shown, a, b, each)
    ]


def only_found_by(index: AnnotationIndex, shown: Mapping[str, Shown], a: str, b: str, number: int) -> list[Pictures]:
    """Returns the ``number`` images with most objects that ``a`` finds and ``b`` misses, drawn with both."""
    only = [x & ~y for x, y in zip(shown[a].found, shown[b].found, strict=True)]
    rows = np.argsort([-int(found.sum()) for found in only], kind="stable")[:number].tolist()
    return [_both(index, row, {name: shown[name] for name in (a, b)}, only[row]) for row in rows if only[row].any()]


def _both(index: AnnotationIndex, row: int, shown: Mapping[str, Shown], only: NDArray[np.bool_]) -> Pictures:
    """Draws image ``row`` with the detections of two runs, and frames around the objects ``only`` (G,) of the first."""
    a, b = shown
    jpegs = [
        picture(index, row, run.records[row], min_score=run.equal_score, marked=run.records[row].gt_boxes[only])
        for run in shown.values()
    ]
    name = Path(index.paths[row]).name
    objects = "1 object" if only.sum() == 1 else f"{only.sum()} objects"
    caption = (
        f"{a} (first) finds {objects} that {b} (second) misses, framed in magenta; thin white: all objects. {name}"
    )
    return Pictures(f"{a}_not_{b}_{row}", jpegs, caption, [f"{name} with the detections of {run}" for run in shown])
