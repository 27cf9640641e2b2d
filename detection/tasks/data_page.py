"""Writes an HTML page about a data set: its problems, worst first, sample pictures and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from detection.data.check import summarize_index
from detection.data.index import AnnotationIndex
from detection.pages.page import Page, Section, Table, Text, write_html
from detection.tasks.anchor_reach import Reach
from detection.tasks.data_pictures import Finding, found_pictures, sample_pictures
from detection.tasks.data_sections import (
    anchors_section,
    classes_section,
    keypoints_section,
    masks_section,
    objects_section,
    splits_section,
)
from detection.tasks.label_sections import LabelledSplit, label_pictures, labels_section

__all__ = ["write_data_page"]

MAX_LISTED = 500  # rows in the table of findings
LEGEND = "An error stops a training, dropped leaves an object or an image out, a note changes nothing."


def write_data_page(
    path: Path,
    name: str,
    splits: Mapping[str, AnnotationIndex],
    labelled: Mapping[str, LabelledSplit],
    findings: Sequence[Finding],
    reached: Sequence[Reach],
    lines: Sequence[str],
) -> Path:
    """Writes the page of a data set to ``path`` and returns ``path``.

    Args:
        path: path of the HTML file.
        name: name of the data set.
        splits: the splits that could be read.
        labelled: the splits with label maps.
        findings: problems, worst first.
        reached: reach of the anchors of a config and of the suggested ones; empty without objects.
        lines: lines of a config with the suggested values.

    Raises:
        OSError: the file can't be written.
    """
    judged = {split: index for split, index in splits.items() if index.label_maps is None or len(index.boxes)}
    summaries = {split: summarize_index(index) for split, index in judged.items()}
    filled = {split: index for split, index in judged.items() if len(index)}
    drawn = {split: labelled[split] for split in _apart({split: own.index for split, own in labelled.items()})}
    sections = [
        _findings(findings, splits),
        *(Section(f"Samples of {split}", sample_pictures(split, filled[split])) for split in _apart(filled)),
        *(Section(f"Label maps of {split}", label_pictures(split, own)) for split, own in drawn.items()),
        labels_section(labelled),
        classes_section(summaries),
        objects_section(filled),
        anchors_section(reached, lines),
        splits_section(filled, summaries),
        masks_section(filled),
        keypoints_section(filled),
    ]
    page = Page(
        title=f"Data set {name}",
        subtitle="What the check found, samples with their labels, and what a training will meet.",
        facts=[(split, _holds(index, labelled.get(split))) for split, index in splits.items()],
        sections=[section for section in sections if section.blocks],
        lead=_lead(findings, reached),
    )
    return write_html(page, path)


def _holds(index: AnnotationIndex, labelled: LabelledSplit | None) -> str:
    counts = [f"{len(index)} images"]
    if index.label_maps is None or len(index.boxes):
        counts.append(f"{len(index.boxes)} objects")
    if labelled is not None and labelled.index.label_maps is not None:
        counts.append(f"{int(labelled.index.label_maps.labelled().sum())} label maps")
    return ", ".join(counts)


def _lead(findings: Sequence[Finding], reached: Sequence[Reach]) -> list[str]:
    errors = sum(finding.problem.severity == "error" for finding in findings)
    plural = "s" * (errors > 1)
    counts = ", ".join(f"{_times(own)} x {kind}" for (_, kind), own in _kinds(findings))
    lines = [
        f"{errors} error{plural} would stop a training." if errors else "Nothing here stops a training.",
        f"Found: {counts}." if counts else "The check found nothing.",
    ]
    return lines + [reach.line for reach in reached[:1]]


def _findings(findings: Sequence[Finding], splits: Mapping[str, AnnotationIndex]) -> Section:
    if not findings:
        return Section("Findings", [Text("The check found nothing.")])
    kinds = [
        [kind, severity, str(_times(own)), ", ".join(dict.fromkeys(split for one in own for split in one.splits))]
        for (severity, kind), own in _kinds(findings)
    ]
    rows = [
        [Path(own.problem.file).name, own.problem.severity, own.problem.kind, ", ".join(own.splits), own.problem.detail]
        for own in findings[:MAX_LISTED]
    ]
    more = f", the first {MAX_LISTED} of {len(findings)}" if len(findings) > MAX_LISTED else ""
    header = ["file", "severity", "finding", "splits", "detail"]
    return Section(
        "Findings",
        [
            Table(LEGEND, ["finding", "severity", "times", "splits"], kinds, words=True),
            *found_pictures(findings, splits),
            Table(f"All findings, worst first{more}.", header, rows, words=True),
        ],
    )


def _kinds(findings: Sequence[Finding]) -> list[tuple[tuple[str, str], list[Finding]]]:
    """Groups findings by severity and kind, keeping their order."""
    kinds = dict[tuple[str, str], list[Finding]]()
    for finding in findings:
        kinds.setdefault((finding.problem.severity, finding.problem.kind), []).append(finding)
    return [*kinds.items()]


def _times(findings: Sequence[Finding]) -> int:
    return sum(finding.problem.count for finding in findings)


def _apart(splits: Mapping[str, AnnotationIndex]) -> list[str]:
    """Returns the names of the splits with an image that no earlier split has."""
    seen, names = set[str](), list[str]()
    for split, index in splits.items():
        paths = {*index.paths}
        if not paths <= seen:
            names.append(split)
        seen |= paths
    return names
