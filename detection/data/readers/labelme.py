"""Reads LabelMe's JSON: a file per image, with shapes in pixels.

Rectangles, polygons, circles and masks are objects; points and lines have no box and are left out.
Source: labelme's label_file.py and its documentation of shape types.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.readers.frames import require_folder
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.labelled import Box, LabelledImage, LabelledObject, Labels, extent
from detection.data.readers.values import MISSING, FieldError, mapping, number, shown, text, whole_number
from detection.masks import encode

__all__ = ["LabelMeSplit", "parse_labelme"]

WITHOUT_BOX = ("point", "points", "line", "linestrip")


@checked
class LabelMeSplit:
    """A split as a card describes it."""

    folder: str = "."  # below the data set's; its JSON files, and those in subfolders


def parse_labelme(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``: every image that has a file of LabelMe.

    Raises:
        ValueError: ``entry`` does not describe such a split, or its folder is missing.
    """
    root, labels = folder / build_dataclass(LabelMeSplit, entry).folder, Labels()
    require_folder(root)
    files = ImageFiles(root)
    for file in sorted(root.rglob("*.json")):
        if not any(part.startswith(".") for part in file.relative_to(root).parts):
            _read(file, files, labels)
    return labels


def _read(file: Path, files: ImageFiles, labels: Labels) -> None:
    try:
        content = mapping(json.loads(file.read_bytes()), "the file")
        shapes = content.get("shapes", MISSING)
        if type(shapes) is not list:
            raise FieldError("shapes", shapes, "a list of shapes")
        path = _image(file, str(content.get("imagePath") or ""), files)
        size = _size(content)
    except (OSError, ValueError, RecursionError) as error:
        labels.say("labels that can't be read", file, str(error))
        return
    if path is None:
        labels.drop(
            "missing image", file, f"imagePath is {shown(content.get('imagePath'))}, and no such image is there"
        )
        return
    labels.images.append(LabelledImage(path, file, size, [*_objects(shapes, size, file, labels)]))


def _image(file: Path, name: str, files: ImageFiles) -> Path | None:
    """Finds the image of a label file: at its path, else with the label file's name, else the only one of its name."""
    beside = file.parent / Path(name.replace("\\", "/")).name
    if name and beside.is_file():
        return beside
    return files.find(str(file.relative_to(files.folder).with_suffix(""))) or (files.find(name) if name else None)


def _size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    if content.get("imageHeight") is None or content.get("imageWidth") is None:
        return None
    return whole_number(content["imageHeight"], "imageHeight"), whole_number(content["imageWidth"], "imageWidth")


def _objects(shapes: list[Any], size: tuple[int, int] | None, file: Path, labels: Labels) -> Iterator[LabelledObject]:
    for place, shape in enumerate(shapes):
        where = f"shapes[{place}]"
        try:
            record = mapping(shape, where)
            name = text(record.get("label", MISSING), "label")
            kind = str(record.get("shape_type") or "polygon")
            if kind in WITHOUT_BOX:
                labels.drop("shape without a box", file, f"{where} ({name}) is a {kind}")
                continue
            box, mask = _outline(record, kind, size)
        except FieldError as error:
            labels.say("object that can't be read", file, f"{where}: {error}")
            continue
        yield LabelledObject(name, box, where, mask=mask)


def _outline(record: Mapping[str, Any], kind: str, size: tuple[int, int] | None) -> tuple[Box, Any]:
    """Returns the box and the mask of a shape.

    Raises:
        FieldError: the kind is unknown, or the points do not fit it.
    """
    points = _points(record.get("points", MISSING))
    least = {"rectangle": 2, "circle": 2, "polygon": 3, "mask": 2}.get(kind)
    if least is None:
        raise FieldError("shape_type", kind, f"rectangle, polygon, circle, mask or one of {', '.join(WITHOUT_BOX)}")
    if len(points) < least:
        raise FieldError("points", f"{len(points)} points", f"{least} or more of a {kind}")
    if kind == "polygon":
        return extent(points), [[value for point in points for value in point]]
    if kind == "circle":
        (x, y), rim = points[:2]
        radius = math.dist((x, y), rim)
        return (x - radius, y - radius, x + radius, y + radius), None
    if kind == "mask":
        x1, y1, x2, y2 = extent(points)
        # The corners are the first and the last pixel.
        return (x1, y1, x2 + 1, y2 + 1), None if size is None else _mask(record.get("mask"), (int(x1), int(y1)), size)
    return extent(points), None


def _points(value: Any) -> list[tuple[float, float]]:
    if type(value) is not list or not all(type(point) is list and len(point) == 2 for point in value):
        raise FieldError("points", value, "a list of [x, y]")
    return [(number(point[0], "points"), number(point[1], "points")) for point in value]


def _mask(encoded: Any, corner: tuple[int, int], size: tuple[int, int]) -> Any:
    """Returns the run-length code of a mask stored as a PNG in the file; None if it can't be read."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("PNG",)) as picture:
            pixels = np.asarray(picture).astype(bool)
    except (TypeError, ValueError, OSError):
        return None
    (x, y), whole = corner, np.zeros(size, dtype=np.uint8)
    height, width = (min(pixels.shape[i], size[i] - (y, x)[i]) for i in (0, 1))
    if x < 0 or y < 0 or height < 1 or width < 1:
        return None
    whole[y : y + height, x : x + width] = pixels[:height, :width]
    return encode(whole)
