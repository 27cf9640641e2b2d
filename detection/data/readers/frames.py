"""Decides in which frame the boxes of an image are: its size, whether it is turned, and by what boxes are scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detection.data.images import MAX_PIXELS, image_size
from detection.data.problems import Problem

__all__ = ["Exif", "Frame", "Frames", "OtherSize"]

Exif = Literal["apply", "ignore", "by_size"]
OtherSize = Literal["error", "scale"]

# Rounding of a resized picture's sides; another picture has other proportions.
PROPORTIONS = 0.02


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame of one image.

    Attributes:
        size: (height, width) of the pixels that are read.
        apply_exif: whether the image is turned as its EXIF tag says.
        scale: of boxes (along x, along y) from the annotation's size to ``size``.
    """

    size: tuple[int, int]
    apply_exif: bool
    scale: tuple[float, float] = (1.0, 1.0)


class Frames:
    """Finds frames under the tolerances of a card, and counts where they were needed.

    Only a tolerance, or an annotation without a size, opens the image's header; ``opened`` counts these.

    Args:
        exif: turn images by their tag, or not, or as the annotated size says.
        other_size: what happens where the image has another resolution than its annotation.
    """

    def __init__(self, exif: Exif, other_size: OtherSize) -> None:
        self._exif, self._other_size = exif, other_size
        self.unturned, self.scaled, self.opened = 0, 0, 0

    def find(self, path: str, annotated: tuple[int, int] | None) -> Frame:
        """Returns the frame of the image at ``path``.

        Args:
            path: of the image.
            annotated: (height, width) by its annotation; None if it has none.

        Raises:
            ValueError: a side below 1, too many pixels, or an image that is needed and can't be read.
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
        return Frame(annotated, apply)  # reading the pixels says what is wrong

    def notes(self, source: str) -> list[Problem]:
        """Returns the counts of what was tolerated in ``source``."""
        counts = {
            "image not turned by its EXIF tag, as its annotated size says": self.unturned,
            "boxes scaled to an image of another resolution": self.scaled,
        }
        return [
            Problem("note", kind, source, f"{count} image{'s' * (count > 1)}", count)
            for kind, count in counts.items()
            if count
        ]
