"""Reads a table of boxes: a CSV with one box per row, in pixels.

Columns are found by their usual names; without a header they are path, x1, y1, x2, y2, class, as in keras-retinanet.  A
row without a box is an image without objects.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.labelled import Box, LabelledImage, LabelledObject, Labels
from detection.data.readers.values import FieldError, number, whole_number

__all__ = ["Row", "TableSplit", "class_of", "collect", "lines_of", "parse_csv", "table_columns"]

# Column -> its names in other tools, in lower case
COLUMNS = {
    "image": ("filename", "file_name", "image", "image_path", "image_id", "imageid", "path", "file", "img", "name"),
    "class": ("class", "label", "class_name", "classname", "category", "label_name", "labelname"),
    "x1": ("xmin", "x1", "x_min", "left", "bbox_x1", "xtl"),
    "y1": ("ymin", "y1", "y_min", "top", "bbox_y1", "ytl"),
    "x2": ("xmax", "x2", "x_max", "right", "bbox_x2", "xbr"),
    "y2": ("ymax", "y2", "y_max", "bottom", "bbox_y2", "ybr"),
    "x": ("x", "bbox_x"),
    "y": ("y", "bbox_y"),
    "w": ("w", "bbox_w", "bbox_width", "box_width"),
    "h": ("h", "bbox_h", "bbox_height", "box_height"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}
CORNERS = ("x1", "y1", "x2", "y2")
WITHOUT_HEADER = ("image", *CORNERS, "class")

Row = Mapping[str, str]


@checked
class TableSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str = "."  # folder of the images, which may be in subfolders


def parse_csv(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``, with the images of its rows.

    Raises:
        ValueError: ``entry`` does not describe such a split.
    """
    split = build_dataclass(TableSplit, entry)
    file, labels = folder / split.annotations, Labels()
    rows = _plain_rows(file, labels)
    collect(rows, "image", _plain_object, file, ImageFiles(folder / split.images), labels, fractions=False)
    return labels


def table_columns(header: Sequence[str]) -> dict[str, int] | None:
    """Returns the positions of the columns in a CSV's ``header``; None if it is not the header of a table of boxes."""
    titles = [title.strip().lower() for title in header]
    found = {kind: titles.index(name) for kind, known in COLUMNS.items() for name in reversed(known) if name in titles}
    if (
        not {"x1", "y1", "x2", "y2"} <= found.keys()
        and "w" not in found
        and {"x", "y", "width", "height"} <= found.keys()
    ):
        found |= {"w": found.pop("width"), "h": found.pop("height")}  # then they are the box's
    boxes = {*CORNERS} <= found.keys() or {"x", "y", "w", "h"} <= found.keys()
    return found if boxes and {"image", "class"} <= found.keys() else None


def lines_of(file: Path, labels: Labels) -> list[list[str]]:
    """Returns the cells of each line of ``file`` that is not blank; an empty list if it can't be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        return [line for line in csv.reader(text.splitlines(), delimiter=delimiter) if line]
    except (OSError, ValueError, csv.Error) as error:
        labels.say("labels that can't be read", file, str(error))
        return []


def _plain_rows(file: Path, labels: Labels) -> list[Row]:
    """Returns the rows as mappings from column to cell."""
    lines = lines_of(file, labels)
    if not lines:
        return []
    columns = table_columns(lines[0])
    if columns is None and len(lines[0]) == len(WITHOUT_HEADER):
        columns, lines = {kind: place for place, kind in enumerate(WITHOUT_HEADER)}, [[], *lines]
    if columns is None:
        wanted = "; ".join(f"{kind}: {', '.join(COLUMNS[kind][:3])}" for kind in WITHOUT_HEADER)
        labels.say("labels that can't be read", file, f"its first line is {lines[0]}, expected names such as {wanted}")
        return []
    return [{kind: line[place].strip() for kind, place in columns.items() if place < len(line)} for line in lines[1:]]


def collect(
    rows: Sequence[Row],
    key: str,
    read: Callable[[Row, str], LabelledObject | None],
    file: Path,
    files: ImageFiles,
    labels: Labels,
    *,
    fractions: bool,
) -> None:
    """Adds the images of ``rows`` to ``labels``, each with the objects that ``read`` makes from its rows.

    Args:
        rows: cells by column name.
        key: column with the image.
        read: makes an object from a row and its name in messages; None for a row without an object.
        file: file of the rows.
        files: the image files.
        labels: receives images and problems.
        fractions: whether boxes are in fractions of the image, not in pixels.
    """
    objects, sizes = dict[str, list[LabelledObject]](), dict[str, tuple[int, int] | None]()
    for place, row in enumerate(rows, start=1):
        image = row.get(key, "")
        own = objects.setdefault(image, [])
        try:
            sizes[image] = _size(row) if not fractions else None
            item = read(row, f"row {place}")
        except FieldError as error:
            labels.say("object that can't be read", file, f"row {place} ({image}): {error}")
            continue
        if item is not None:
            own.append(item)
    for image, found in objects.items():
        path = files.find(image) if image else None
        if path is None:
            labels.drop("missing image", file, f"{image!r} is not below {files.folder}")
        else:
            labels.images.append(LabelledImage(path, file, sizes.get(image), found, fractions=fractions))


def _plain_object(row: Row, where: str) -> LabelledObject | None:
    keys = CORNERS if all(key in row for key in CORNERS) else ("x", "y", "w", "h")
    texts = [row.get(key, "") for key in keys]
    if not any(texts):
        return None
    one, two, three, four = (number(text, key) for text, key in zip(texts, keys, strict=True))
    box: Box = (one, two, three, four) if keys == CORNERS else (one, two, one + three, two + four)
    return LabelledObject(class_of(row.get("class", "")), box, where)


def class_of(name: str) -> str:
    """Returns ``name``, the class of an object.

    Raises:
        FieldError: ``name`` is empty.
    """
    if not name:
        raise FieldError("class", name, "a class")
    return name


def _size(row: Row) -> tuple[int, int] | None:
    if not row.get("width") or not row.get("height"):
        return None
    return whole_number(row["height"], "height"), whole_number(row["width"], "width")
