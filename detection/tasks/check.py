"""Reads a data set as training would, and lists what is wrong in it, with counts per class and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from detection.data.cards import load_card, read_split
from detection.data.check import check_copies, check_images, check_objects, summarize_index
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.evaluation.text_table import text_table

__all__ = ["check_card"]


def check_card(name: str, root: Path, *, splits: Sequence[str] = (), images: bool = True) -> int:
    """Prints problems and counts of the card ``name`` below the data root ``root``; returns the number of errors.

    Args:
        name: of a card, or its path.
        root: the data root.
        splits: only these; empty: all of the card.
        images: also decode the images, and look for copies of one.

    Raises:
        ValueError: no such card.
    """
    console = Console(soft_wrap=True, highlight=False)
    card = load_card(name)
    errors, indexes = 0, dict[str, AnnotationIndex]()
    for split in splits or card.splits:
        console.rule(f"{card.name}:{split}")
        try:
            index, problems = read_split(card, split, root)
        except ValueError as error:
            console.print(str(error), markup=False)
            errors += 1
        else:
            errors += _check_split(index, problems, images, console)
            indexes[split] = index
    for problem in check_copies(indexes) if images else ():
        console.print(f"{problem.severity}: {problem}", markup=False)
    console.print(f"{errors} error{'s' * (errors > 1)}" if errors else "no errors")
    return errors


def _check_split(index: AnnotationIndex, problems: list[Problem], images: bool, console: Console) -> int:
    """Prints ``problems`` of the reader, further ones and counts of one split; returns its number of errors."""
    problems = problems + _further_problems(index, images, console)
    for problem in problems:
        console.print(f"{problem.severity}: {problem}", markup=False)
    if not len(index):
        console.print("error: the split has no usable image")
    _show_counts(index, console)
    return sum(problem.severity == "error" for problem in problems) + (not len(index))


def _further_problems(index: AnnotationIndex, images: bool, console: Console) -> list[Problem]:
    """Returns what the reader did not find: problems of objects and, on request, of image files."""
    found = check_objects(index)
    if images:
        found += check_images(
            index, track=lambda rows: track(rows, "images", total=len(index), console=console, transient=True)
        )
    return found


def _show_counts(index: AnnotationIndex, console: Console) -> None:
    summary = summarize_index(index)
    rows = [(name, *map(str, counts)) for name, *counts in summary.classes]
    rows.append(("all", *(str(sum(column)) for column in list(zip(*summary.classes, strict=True))[1:])))
    console.print(f"{summary.images} images, {summary.empty} without an object to train on")
    console.print(text_table(("class", "objects", "ignored", "small", "medium", "large"), rows), markup=False)
