"""Finds the image of a label file whose paths are from another machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from detection.data.objects import IMAGE_SUFFIXES

__all__ = ["ImageFiles", "images_below", "plain_name"]


class ImageFiles:
    """The image files below a folder, found by the end of their path.

    Args:
        folder: searched with its subfolders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[PurePosixPath]] = {}
        self._by_stem: dict[str, list[PurePosixPath]] = {}
        for path in images_below(folder):
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            self._by_name.setdefault(relative.name.casefold(), []).append(relative)
            self._by_stem.setdefault(relative.stem.casefold(), []).append(relative)

    def find(self, name: str) -> Path | None:
        """Returns the file whose path shares the longest end with ``name``; None if there is none, or a tie.

        A name without a suffix, or with another suffix, finds the image with that stem.
        """
        wanted = plain_name(name)
        found = self._by_name.get(wanted.name.casefold())
        for stem in () if found else (wanted.name, wanted.stem):
            found = found or self._by_stem.get(stem.casefold())
        if not found:
            return None
        shared = [_shared_parts(path, wanted) for path in found]
        best = max(shared)
        return self.folder / found[shared.index(best)] if shared.count(best) == 1 else None


def images_below(folder: Path) -> Iterator[Path]:
    """Yields the image files in ``folder`` and its subfolders, sorted, without hidden ones (macOS's "._photo.jpg")."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def plain_name(name: str) -> PurePosixPath:
    """Returns the path ``name`` of another machine with "/" as separator and without URL escapes."""
    return PurePosixPath(unquote(name).replace("\\", "/").rpartition("?d=")[2].strip())


def _shared_parts(path: PurePosixPath, wanted: PurePosixPath) -> int:
    """Returns the number of last folders that two paths share."""
    pairs = zip(reversed(path.parts[:-1]), reversed(wanted.parts[:-1]), strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count
