"""Reads a table of tags: a CSV with one image per row, and its classes as words of one column.

Every tag becomes an object, the whole image, so that code for detection sets also works on these.

Source: the layout of "Planet: Understanding the Amazon from Space" (train_v2.csv: image_name,tags).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.readers.csv_boxes import lines_of
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.labelled import LabelledImage, LabelledObject, Labels

__all__ = ["TagsSplit", "parse_tags"]


@checked
class TagsSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    tags: str  # CSV whose first line is a header: the image, with or without suffix, and its tags with spaces between
    images: str = "."  # the folder that holds them, perhaps in subfolders


def parse_tags(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``, with the images of its rows.

    Raises:
        ValueError: ``entry`` does not describe such a split.
    """
    split = build_dataclass(TagsSplit, entry)
    file, labels = folder / split.tags, Labels()
    lines, files = lines_of(file, labels), ImageFiles(folder / split.images)
    seen = set[Path]()
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != 2:
            labels.say("row that can't be read", file, f"row {number} has {len(line)} columns; image and tags are 2")
            continue
        path = files.find(line[0])
        if path is None:
            labels.say("image that is missing", file, f"row {number}: {line[0]!r} is not below {split.images!r}")
            continue
        if path in seen:
            labels.say("image with two rows", file, f"row {number}: {line[0]!r}; put all its tags into one row")
            continue
        seen.add(path)
        tags = dict.fromkeys(line[1].split())
        objects = [LabelledObject(name, (0.0, 0.0, 1.0, 1.0), f"row {number}") for name in tags]
        labels.images.append(LabelledImage(path, file, None, objects, fractions=True))
    return labels
