"""Reads one XML file in PASCAL VOC's format.

The XML of other tools has none of VOC's elements.  So the root and its elements are checked; an unknown element is an
error if it could hide objects, and otherwise a note.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from detection.data.objects import ObjectRows, nearest_class
from detection.data.problems import Problem, listed
from detection.data.readers.frames import Frame
from detection.data.readers.values import MISSING, FieldError, flag, number, whole_number
from detection.files import require_file

__all__ = ["XMLError", "XMLProblems", "annotated_size", "parse", "read_objects", "xml_files"]

# Elements of VOC's files from 2005 to 2012, of ImageNet's and of the usual tools'.
KNOWN = {"folder", "filename", "path", "source", "owner", "size", "segmented", "object", "verified", "polygon", "url"}
OBJECT = {
    "name",
    "bndbox",
    "pose",
    "truncated",
    "difficult",
    "occluded",
    "part",
    "actions",
    "point",
    "polygon",
    "deleted",
}
BOX = ("xmin", "ymin", "xmax", "ymax")

MAX_TAG = 60  # characters of a name in a message

# Names of objects and boxes in other tools.
OBJECTS = {
    "object",
    "objects",
    "obj",
    "item",
    "box",
    "boxes",
    "bbox",
    "bndbox",
    "rectangle",
    "polyline",
    "image",
    "track",
}

DECLARED = re.compile(rb"""^\s*<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)["'][^>]*\?>""")
# Multi-byte encodings that the parser lacks.
MULTIBYTE = {
    "gb2312",
    "gbk",
    "gb18030",
    "big5",
    "shift_jis",
    "shift-jis",
    "euc-jp",
    "euc-kr",
    "cp932",
    "cp936",
    "cp949",
}


class XMLProblems:
    """Problems of the files of a split; problems that files have in common are counted instead of repeated.

    Args:
        problems: receives the errors.
        first_pixel: number of the leftmost column in the files, from the card.
    """

    def __init__(self, problems: list[Problem], first_pixel: int) -> None:
        self.problems, self.first_pixel = problems, first_pixel
        self._counts = Counter[tuple[str, str]]()  # (kind, detail) -> how often
        self._files = dict[tuple[str, str], str]()  # -> the first file
        self._starts = self._ends = 0  # boxes from pixel 0, and boxes to the pixel numbered like the side

    def error(self, kind: str, file: Path, detail: str) -> None:
        self.problems.append(Problem("error", kind, str(file), detail))

    def count(self, kind: str, file: Path, detail: str) -> None:
        self._counts[kind, detail] += 1
        self._files.setdefault((kind, detail), str(file))

    def see(self, box: tuple[float, ...], size: tuple[int, int], file: Path) -> None:
        """Checks ``box`` (xmin, ymin, xmax, ymax) against the numbering of pixels in the files."""
        starts = box[0] == 0 or box[1] == 0
        self._starts += starts
        self._ends += box[2] == size[1] or box[3] == size[0]
        if starts and self.first_pixel == 1:
            repair = "set `first_pixel: 0` in the card's split if these files count from 0"
            self.count("box that starts at pixel 0", file, f"xmin or ymin is 0, and VOC counts from 1; {repair}")

    def notes(self, source: str) -> list[Problem]:
        """Returns a note for each counted problem."""
        notes = [
            Problem("note", kind, self._files[kind, detail], f"{detail} ({count} times; this file is the first)", count)
            for (kind, detail), count in self._counts.items()
        ]
        if self.first_pixel == 0 and self._ends and not self._starts:
            detail = f"{self._ends} boxes, and none starts at 0; leave `first_pixel: 0` out if these files count from 1"
            notes.append(Problem("note", "box that ends behind the last pixel", source, detail, self._ends))
        return notes


class XMLError(ValueError):
    """A file that can't be used, and the short name of the kind of problem."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def xml_files(folder: Path) -> list[Path]:
    """Returns the XML files in ``folder`` and its subfolders, sorted, without hidden ones."""
    return sorted(path for path in folder.rglob("*.xml") if not path.name.startswith("."))


def parse(file: Path) -> ElementTree.Element:
    """Returns the root of a VOC annotation.

    Raises:
        FileNotFoundError: there is no such file.
        XMLError: the file can't be read, is no XML or not in VOC's format.
    """
    try:
        require_file(file)
        data = file.read_bytes()
        encoding = DECLARED.match(data)
        if encoding and encoding[1].decode().lower() in MULTIBYTE:
            root = ElementTree.fromstring(data[encoding.end() :].decode(encoding[1].decode()))
        else:
            root = ElementTree.fromstring(data)
    except FileNotFoundError:
        raise
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise XMLError("XML that does not parse", str(error)) from error
    if root.tag != "annotation":
        repair = "; of CVAT, export as PASCAL VOC" if root.tag == "annotations" else ""
        raise XMLError("XML that isn't VOC's", f"its root is {_tag(root)}, expected <annotation>{repair}")
    return root


def annotated_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Returns the annotated (height, width); None if the file has none, or 0.

    Raises:
        FieldError: a side is no number.
    """
    texts = [root.findtext(f"size/{key}") for key in ("height", "width")]
    if None in texts or texts == ["0", "0"]:
        return None
    height, width = (whole_number(text, f"size/{key}") for text, key in zip(texts, ("height", "width"), strict=True))
    return height, width


