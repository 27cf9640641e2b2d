"""Reads Label Studio's JSON and JSON-MIN: one file with a list of tasks, shapes in percent of the image.

A JSON-MIN task has its results under the names of the labelling interface.  A JSON task has them in ``annotations``, of
which the first that was not cancelled is used.  Source: Label Studio's documentation of its export formats and of the
units of its results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.objects import IMAGE_SUFFIXES
from detection.data.readers.image_files import ImageFiles, plain_name
from detection.data.readers.labelled import Box, LabelledImage, LabelledObject, Labels, extent
from detection.data.readers.values import MISSING, FieldError, mapping, number, shown

__all__ = ["LabelStudioSplit", "image_of", "parse_label_studio"]

CLASS_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
WITHOUT_BOX = ("keypointlabels", "brushlabels", "choices", "text")
UPLOADED = re.compile(r"[0-9a-f]{8}-")  # prefix that Label Studio adds to file names


@checked
class LabelStudioSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str = "."  # folder of the images, which may be in subfolders


def parse_label_studio(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``.

    Raises:
        ValueError: ``entry`` does not describe such a split.
    """
    split = build_dataclass(LabelStudioSplit, entry)
    file, labels = folder / split.annotations, Labels()
    try:
        tasks = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        labels.say("labels that can't be read", file, str(error))
        return labels
    if not isinstance(tasks, list):
        labels.say("labels that can't be read", file, f"the file is {shown(tasks)}, expected a list of tasks")
        return labels
    files = ImageFiles(folder / split.images)
    for place, task in enumerate(tasks):
        _read_task(task, f"task {place}", file, files, labels)
    return labels


def image_of(task: Any) -> str | None:
    """Returns the image name of ``task``; None if it has none."""
    if not isinstance(task, Mapping):
        return None
    values = task["data"].values() if isinstance(task.get("data"), Mapping) else task.values()
    texts = [value for value in values if isinstance(value, str)]
    return next((text for text in texts if text.lower().partition("?x-")[0].endswith(IMAGE_SUFFIXES)), None)


def _read_task(task: Any, where: str, file: Path, files: ImageFiles, labels: Labels) -> None:
    name = image_of(task)
    if name is None:
        labels.say("task without an image", file, f"{where} is {shown(task)}, expected a text that ends as an image")
        return
    path = files.find(name) or files.find(UPLOADED.sub("", plain_name(name).name, count=1))
    if path is None:
        labels.drop("missing image", file, f"{where} has {name!r}, which is not below {files.folder}")
        return
    objects = list[LabelledObject]()
    for place, result in enumerate(_results(task), start=1):
        called = f"result {place} of {where}"
        try:
            objects += _objects(mapping(result, called), called, file, labels)
        except FieldError as error:
            labels.say("object that can't be read", file, f"{called}: {error}")
    labels.images.append(LabelledImage(path, file, None, objects, fractions=True))


def _results(task: Mapping[str, Any]) -> Iterator[Any]:
    if isinstance(task.get("annotations"), list):
        kept = [a for a in task["annotations"] if isinstance(a, Mapping) and not a.get("was_cancelled")]
        yield from (kept[0].get("result") or []) if kept else ()
        return
    for value in task.values():
        if isinstance(value, list):
            yield from (item for item in value if isinstance(item, Mapping))


def _objects(result: Mapping[str, Any], where: str, file: Path, labels: Labels) -> Iterator[LabelledObject]:
    """Yields an object for each class of ``result``, which usually has one."""
    value = {**result, **value} if isinstance(value := result.get("value"), Mapping) else result
    names = next((value[key] for key in CLASS_KEYS if isinstance(value.get(key), list)), None)
    if names is None or not ("points" in value or "x" in value):
        kind = next((key for key in WITHOUT_BOX if key in value), None)
        if kind:
            labels.drop("shape without a box", file, f"{where} has {kind}")
        return
    box, mask = _outline(value)
    yield from (LabelledObject(str(name), box, where, mask=mask) for name in names)


def _outline(value: Mapping[str, Any]) -> tuple[Box, Any]:
    """Returns box and mask, in fractions of the image."""
    if "points" in value:
        points = value["points"]
        if type(points) is not list or len(points) < 3 or not all(type(p) is list and len(p) == 2 for p in points):
            raise FieldError("points", points, "three or more [x, y] in percent")
        flat = [number(item, "points") / 100 for point in points for item in point]
        return extent(zip(flat[::2], flat[1::2], strict=True)), [flat]
    if "radiusX" in value:
        x, y, rx, ry = (_percent(value, key) for key in ("x", "y", "radiusX", "radiusY"))
        return (x - rx, y - ry, x + rx, y + ry), None
    x, y, width, height = (_percent(value, key) for key in ("x", "y", "width", "height"))
    angle = math.radians(number(value.get("rotation") or 0, "rotation"))
    if not angle:
        return (x, y, x + width, y + height), None
    sides = tuple(number(value.get(key, MISSING), key) for key in ("original_width", "original_height"))
    return _turned((x, y, width, height), angle, sides), None


def _turned(box: Box, angle: float, sides: tuple[float, ...]) -> Box:
    """Returns the bounding box of a rectangle turned clockwise about its first corner, in square pixels."""
    x, y, width, height = box
    across, down = width * sides[0], height * sides[1]
    corners = ((0.0, 0.0), (across, 0.0), (0.0, down), (across, down))
    cosine, sine = math.cos(angle), math.sin(angle)
    return extent(
        (x + (cosine * dx - sine * dy) / sides[0], y + (sine * dx + cosine * dy) / sides[1]) for dx, dy in corners
    )


def _percent(value: Mapping[str, Any], key: str) -> float:
    return number(value.get(key, MISSING), key) / 100
