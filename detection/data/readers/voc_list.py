"""Reads the lists of a VOC split: one image name per line, optionally with a number, and the devkits' blacklists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detection.data.objects import IMAGE_SUFFIXES
from detection.data.problems import Problem
from detection.files import require_file

__all__ = ["ListedImage", "read_blacklist", "read_lists"]

# Encodings of lists from other machines; the one under which the names exist is taken.
ENCODINGS = ("gb18030", "cp1252")
ABSENT, PARTIAL = "-1", "0"  # flags of a class: the image has no such object; its annotation is incomplete


@dataclass(slots=True)
class ListedImage:
    """An image of a split.

    Attributes:
        name: path below the folder of images, without the suffix.
        file: first list with the image.
        number: second column of that list; empty if there is none.
        partial: whether all its lists mark its annotation as incomplete.
    """

    name: str
    file: Path
    number: str
    partial: bool


def read_lists(
    folder: Path, pattern: str, stored: Callable[[str], object], hint: Callable[[str], str], problems: list[Problem]
) -> list[ListedImage]:
    """Returns the images of a split, each once, in the order of its lists.

    A name may occur once per list; several lists, as ImageNet's one per class, may share images.

    Args:
        folder: folder of the data set.
        pattern: pattern of the lists below it.
        stored: returns whether there is an image of a name.
        hint: returns which file an unusable name probably means.
        problems: receives problems.
    """
    found = dict[str, ListedImage]()
    for path in (sorted(folder.glob(pattern)) if "*" in pattern else ()) or [folder / pattern]:
        own = set[str]()
        for written, number in _names(path, stored, problems):
            name = _without_suffix(written, stored)
            if name in own:
                problems.append(Problem("error", "duplicate image", str(path), repr(name)))
            elif _leaves(name):
                problems.append(
                    Problem("error", "image name that leaves the folder", str(path), repr(name) + hint(name))
                )
            else:
                image = found.setdefault(name, ListedImage(name, path, number, True))
                image.partial &= number == PARTIAL
            own.add(name)
    return list(found.values())


def read_blacklist(file: Path, problems: list[Problem]) -> tuple[set[str], set[tuple[str, str]]]:
    """Returns the numbers of images that a challenge does not evaluate, and (image, class name) pairs.

    A missing file gives a note, as metrics then differ from the challenge's.
    """
    images, pairs = set[str](), set[tuple[str, str]]()
    try:
        require_file(file)
        for line in filter(None, map(str.strip, file.read_text(encoding="ascii").splitlines())):
            image, *name = line.split()
            if not image.isdigit() or len(name) > 1:
                raise ValueError
            if name:
                pairs.add((image, name[0]))
            else:
                images.add(image)
    except FileNotFoundError:
        detail = "the challenge does not judge what it lists, so figures are not the challenge's; it is in the devkit"
        problems.append(Problem("note", "missing blacklist", str(file), detail))
    except (OSError, ValueError):
        detail = "expected the number of an image a line, and perhaps the name of a class"
        problems.append(Problem("error", "blacklist that can't be read", str(file), detail))
    return images, pairs


def _names(path: Path, stored: Callable[[str], object], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Yields the names in one list and their numbers.

    A second column is the flag of a class (-1: the image has no such object, and is left out) or, in ImageNet, a
    running number.
    """
    try:
        require_file(path)
        lines = _decode(path.read_bytes(), stored)
    except (OSError, ValueError) as error:
        problems.append(Problem("error", "split list can't be read", str(path), str(error)))
        return
    for line in lines:
        name, _, number = line.rpartition(" ")
        if not name or not number.lstrip("-").isdigit() or (not _leaves(line) and stored(line)):
            yield line, ""
        elif number != ABSENT:
            yield name.strip(), number


def _decode(data: bytes, stored: Callable[[str], object]) -> list[str]:
    """Returns the lines of a list, without blank ones.

    Raises:
        ValueError: the list has an unknown encoding, or no known encoding gives names that exist.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _lines(data.decode("utf-16"))
    try:
        lines = _lines(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        lines = None
    for encoding in () if data.isascii() else ENCODINGS:  # some Chinese names are UTF-8 too, of other characters
        other = _lines(data.decode(encoding, errors="replace"))
        if not (lines and _all_stored(lines, stored)) and _all_stored(other, stored):
            return other
    if lines is None:
        raise ValueError("it is not UTF-8; save it as UTF-8")
    return lines


def _all_stored(lines: list[str], stored: Callable[[str], object]) -> bool:
    return all(not _leaves(line) and (stored(line) or stored(line.rpartition(" ")[0].strip())) for line in lines)


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _without_suffix(name: str, stored: Callable[[str], object]) -> str:
    """Returns ``name`` without an image suffix if the image is found without it."""
    stem, dot, suffix = name.rpartition(".")
    if f"{dot}{suffix.lower()}" not in IMAGE_SUFFIXES or _leaves(name) or stored(name) or not stored(stem):
        return name
    return stem


def _leaves(name: str) -> bool:
    """Returns whether the relative path ``name`` could leave its folder."""
    return "\\" in name or name.startswith("/") or any(part.startswith(".") for part in PurePosixPath(name).parts)
