"""Selects some of a split's images for a card: those of a list, or a random fraction.

Both are keys of a split of any format, in addition to its own: {list: train.txt}, {fraction: [0, 0.8], seed: 0}.
"""

from __future__ import annotations

import hashlib
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from detection.config.load import build_dataclass
from detection.config.schema import Fraction, checked
from detection.data.index import AnnotationIndex
from detection.data.objects import IMAGE_SUFFIXES
from detection.data.problems import Problem

__all__ = ["Selection", "select_images", "split_entry"]


@checked
class Selection:
    """The images of a split that are taken."""

    list: str | None = None  # text file with one image per line, by its path below the data set's folder; null: all
    # The fraction of the images, or a range of fractions: [0, 0.8] and [0.8, 1] share no image.
    fraction: Fraction | Annotated[tuple[Fraction, ...], Field(min_length=2, max_length=2)] = 1.0
    seed: Annotated[int, Field(ge=0)] = field(default=0)  # of the order in which fractions are taken

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of fractions of the images."""
        return (0.0, self.fraction) if isinstance(self.fraction, float | int) else (self.fraction[0], self.fraction[1])


def split_entry(entry: dict[str, Any], *, own_list: bool) -> tuple[dict[str, Any], Selection]:
    """Returns the keys of ``entry`` for the format's reader, and the selection of images.

    Args:
        entry: entry of a split in a card.
        own_list: whether the format has its own key ``list``.

    Raises:
        ValueError: a key has an invalid value.
    """
    names = {"fraction", "seed"} | (set() if own_list else {"list"})
    taken = {key: value for key, value in entry.items() if key in names}
    return {key: value for key, value in entry.items() if key not in names}, build_dataclass(Selection, taken)


def select_images(index: AnnotationIndex, folder: Path, selection: Selection) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the images of ``index`` that ``selection`` takes, and a Problem for each listed name without an image.

    The images of a list keep its order.  The images of a fraction depend on the seed and on their names.

    Args:
        index: the whole split.
        folder: folder of the data set.
        selection: the images to take.
    """
    problems = list[Problem]()
    if selection.list is not None:
        index, problems = _listed(index, folder, folder / selection.list)
    start, end = selection.bounds
    if (start, end) == (0.0, 1.0):
        return index, problems
    drawn = sorted(range(len(index)), key=lambda row: _draw(index.paths[row], folder, selection.seed))
    rows = sorted(drawn[round(start * len(index)) : round(end * len(index))])
    return index.take(torch.tensor(rows, dtype=torch.int64)), problems


def _listed(index: AnnotationIndex, folder: Path, file: Path) -> tuple[AnnotationIndex, list[Problem]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        return index, [Problem("error", "split list can't be read", str(file), str(error))]
    places = dict[str, int]()
    for row in range(len(index)):
        path = Path(index.paths[row])
        relative = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
        for name in (relative, relative.removesuffix(path.suffix), path.name, path.stem):
            places.setdefault(name, row)
    rows, problems = dict[int, None](), list[Problem]()
    for line in filter(None, map(str.strip, lines)):
        name = line.removeprefix("./")
        row = places.get(name, places.get(_stem(name)))
        if row is None:
            detail = f"{line!r}; images are named by their path below {folder}"
            problems.append(Problem("error", "listed image that the data set lacks", str(file), detail))
        elif row in rows:
            problems.append(Problem("error", "duplicate image", str(file), repr(line)))
        else:
            rows[row] = None
    return index.take(torch.tensor([*rows], dtype=torch.int64)), problems


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix.lower()}" in IMAGE_SUFFIXES else name


def _draw(path: str, folder: Path, seed: int) -> bytes:
    """Returns the sort key of the image ``path``, which does not depend on the place of the data set."""
    relative = Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
    return hashlib.sha256(f"{seed}:{relative}".encode()).digest()
