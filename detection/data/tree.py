"""The files below a folder by kind, and the splits in their names, for the recognition of label formats."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from detection.data.objects import IMAGE_SUFFIXES

__all__ = ["SPLITS", "Tree", "split_of", "topmost"]

SPLITS = ("train", "val", "test")
# Word in a name -> split
WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
MAX_JSON = 60  # JSON files that are opened
SAMPLED = 20  # names of a label file that are searched for


class Tree:
    """The files below ``folder``, without hidden ones.

    Args:
        folder: the folder; made absolute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.files = list[PurePosixPath]()
        for place, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            below = PurePosixPath(Path(place).relative_to(self.folder).as_posix())
            self.files += [below / name for name in sorted(names) if not name.startswith(".")]

    def having(self, *suffixes: str) -> list[PurePosixPath]:
        """Returns the files with one of ``suffixes``, those nearest to the folder first."""
        found = [path for path in self.files if path.suffix.lower() in suffixes]
        return sorted(found, key=lambda path: (len(path.parts), path))

    @cached_property
    def images(self) -> list[PurePosixPath]:
        """The image files, without folders that have such names."""
        return [path for path in self.having(*IMAGE_SUFFIXES) if (self.folder / path).is_file()]

    @cached_property
    def image_folders(self) -> dict[PurePosixPath, int]:
        """The folders with images, and the number of images in each."""
        return dict(Counter(path.parent for path in self.images))

    @cached_property
    def by_stem(self) -> dict[str, list[PurePosixPath]]:
        """The images by their name without its suffix."""
        found = dict[str, list[PurePosixPath]]()
        for path in self.images:
            found.setdefault(path.stem, []).append(path)
        return found

    @cached_property
    def json(self) -> dict[PurePosixPath, Any]:
        """Returns what the first JSON files hold; those that can't be read are left out."""
        found = dict[PurePosixPath, Any]()
        for path in self.having(".json")[:MAX_JSON]:
            try:
                found[path] = json.loads((self.folder / path).read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
        return found

    def head(self, path: PurePosixPath, size: int = 4096) -> str:
        """Returns the start of a text file; empty if it can't be read."""
        try:
            with (self.folder / path).open("rb") as stream:
                return stream.read(size).decode("utf-8-sig", errors="replace")
        except OSError:
            return ""

    def folder_of(self, names: Iterable[str], *, near: PurePosixPath) -> str | None:
        """Returns the folder below which most of the first ``names`` exist; of several, the one nearest to ``near``.

        Args:
            names: paths in a label file.
            near: folder of the label file.
        """
        counts = Counter[PurePosixPath]()
        for name in [*names][:SAMPLED]:
            wanted = PurePosixPath(name.replace("\\", "/"))
            for path in self.by_stem.get(wanted.stem, ()):
                if path.parts[-len(wanted.parts) :] == wanted.parts:
                    counts[PurePosixPath(*path.parts[: -len(wanted.parts)])] += 1
        if not counts:
            return None
        return str(max(counts, key=lambda place: (counts[place], place == near, -len(place.parts), str(place))))


def split_of(path: PurePosixPath | str) -> str | None:
    """Returns the split in a file's name, else in the name of the nearest folder that has one."""
    for part in reversed(PurePosixPath(path).parts):
        words = re.findall("[a-z]+", PurePosixPath(part).stem.lower() if "." in part else part.lower())
        found = {WORDS[word] for word in words if word in WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def topmost(folders: Iterable[PurePosixPath]) -> Sequence[PurePosixPath]:
    """Returns ``folders`` without those inside another of them."""
    kept = list[PurePosixPath]()
    for folder in sorted(folders, key=lambda folder: len(folder.parts)):
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return sorted(kept)
