"""Reads PASCAL VOC annotations: a list of image names, one XML file per image.

VOC's pixels count from 1 and its boxes include their last pixel; ours are (xmin - 1, ymin - 1, xmax, ymax), so that
width = x2 - x1 is the number of pixels.
Source: the PASCAL VOC development kit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from detection.config_io import build_dataclass
from detection.data.images import image_size
from detection.data.index import AnnotationIndex
from detection.data.objects import IMAGE_SUFFIXES, ImageRows, ObjectRows, build_index, files_in, nearest_class
from detection.data.problems import Problem

__all__ = ["VOCSplit", "read_voc"]


@dataclass(frozen=True, kw_only=True)
class VOCSplit:
    """A split as a card describes it; folders are below the data set's."""

    list: str
    images: str = "JPEGImages"
    annotations: str = "Annotations"


def read_voc(
    folder: Path, entry: dict[str, Any], classes: tuple[str, ...], *, drop: bool, exif: Literal["apply", "ignore"]
) -> tuple[AnnotationIndex, list[Problem]]:
    """The index of the split ``entry`` of the data set at ``folder``, and all that is wrong with it.

    Raises:
        ValueError: ``entry`` is no description of a VOC split.
    """
    split = build_dataclass(VOCSplit, entry)
    images, objects, files, problems = ImageRows(), ObjectRows(), list[str](), list[Problem]()
    stored = {}
    for name in sorted(files_in(folder / split.images)):
        if name.lower().endswith(IMAGE_SUFFIXES):
            stored.setdefault(Path(name).stem, name)
    for name in _names(folder / split.list, problems):
        file = folder / split.annotations / f"{name}.xml"
        if name not in stored:
            path = folder / split.images / f"{name}.jpg"
            problems.append(Problem("error", "missing image", str(path), f"named in {folder / split.list}"))
            continue
        path = folder / split.images / stored[name]
        root = _parse(file, problems)
        if root is not None and (size := _size(root, path, file, problems, apply_exif=exif == "apply")):
            images.paths.append(str(path))
            images.ids.append(len(images.ids) + 1)
            images.sizes.append(size)
            files.append(str(file))
            _read_objects(root, file, len(images.ids) - 1, classes, objects, problems)
    index, found = build_index(
        images,
        objects,
        class_names=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        files=files,
        drop=drop,
        exif=exif,
    )
    return index, problems + found


def _names(path: Path, problems: list[Problem]) -> list[str]:
    """The image names in a split's list; of two columns, as in per-class lists, rows with -1 are left out."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem("error", "split list can't be read", str(path), str(error)))
        return []
    names = []
    for line in filter(None, map(str.strip, lines)):
        name, _, flag = line.rpartition(" ")
        if flag not in ("-1", "0", "1") or not name:
            names.append(line)
        elif flag != "-1":
            names.append(name.strip())
    seen = set[str]()
    for name in names:
        if name in seen:
            problems.append(Problem("error", "duplicate image", str(path), repr(name)))
        if "/" in name or "\\" in name or name.startswith("."):
            problems.append(Problem("error", "image name with a path", str(path), repr(name)))
        seen.add(name)
    return [name for name in dict.fromkeys(names) if not ("/" in name or "\\" in name or name.startswith("."))]


def _parse(file: Path, problems: list[Problem]) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(file).getroot()
    except FileNotFoundError:
        problems.append(Problem("error", "missing annotation", str(file), "no such file"))
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        problems.append(Problem("error", "XML that does not parse", str(file), str(error)))
    return None


def _size(
    root: ElementTree.Element, image: Path, file: Path, problems: list[Problem], *, apply_exif: bool
) -> tuple[int, int] | None:
    """(height, width) as annotated, or of the image file where the annotation has none."""
    texts = root.findtext("size/height"), root.findtext("size/width")
    try:
        if None in texts or texts == ("0", "0"):
            return image_size(image, apply_exif=apply_exif)
        height, width = (int(float(text or "")) for text in texts)
    except (ValueError, OverflowError) as error:
        problems.append(Problem("error", "size that can't be read", str(file), f"{texts}: {error}"))
        return None
    if height < 1 or width < 1:
        problems.append(Problem("error", "size that can't be read", str(file), f"height {height}, width {width}"))
        return None
    return height, width


def _read_objects(
    root: ElementTree.Element,
    file: Path,
    image: int,
    classes: tuple[str, ...],
    objects: ObjectRows,
    problems: list[Problem],
) -> None:
    for number, node in enumerate(root.iter("object"), start=1):
        where = f"object {number}"
        name = (node.findtext("name") or "").strip()
        if name not in classes:
            problems.append(
                Problem("error", "class that the card lacks", str(file), f"{where}, {nearest_class(name, classes)}")
            )
            continue
        try:
            xmin, ymin, xmax, ymax = (
                float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")
            )
            difficult = bool(int(node.findtext("difficult") or "0"))
        except ValueError as error:
            problems.append(Problem("error", "object that can't be read", str(file), f"{where} ({name}): {error}"))
            continue
        objects.images.append(image)
        objects.boxes.append((xmin - 1, ymin - 1, xmax, ymax))
        objects.labels.append(classes.index(name))
        objects.ignore.append(difficult)
        objects.areas.append(None)
        objects.names.append(f"{where} ({name})")
