"""Reads the list ``images`` of a COCO file: image files, sizes and coordinate frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.data.objects import ImageArrays, ImageRows, files_in
from detection.data.problems import Problem
from detection.data.readers.frames import Frames
from detection.data.readers.meant import Meant, inside
from detection.data.readers.values import MISSING, FieldError, mapping, text, whole_number
from detection.files import require_file

__all__ = ["UNUSABLE", "Images"]

UNUSABLE = -1  # in place of an image's row


class Images:
    """Collects the records of the list ``images``.

    Args:
        path: annotation file.
        folder: folder of the data set.
        below: folder of the images.
        frames: finds the coordinate frame of each image.

    Attributes:
        row_of: row by image id; UNUSABLE if the image can't be used.
        scales: scale (along x, along y) of an image's boxes, by row, where it is not 1.
        problems: problems of the images that can't be used.
        frames: counts tolerated differences.
    """

    def __init__(self, path: Path, folder: Path, below: Path, frames: Frames) -> None:
        self._rows, self.row_of, self.scales = ImageRows(), dict[int, int](), dict[int, tuple[float, float]]()
        self.problems, self.frames = list[Problem](), frames
        self._file, self._folder, self._below = str(path), str(folder), str(below)
        self._stored, self._meant = files_in(below), Meant(below)
        self._owners, self._sizes = dict[str, int](), dict[tuple[int, int], tuple[int, int]]()
        self._seen = 0  # number of records

    def add(self, records: Sequence[Any]) -> None:
        for position, record in enumerate(records, start=self._seen):
            try:
                image = mapping(record, "the record")
                number = whole_number(image.get("id", MISSING), "id")
                name = text(image.get("file_name", MISSING), "file_name")
                size = _size(image)
            except FieldError as error:
                self._say("image record", f"images[{position}]: {error}")
                continue
            if number in self.row_of:
                self._say("duplicate image id", f"image {number} ({name})")
            else:
                self.row_of[number] = UNUSABLE
                self._add(number, name, size)
        self._seen += len(records)

    def finish(self) -> ImageArrays:
        """Returns the images that can be used, and frees data for adding records."""
        rows, self._rows = self._rows.arrays(), ImageRows()
        self._owners, self._stored = {}, set()
        return rows

    def _add(self, number: int, name: str, size: tuple[int, int] | None) -> None:
        where, path = f"image {number} ({name})", inside(self._folder, self._below, name)
        if path is None:
            self._say("image outside the data set's folder", where + self._meant.hint(name))
        elif name not in self._stored and not _is_file(path):
            detail = f"{where} of {self._file}{self._meant.hint(name)}"
            self.problems.append(Problem("error", "missing image", path, detail))
        elif (owner := self._owners.setdefault(path, number)) != number:
            self._say("image file under two ids", f"image {owner} and {where}; give all its annotations one image_id")
        else:
            self._place(number, path, size, where)

    def _place(self, number: int, path: str, size: tuple[int, int] | None, where: str) -> None:
        try:
            frame = self.frames.find(path, size)
        except ValueError as error:
            self._say("image size", f"{where}: {error}")
            return
        self.row_of[number] = row = len(self._rows.ids)
        if frame.scale != (1.0, 1.0):
            self.scales[row] = frame.scale
        self._rows.paths.append(path)
        self._rows.ids.append(number)
        self._rows.sizes.append(self._sizes.setdefault(frame.size, frame.size))  # images of one size share a tuple
        self._rows.apply_exif.append(frame.apply_exif)

    def _say(self, kind: str, detail: str) -> None:
        self.problems.append(Problem("error", kind, self._file, detail))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the (height, width) of a record; None if it has neither."""
    if image.get("height") is None and image.get("width") is None:
        return None
    height, width = (whole_number(image.get(key, MISSING), key) for key in ("height", "width"))
    return height, width


def _is_file(path: str) -> bool:
    try:
        require_file(Path(path))
    except (OSError, ValueError):  # no such file, or an impossible name
        return False
    return True
