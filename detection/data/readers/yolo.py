"""Reads YOLO labels: a text file per image and a line per object, in fractions of the image.

A line is ``class cx cy width height``, or ``class x y x y x y ...`` for a polygon.  The label file has the image's path
with the last folder ``images`` replaced by ``labels``, or is next to the image.  Class names are in a data.yaml, or in
a text file with one name per line.  Source: the documentation of Ultralytics, "Object Detection Datasets".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass, parse_yaml
from detection.config.schema import checked
from detection.data.readers.image_files import images_below
from detection.data.readers.labelled import LabelledImage, LabelledObject, Labels, extent
from detection.data.readers.values import FieldError, number, whole_number

__all__ = ["NAME_FILES", "YOLOSplit", "label_file", "parse_yolo", "read_names"]

NAME_FILES = ("data.yaml", "data.yml", "classes.txt", "obj.names", "_darknet.labels", "labels.txt")


@checked
class YOLOSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    images: str | tuple[str, ...]  # folders of images, or text files with one path per line
    names: str | None = (
        None  # data.yaml or a text file with one name per line; null: a file of a usual name, if there is one
    )


def parse_yolo(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``; an image without a label file has no objects.

    Raises:
        ValueError: ``entry`` does not describe a YOLO split, or a file of names can't be read.
    """
    split = build_dataclass(YOLOSplit, entry)
    declared = _declared(folder, split.names)
    labels = Labels(declared=declared)
    names = declared or classes
    for source in (split.images,) if isinstance(split.images, str) else split.images:
        for path in _images(folder, folder / source, labels):
            file = label_file(path)
            objects = [*_objects(file, names, labels)] if file.is_file() else []
            labels.images.append(LabelledImage(path, file, None, objects, fractions=True))
    return labels


def read_names(file: Path) -> tuple[str, ...]:
    """Returns the class names in ``file``, a data.yaml or a text file with one name per line.

    Raises:
        ValueError: the file can't be read, or a data.yaml has no list or mapping ``names``.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if file.suffix not in (".yaml", ".yml"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    tree = parse_yaml(text)
    names = tree.get("names") if isinstance(tree, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"{file}: names is {names!r:.80}, expected a list of class names, or a mapping of 0, 1, ...")
    return tuple(str(name) for name in names)


def label_file(image: Path) -> Path:
    """Returns the label file of ``image``: below ``labels`` in place of the last ``images``, or next to the image."""
    parts = image.parts
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        moved = Path(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]).with_suffix(".txt")
        if moved.is_file() or not image.with_suffix(".txt").is_file():
            return moved
    return image.with_suffix(".txt")


def _declared(folder: Path, names: str | None) -> tuple[str, ...]:
    given = [folder / names] if names else [folder / name for name in NAME_FILES if (folder / name).is_file()]
    return read_names(given[0]) if given else ()


def _images(folder: Path, source: Path, labels: Labels) -> Iterator[Path]:
    """Yields the images of a folder, or of a text file with paths relative to its folder or to the data set's."""
    if source.is_dir():
        yield from images_below(source)
        return
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        labels.say("images that can't be found", source, f"expected a folder, or a list of images: {error}")
        return
    for line in filter(None, map(str.strip, lines)):
        found = [path for path in (source.parent / line, folder / line) if path.is_file()]
        if found:
            yield found[0]
        else:
            labels.drop("missing image", source, f"{line!r}; give paths from {source.parent} or {folder}")


def _objects(file: Path, names: Sequence[str], labels: Labels) -> Iterator[LabelledObject]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        labels.say("labels that can't be read", file, str(error))
        return
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _object(line.split(), f"line {place}", names)
        except FieldError as error:
            labels.say("object that can't be read", file, f"line {place}: {error}")


def _object(words: list[str], where: str, names: Sequence[str]) -> LabelledObject:
    label = whole_number(words[0], "class")
    if label < 0 or (names and label >= len(names)):
        raise FieldError("class", words[0], f"0 to {len(names) - 1}, the {len(names)} class names")
    values = [number(word, "coordinate") for word in words[1:]]
    name = names[label] if names else str(label)
    if len(values) == 4:
        x, y, width, height = values
        return LabelledObject(name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), where)
    if len(values) < 6 or len(values) % 2:
        expected = "4 of a box, or the pairs of a polygon's 3 or more points"
        raise FieldError("coordinates", f"{len(values)} numbers", expected)
    return LabelledObject(name, extent(zip(values[::2], values[1::2], strict=True)), where, mask=[values])
