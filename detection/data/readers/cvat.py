"""Reads CVAT's XML for images (CVAT for images 1.1): one file for all images, with shapes in pixels.

Source: CVAT's documentation of its XML annotation format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.readers.image_files import ImageFiles
from detection.data.readers.labelled import Box, LabelledImage, LabelledObject, Labels, extent
from detection.data.readers.values import MISSING, FieldError, number, whole_number

__all__ = ["CVATSplit", "parse_cvat", "read_root"]

SHAPES = ("box", "polygon", "ellipse", "mask")
WITHOUT_BOX = ("polyline", "points", "tag", "cuboid", "skeleton")


@checked
class CVATSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str = "."  # folder of the images, which may be in subfolders
    subset: str | None = None  # only the images of this subset of the project; null: all


def parse_cvat(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``; an image without shapes has no objects.

    Raises:
        ValueError: ``entry`` does not describe such a split.
    """
    split = build_dataclass(CVATSplit, entry)
    file, labels = folder / split.annotations, Labels()
    try:
        root = read_root(file)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        labels.say("labels that can't be read", file, str(error))
        return labels
    names = (node.findtext("name") for node in root.iterfind("./meta//labels/label"))
    labels.declared = tuple(dict.fromkeys(name.strip() for name in names if name))
    files = ImageFiles(folder / split.images)
    for node in root.iterfind("image"):
        if split.subset is None or node.get("subset") == split.subset:
            _read_image(node, file, files, labels)
    return labels


def read_root(file: Path) -> ElementTree.Element:
    """Returns the root of the XML ``file``.

    Raises:
        ValueError: the file is not CVAT's, or holds a video's tracks.
        ElementTree.ParseError, OSError, LookupError: the file can't be read.
    """
    root = ElementTree.fromstring(file.read_bytes())
    if root.tag != "annotations":
        raise ValueError(f"its root is <{root.tag:.40}>, expected <annotations>")
    if root.find("track") is not None and root.find("image") is None:
        raise ValueError("it holds the tracks of a video; export as 'CVAT for images 1.1'")
    return root


def _read_image(node: ElementTree.Element, file: Path, files: ImageFiles, labels: Labels) -> None:
    name = node.get("name", "")
    where = f"image {node.get('id', '?')} ({name})"
    path = files.find(f"{node.get('subset') or ''}/{name}") or files.find(name)
    if path is None:
        labels.drop("missing image", file, f"{where} is not below {files.folder}")
        return
    try:
        size = _whole(node, "height"), _whole(node, "width")
    except FieldError as error:
        labels.say("size that can't be read", file, f"{where}: {error}")
        return
    labels.images.append(LabelledImage(path, file, size, [*_objects(node, where, file, labels)]))


def _objects(node: ElementTree.Element, where: str, file: Path, labels: Labels) -> Iterator[LabelledObject]:
    for place, shape in enumerate(node, start=1):
        name = shape.get("label", "")
        called = f"{shape.tag} {place} of {where}"
        if shape.tag not in SHAPES:
            if shape.tag in WITHOUT_BOX:
                labels.drop("shape without a box", file, f"{called} ({name})")
            continue
        try:
            if not name:
                raise FieldError("label", MISSING, "a class")
            box, mask = _outline(shape)
        except FieldError as error:
            labels.say("object that can't be read", file, f"{called}: {error}")
            continue
        yield LabelledObject(name, box, called, mask=mask)


def _outline(shape: ElementTree.Element) -> tuple[Box, Any]:
    """Returns the box and the mask of a shape; a painted mask gives only its box."""
    if shape.tag == "polygon":
        points = [_pair(text) for text in shape.get("points", "").split(";") if text]
        if len(points) < 3:
            raise FieldError("points", shape.get("points", MISSING), "x,y;x,y;... of 3 or more points")
        return extent(points), [[value for point in points for value in point]]
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
        return (x - rx, y - ry, x + rx, y + ry), None
    if shape.tag == "mask":
        left, top, width, height = (_number(shape, key) for key in ("left", "top", "width", "height"))
        return (left, top, left + width, top + height), None
    x1, y1, x2, y2 = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    angle = math.radians(number(shape.get("rotation", "0"), "rotation"))
    return _turned((x1, y1, x2, y2), angle) if angle else (x1, y1, x2, y2), None


def _turned(box: Box, angle: float) -> Box:
    """Returns the bounding box of ``box`` turned about its centre."""
    x, y, half_width, half_height = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, *_halves(box)
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    width, height = cosine * half_width + sine * half_height, sine * half_width + cosine * half_height
    return x - width, y - height, x + width, y + height


def _halves(box: Box) -> tuple[float, float]:
    return (box[2] - box[0]) / 2, (box[3] - box[1]) / 2


def _pair(text: str) -> tuple[float, float]:
    x, comma, y = text.partition(",")
    if not comma:
        raise FieldError("points", text, "x,y")
    return number(x, "points"), number(y, "points")


def _number(node: ElementTree.Element, key: str) -> float:
    return number(node.get(key, MISSING), key)


def _whole(node: ElementTree.Element, key: str) -> int:
    return whole_number(node.get(key, MISSING), key)