def read_objects(
    root: ElementTree.Element,
    file: Path,
    row: int,
    frame: Frame,
    labels: Mapping[str, int],
    objects: ObjectRows,
    problems: XMLProblems,
) -> None:
    """Adds the objects of image ``row`` to ``objects``."""
    found = list(root.iter("object"))
    for error in _check_elements(root, file, bool(found), problems):
        problems.error("element that isn't VOC's", file, error)
    (sx, sy), first_pixel = frame.scale, problems.first_pixel
    for position, node in enumerate(found, start=1):
        name = (node.findtext("name") or "").strip()
        where = f"object {position}"
        if name and name not in labels:
            problems.error("class that the card lacks", file, f"{where}, {nearest_class(name, tuple(labels))}")
            continue
        try:
            if not name:
                raise FieldError("name", _found(node, "name"), "a class")
            _check_case(node, OBJECT, file, problems)
            xmin, ymin, xmax, ymax = _box(node, file, problems)
            difficult = _flag(node, file, problems)
        except FieldError as error:
            problems.error("object that can't be read", file, f"{where} ({name or 'without a name'}): {error}")
            continue
        if frame.scale == (1.0, 1.0):
            problems.see((xmin, ymin, xmax, ymax), frame.size, file)
        end = 1 - first_pixel
        objects.images.append(row)
        objects.boxes.append(
            (sx * (xmin - first_pixel), sy * (ymin - first_pixel), sx * (xmax + end), sy * (ymax + end))
        )
        objects.labels.append(labels[name])
        objects.ignore.append(difficult)
        objects.areas.append(None)
        objects.names.append(f"{where} ({name})")


def _box(node: ElementTree.Element, file: Path, problems: XMLProblems) -> tuple[float, ...]:
    bounds = node.find("bndbox")
    if bounds is None:
        others = listed([_tag(child) for child in node if child.tag != "name"])
        raise FieldError("bndbox", MISSING, f"one with {', '.join(BOX)}; it has {others}: export boxes, not polygons")
    _check_case(bounds, BOX, file, problems)
    return tuple(number(_found(bounds, key), f"bndbox/{key}") for key in BOX)


def _flag(node: ElementTree.Element, file: Path, problems: XMLProblems) -> bool:
    """Returns whether an object is difficult; some tools write Unspecified."""
    text = (node.findtext("difficult") or "0").strip()
    if text.lower() == "unspecified":
        problems.count("flag without a value, taken for 0", file, f"difficult is {text!r}")
        return False
    return flag(text, "difficult")


def _found(node: ElementTree.Element, key: str) -> str:
    """Returns the text of an element of ``node``; MISSING if there is none."""
    text = node.findtext(key)
    return MISSING if text is None else text


def _tag(node: ElementTree.Element) -> str:
    return f"<{node.tag}>" if len(node.tag) <= MAX_TAG else f"<{node.tag[:MAX_TAG]}...>"


def _check_case(node: ElementTree.Element, known: Container[str], file: Path, problems: XMLProblems) -> None:
    """Counts children unknown to VOC, and raises if only their case differs."""
    for child in node:
        if child.tag not in known:
            if child.tag.lower() in known:
                raise FieldError(child.tag.lower(), MISSING, f"that spelling; it has {_tag(child)}")
            problems.count("element that VOC lacks", file, f"{_tag(child)} in {_tag(node)}")


def _check_elements(root: ElementTree.Element, file: Path, objects: bool, problems: XMLProblems) -> Iterator[str]:
    """Yields elements that may hide objects; counts other elements unknown to VOC."""
    for child in root:
        if child.tag in KNOWN or child.find(".//object") is not None:
            continue
        if child.tag.rpartition("}")[2].lower() in OBJECTS or (not objects and (len(child) or child.attrib)):
            yield f"{_tag(child)} in <annotation>, expected <object> with <name> and <bndbox>"
        else:
            problems.count("element that VOC lacks", file, f"{_tag(child)} in <annotation>")
