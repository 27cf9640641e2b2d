"""Reads OpenImages' CSV with a row per box, in fractions of the image, and a second CSV with class names.

Source: OpenImages' description of its box annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.readers.csv_boxes import Row, class_of, collect, lines_of
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.labelled import LabelledObject, Labels
from detection.data.readers.values import flag, number

__all__ = ["OpenImagesSplit", "open_images_header", "parse_open_images"]

OPEN_IMAGES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


@checked
class OpenImagesSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str = "."
    names: str | None = None  # CSV of LabelName and class; null: classes are called as in LabelName


def parse_open_images(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``; groups (IsGroupOf) are ignored objects.

    Raises:
        ValueError: ``entry`` does not describe such a split.
    """
    split = build_dataclass(OpenImagesSplit, entry)
    file, labels = folder / split.annotations, Labels()
    lines, names = lines_of(file, labels), dict[str, str]()
    if split.names is not None:
        names = {line[0]: line[1] for line in lines_of(folder / split.names, labels) if len(line) == 2}
    header = [title.strip() for title in lines[0]] if lines else []
    if missing := [title for title in OPEN_IMAGES if title not in header]:
        labels.say("labels that can't be read", file, f"its first line lacks {', '.join(missing)}")
        return labels
    rows = [dict(zip(header, line, strict=False)) for line in lines[1:]]
    for row in rows:
        row["LabelName"] = names.get(row.get("LabelName", ""), row.get("LabelName", ""))
    collect(rows, "ImageID", _open_images_object, file, ImageFiles(folder / split.images), labels, fractions=True)
    return labels


def open_images_header(header: Sequence[str]) -> bool:
    """Returns whether ``header`` is the first line of OpenImages' boxes."""
    return {*OPEN_IMAGES} <= {title.strip() for title in header}


def _open_images_object(row: Row, where: str) -> LabelledObject | None:
    x1, x2, y1, y2 = (number(row.get(key, ""), key) for key in ("XMin", "XMax", "YMin", "YMax"))
    group = flag(text, "IsGroupOf") if (text := row.get("IsGroupOf", "0")) != "-1" else False
    return LabelledObject(class_of(row.get("LabelName", "")), (x1, y1, x2, y2), where, ignore=group)
