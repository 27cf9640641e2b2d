"""Reads a data set as training does, and lists its errors, with counts per class and size.

It also prints the image size and anchors that fit the objects as lines of a config, counts the pixels of label maps,
and shows all of it on one page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import Card, load_card, read_split
from detection.data.check import check_copies, check_images, check_objects, summarize_index
from detection.data.index import AnnotationIndex
from detection.data.label_check import LabelCounts, check_label_maps
from detection.data.problems import Problem
from detection.data.readers.table import FORMATS
from detection.evaluation.text_table import text_table
from detection.fields.table import FIELDS
from detection.progress import SCREEN, tracked
from detection.tasks.anchor_reach import Reach, reach_of_config, reach_of_suggested, suggest
from detection.tasks.data_page import write_data_page
from detection.tasks.data_pictures import Finding
from detection.tasks.label_sections import LabelledSplit
from detection.tasks.recipe import Choice, config_text

__all__ = ["check_card"]

TRAINED_ON = ("train", "trainval")  # splits whose objects the anchors must fit; otherwise the first split


@dataclass(slots=True)
class _Found:
    """The content of the splits, and the problems found."""

    indexes: dict[str, AnnotationIndex] = field(default_factory=dict)
    labelled: dict[str, LabelledSplit] = field(default_factory=dict)  # those with label maps
    findings: dict[Problem, list[str]] = field(default_factory=dict)  # each problem with the splits that have it
    errors: int = 0

    def add(self, problems: Sequence[Problem], split: str | None) -> None:
        """Prints ``problems`` of a ``split``, or between splits (None), and keeps them."""
        for problem in problems:
            SCREEN.print(f"{problem.severity}: {problem}")
            self.findings.setdefault(problem, []).extend([] if split is None else [split])
            self.errors += problem.severity == "error"

    def worst_first(self) -> list[Finding]:
        """Returns every problem once."""
        return sorted((Finding(one, (*splits,)) for one, splits in self.findings.items()), key=lambda own: own.rank)


def check_card(
    name: str,
    root: Path,
    *,
    splits: Sequence[str] = (),
    images: bool = True,
    page: Path | None = None,
    config: Path | None = None,
) -> int:
    """Prints problems and counts of the card ``name`` below the data root ``root``; returns the number of errors.

    Args:
        name: name of a card, or its path.
        root: the data root.
        splits: names of the splits to check; empty: all splits of the card.
        images: also decode the images and look for duplicates.
        page: HTML file to which findings and pictures are also written.
        config: config of a detector whose anchors are compared with the objects.

    Raises:
        ValueError: no such card, or a bad config.
        OSError: the page can't be written.
    """
    card = load_card(name)
    detector = None if config is None else load_config(DetectionConfig, config)
    if detector is not None and not detector.finds_objects:
        detector = None  # without anchors
    found = _Found()
    for split in splits or card.splits:
        SCREEN.rule(f"{card.name}:{split}")
        _check_split(card, split, root, found, images=images, page=page is not None)
    found.add(check_copies(found.indexes) if images else (), None)
    trained_on = next((split for split in (*TRAINED_ON, *found.indexes) if split in found.indexes), None)
    whole = card.format == "image_folder"  # each image is one object, which no anchor has to fit
    suggested = [] if trained_on is None or whole else suggest(found.indexes[trained_on], detector)
    lines = config_text(suggested, [f"What fits the objects of {card.name}:{trained_on}"]).splitlines()
    reached = list[Reach]()
    if trained_on is not None and suggested:
        reached = _reached(found.indexes[trained_on], suggested, detector, config)
        for line in [*(reach.line for reach in reached), *lines]:
            SCREEN.print(line)
    SCREEN.print(f"{found.errors} error{'s' * (found.errors > 1)}" if found.errors else "no errors")
    if page is not None:
        write_data_page(page, card.name, found.indexes, found.labelled, found.worst_first(), reached, lines)
        SCREEN.print(f"page: {page}")
    return found.errors


def _check_split(card: Card, split: str, root: Path, found: _Found, *, images: bool, page: bool) -> None:
    """Reads one split, adds its problems to ``found``, and prints its counts."""
    fields = tuple(FIELDS) if page and "fields" in FORMATS[card.format].options else ()
    try:
        index, problems = read_split(card, split, root, fields=fields, label_maps=card.label_maps is None)
        maps = index if card.label_maps is None else read_split(card, split, root, label_maps=True)[0]
    except ValueError as error:
        SCREEN.print(str(error))
        found.findings[Problem("error", "split that can't be read", card.name, str(error))] = [split]
        found.errors += 1
        return
    found.indexes[split] = index
    found.add(problems + _further_problems(index, images), split)
    if not len(index):
        found.add([Problem("error", "empty split", card.name, "the split has no usable image")], split)
    if len(index.boxes) or index.label_maps is None or not index.has_ground_truth:
        _show_counts(index)
    if maps.label_maps is not None and maps.has_ground_truth:
        found.labelled[split] = LabelledSplit(maps, _check_labels(maps, split, found) if images else None)


def _check_labels(index: AnnotationIndex, split: str, found: _Found) -> LabelCounts:
    """Reads all label maps of a split, adds their problems, and prints the shares of their classes."""
    counts, problems = check_label_maps(index, track=partial(_tracked, total=len(index)))
    found.add(problems, split)
    SCREEN.print(f"{len(index)} images, {counts.labelled} with a label map that can be read")
    SCREEN.print(text_table(("class", "% of pixels", "images"), counts.rows))
    return counts


def _further_problems(index: AnnotationIndex, images: bool) -> list[Problem]:
    """Returns the problems that the reader does not find: in objects and, on request, in image files."""
    found = check_objects(index)
    if images:
        found += check_images(index, track=partial(_tracked, total=len(index)))
    return found


def _tracked(rows: Iterable[Any], total: int) -> Iterator[Any]:
    with tracked(rows, "checking", total=total, count=lambda _: 1) as shown:
        yield from shown


def _show_counts(index: AnnotationIndex) -> None:
    summary = summarize_index(index)
    rows = [(name, *map(str, counts)) for name, *counts in summary.classes]
    rows.append(("all", *(str(sum(column)) for column in list(zip(*summary.classes, strict=True))[1:])))
    SCREEN.print(f"{summary.images} images, {summary.empty} without an object to train on")
    SCREEN.print(text_table(("class", "objects", "ignored", "small", "medium", "large"), rows))


def _reached(
    index: AnnotationIndex, suggested: Sequence[Choice], detector: DetectionConfig | None, config: Path | None
) -> list[Reach]:
    """Returns the reach of the suggested anchors and, if there is a config, of its anchors."""
    name = "" if config is None else f"{config.parent.name}/{config.name}"
    own = None if detector is None else reach_of_config(index, detector, name)
    fitting = reach_of_suggested(index, suggested, detector)
    known = own is not None and own.size == fitting.size and np.array_equal(own.anchors, fitting.anchors)
    return [reach for reach in (own, None if known else fitting) if reach is not None]
