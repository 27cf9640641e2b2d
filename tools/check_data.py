"""Read a data set as training would, and list what is wrong in it, with counts per class and size.

examples:
  python tools/check_data.py bccd
  python tools/check_data.py my_data.yaml --split train --root /data
Exit status: 0 fine, 1 errors that would stop a training.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from detection.data.cards import data_root, load_card, read_split
from detection.data.check import check_copies, check_images, check_objects, summarize_index
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", help="the name of a card in datasets/, or the path of one")
    parser.add_argument("--split", action="append", help="only this split (may be repeated)")
    parser.add_argument("--root", help="data root (default: $RESDET_DATA_ROOT, else datasets/)")
    parser.add_argument("--skip-images", action="store_true", help="do not decode the images")
    return parser.parse_args()


def check_split(index: AnnotationIndex, problems: list[Problem], *, images: bool, console: Console) -> list[Problem]:
    """``problems`` of the reader and all further ones."""
    found = problems + check_objects(index)
    if images:
        found += check_images(
            index, track=lambda rows: track(rows, "images", total=len(index), console=console, transient=True)
        )
    return found


def show_counts(index: AnnotationIndex, console: Console) -> None:
    summary = summarize_index(index)
    table = Table("class", "objects", "ignored", "small", "medium", "large")
    for name, *counts in summary.classes:
        table.add_row(escape(name), *map(str, counts))
    table.add_section()
    table.add_row("all", *(str(sum(column)) for column in list(zip(*summary.classes, strict=True))[1:]))
    console.print(f"{summary.images} images, {summary.empty} without an object to train on")
    console.print(table)


def main() -> int:
    args = parse_args()
    console = Console(soft_wrap=True, highlight=False)
    card = load_card(args.card)
    errors, indexes = 0, dict[str, AnnotationIndex]()
    for split in args.split or card.splits:
        console.rule(f"{card.name}:{split}")
        try:
            index, problems = read_split(card, split, data_root(args.root))
        except ValueError as error:
            console.print(str(error), markup=False)
            errors += 1
            continue
        indexes[split] = index
        problems = check_split(index, problems, images=not args.skip_images, console=console)
        for problem in problems:
            console.print(f"{problem.severity}: {problem}", markup=False)
        if not len(index):
            console.print("error: the split has no usable image")
        show_counts(index, console)
        errors += sum(problem.severity == "error" for problem in problems) + (not len(index))
    for problem in [] if args.skip_images else check_copies(indexes):
        console.print(f"{problem.severity}: {problem}", markup=False)
    console.print(f"{errors} errors" if errors else "no errors")
    return 1 if errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
