"""Reads COCO annotations: one JSON file with images, annotations and categories.

Source: the COCO data format, cocodataset.org.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.images import MAX_PIXELS
from detection.data.index import AnnotationIndex
from detection.data.objects import ImageRows, ObjectRows, build_index, files_in, nearest_class, require_file
from detection.data.problems import Problem

__all__ = ["COCOSplit", "read_coco"]

# What a record raises that lacks a key or has a value of another kind.
UNUSABLE = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)


@checked
class COCOSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str


def read_coco(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Literal["apply", "ignore"],
    fields: Collection[str] = (),
) -> tuple[AnnotationIndex, list[Problem]]:
    """The index of the split ``entry`` of the data set at ``folder``, and all that is wrong with it.

    With "masks" among ``fields``, segmentations are read too: polygons, and RLE of crowds.

    Raises:
        ValueError: ``entry`` is no description of a COCO split.
    """
    split = build_dataclass(COCOSplit, entry)
    file, problems = folder / split.annotations, list[Problem]()
    content = _load(file, problems)
    labels = _labels(content["categories"], classes, file, problems)
    images, rows = _read_images(content["images"], folder / split.images, file, problems)
    objects = _read_objects(content["annotations"], rows, labels, classes, file, problems)
    ids = {label: category for category, label in labels.items() if isinstance(label, int)}
    index, found = build_index(
        images,
        objects if "masks" in fields else replace(objects, fields={}),
        class_names=classes,
        category_ids=tuple(ids.get(label, -1) for label in range(len(classes))),
        files=[str(file)] * len(images.ids),
        drop=drop,
        exif=exif,
    )
    return index, problems + found


def _load(file: Path, problems: list[Problem]) -> dict[str, list[Any]]:
    """The three lists of a COCO file; empty ones where it can't be read."""
    empty: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    try:
        require_file(file)
        with file.open("rb") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        problems.append(Problem("error", "JSON that can't be read", str(file), str(error)))
        return empty
    for key in empty:
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            problems.append(Problem("error", "no COCO annotations", str(file), f"the list {key!r} is missing"))
            return empty
    return {key: content[key] for key in empty}


def _labels(
    categories: list[Any], classes: tuple[str, ...], file: Path, problems: list[Problem]
) -> dict[int, int | str]:
    """Category id -> label, or -> its name where the card lacks it (an error only if an object uses it)."""
    labels: dict[int, int | str] = {}
    for category in categories:
        try:
            number, name = _integer(category["id"]), _text(category["name"])
        except UNUSABLE:
            problems.append(Problem("error", "category without id or name", str(file), _shown(category)))
            continue
        if number in labels:
            problems.append(Problem("error", "duplicate category id", str(file), f"{number} ({name})"))
        labels[number] = classes.index(name) if name in classes else name
    missing = [name for label, name in enumerate(classes) if label not in labels.values()]
    if missing and categories:
        names = [str(label) for label in labels.values() if isinstance(label, str)]
        problems.append(
            Problem("note", "class of the card that the file lacks", str(file), f"{missing}; file only: {names}")
        )
    return labels


def _read_images(
    records: list[Any], folder: Path, file: Path, problems: list[Problem]
) -> tuple[ImageRows, dict[int, int | None]]:
    """The images, and the row of every image id: None for an image that can't be used."""
    images, rows, stored = ImageRows(), dict[int, int | None](), files_in(folder)
    for record in records:
        try:
            number, name = _integer(record["id"]), _text(record["file_name"])
            size = _integer(record["height"]), _integer(record["width"])
        except UNUSABLE as error:
            problems.append(Problem("error", "image record", str(file), f"{error!r} in {_shown(record)}"))
            continue
        where = f"image {number} ({name})"
        if number in rows:
            problems.append(Problem("error", "duplicate image id", str(file), where))
            continue
        rows[number] = None
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            problems.append(Problem("error", "image size", str(file), f"{where}: height {size[0]}, width {size[1]}"))
        elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            problems.append(Problem("error", "image outside the data set's folder", str(file), where))
        elif name not in stored and not _is_file(folder / name):
            problems.append(Problem("error", "missing image", str(folder / name), f"{where} of {file}"))
        else:
            rows[number] = len(images.ids)
            images.paths.append(str(folder / name))
            images.ids.append(number)
            images.sizes.append(size)
    return images, rows


def _read_objects(
    records: list[Any],
    rows: dict[int, int | None],
    labels: dict[int, int | str],
    classes: tuple[str, ...],
    file: Path,
    problems: list[Problem],
) -> ObjectRows:
    objects, seen = ObjectRows(), set[int]()
    for record in records:
        try:
            number, image, category = (_integer(record[key]) for key in ("id", "image_id", "category_id"))
            x, y, width, height = (float(value) for value in record["bbox"])
            ignore = bool(record.get("iscrowd", 0))
            area = _area(record["area"]) if "area" in record else None
        except UNUSABLE as error:
            problems.append(Problem("error", "annotation record", str(file), f"{error!r} in {_shown(record)}"))
            continue
        where, label = f"annotation {number} of image {image}", labels.get(category)
        if number in seen:
            problems.append(Problem("error", "duplicate annotation id", str(file), where))
        elif image not in rows:
            problems.append(Problem("error", "annotation of an image that is not listed", str(file), where))
        elif label is None:
            known = f"category id {category}; the file has {reprlib.repr(sorted(labels))}"
            problems.append(Problem("error", "category id out of range", str(file), f"{where}, {known}"))
        elif isinstance(label, str):
            detail = f"{where}, {nearest_class(label, classes)}"
            problems.append(Problem("error", "class that the card lacks", str(file), detail))
        elif (row := rows[image]) is not None:
            objects.images.append(row)
            objects.boxes.append((x, y, x + width, y + height))
            objects.labels.append(label)
            objects.ignore.append(ignore)
            objects.areas.append(area)
            objects.names.append(where)
            objects.fields["masks"].append(record.get("segmentation"))
        seen.add(number)
    return objects


def _integer(value: Any) -> int:
    """``value`` as a whole number that 64 bits hold: 3, 3.0 or "3"."""
    number = int(value)
    if (isinstance(value, float) and number != value) or not -(2**63) <= number < 2**63:
        raise ValueError(f"{reprlib.repr(value)} is no whole number of 64 bits")
    return number


def _shown(record: Any) -> str:
    """The start of ``record`` for a message."""
    try:
        return repr(record)[:200]
    except RecursionError:
        return "a record nested too deeply to show"


def _text(value: Any) -> str:
    """``value`` as text that can be written: JSON also admits halves of a character."""
    str(value).encode()
    return str(value)


def _area(value: Any) -> float:
    area = float(value)
    if not 0 <= area < math.inf:
        raise ValueError(f"area {area}")
    return area


def _is_file(path: Path) -> bool:
    try:
        require_file(path)
    except (OSError, ValueError):  # nothing there, or a name that no file can have
        return False
    return True
