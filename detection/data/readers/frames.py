"""Finds the coordinate frame of an image's boxes: its size, its orientation, and the scale of the boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detection.data.images import MAX_PIXELS, image_size
from detection.data.problems import Problem

__all__ = ["Exif", "Frame", "Frames", "OtherSize", "require_folder"]

Exif = Literal["apply", "ignore", "by_size"]
OtherSize = Literal["error", "scale"]

# Rounding of a resized image's sides; a larger difference of aspect ratios means another image.
PROPORTIONS = 0.02


@dataclass(frozen=True, slots=True)
class Frame:
    """The coordinate frame of one image.

    Attributes:
        size: (height, width) of the pixels that are read.
        apply_exif: whether the orientation tag is applied.
        scale: scale of boxes (along x, along y) from the annotation's size to ``size``.
    """

    size: tuple[int, int]
    apply_exif: bool
    scale: tuple[float, float] = (1.0, 1.0)


def require_folder(folder: Path, source: str = "") -> None:
    """Raises ValueError if there is no ``folder``; ``source`` says where to get it, as in the card."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}{f'. Where to get it: {source}' if source else ''}")


class Frames:
    """Finds coordinate frames with the tolerances of a card, and counts their uses.

    An image's header is opened only for a tolerance or for an annotation without a size; ``opened`` counts these.

    Args:
        exif: whether images are turned by their tag, never, or to fit the annotated size.
        other_size: treatment of an image whose resolution differs from its annotation.
    """

    def __init__(self, exif: Exif, other_size: OtherSize) -> None:
        self._exif, self._other_size = exif, other_size
        self.unturned, self.scaled, self.opened = 0, 0, 0

    def find(self, path: str, annotated: tuple[int, int] | None) -> Frame:
        """Returns the coordinate frame of the image at ``path``.

        Args:
            path: image file.
            annotated: (height, width) of the annotation; None if it has none.

        Raises:
            ValueError: a side is below 1, there are too many pixels, or the image has to be read and can't be.
        """
        apply = self._exif != "ignore"
        if annotated is None:
            self.opened += 1
            return Frame(image_size(path, apply_exif=apply), apply)
        height, width = annotated
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise ValueError(
                f"height is {height}, width is {width}, expected 1 or more, and {MAX_PIXELS} pixels at most"
            )
        if self._exif != "by_size" and self._other_size == "error":
            return Frame(annotated, apply)
        self.opened += 1
        size = image_size(path, apply_exif=apply)
        if size == annotated:
            return Frame(size, apply)
        if self._exif == "by_size" and image_size(path, apply_exif=False) == annotated:
            self.unturned += 1
            return Frame(annotated, False)
        scale = size[1] / width, size[0] / height
        if self._other_size == "scale" and abs(scale[0] / scale[1] - 1) <= PROPORTIONS:
            self.scaled += 1
            return Frame(size, apply, scale)
        return Frame(annotated, apply)  # reading the pixels reports the problem

    def notes(self, source: str) -> list[Problem]:
        """Returns notes with the counts of tolerated differences in ``source``."""
        counts = {
            "image not turned by its EXIF tag, as its annotated size says": self.unturned,
            "boxes scaled to an image of another resolution": self.scaled,
        }
        return [
            Problem("note", kind, source, f"{count} image{'s' * (count > 1)}", count)
            for kind, count in counts.items()
            if count
        ]
