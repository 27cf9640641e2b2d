"""Finds the file that an annotation means if no file has exactly its name.

Annotations from other machines have backslashes, URL escapes, composed or decomposed accents (macOS), another suffix or
case, trailing blanks, the folder's own name in front, or paths of another machine.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

__all__ = ["Meant", "inside"]

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".xml")
MAX_FILES = 200_000  # upper limit of files that are listed for a hint


class Meant:
    """The files below a folder by normalized name; they are listed on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[str, ...], str] | None = None

    def hint(self, name: str) -> str:
        """Returns a hint at the file that ``name`` probably means, which ends a message; empty if there is none."""
        if self._files is None:
            self._files = {}
            for file in islice(_below(self._folder), MAX_FILES):
                self._files.setdefault(_key(file), file)
        parts = _key(name)
        for start in range(len(parts)):
            if (found := self._files.get(parts[start:])) is not None:
                return f"; {found!r} is there: name it so, or rename the file"
        return ""


def inside(folder: str, images: str, name: str) -> str | None:
    """Returns the path of the file ``name`` below ``images``; None if it is neither there nor in ``folder``."""
    path = f"{images}/{name}"
    if not (name.startswith("/") or "//" in path or "./" in path or name.endswith("/.")):
        return path  # as nearly all
    path = os.path.normpath(name if name.startswith("/") else path)
    roots = (os.path.normpath(folder), os.path.normpath(images))
    return path if any(path.startswith(f"{root}/") for root in roots) else None


def _below(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield os.path.relpath(f"{place}/{name}", folder)


def _key(name: str) -> tuple[str, ...]:
    """Returns the normalized parts of ``name``, without differences that tools make."""
    plain = unicodedata.normalize("NFC", unquote(name)).replace("\\", "/").casefold()
    stem, dot, suffix = plain.strip().rpartition(".")
    plain = stem if f"{dot}{suffix}" in SUFFIXES else plain
    return tuple(part.strip() for part in plain.split("/") if part.strip() not in ("", ".", ".."))
