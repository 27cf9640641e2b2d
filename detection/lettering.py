"""Draws letters on images: their height grows with the image; they are black or white on a coloured ground.

Shapes: H W height and width of an image, h w those of a line of letters.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["BLACK", "WHITE", "Color", "Place", "letters", "letters_color", "letters_height", "write", "write_note"]

Color = tuple[int, int, int]
Place = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
LETTERS = 0.024  # height, a share of the geometric mean of an image's sides
LETTERS_IN_BOX = 0.2  # at most so much of the median of the boxes' shorter sides, else captions hide a crowd
MIN_LETTERS = 11  # pixels; smaller ones can't be read
NOTE_HEIGHT = 0.1  # of the image, that a note may take at most


def letters_height(size: tuple[int, ...], boxes: NDArray[np.floating] | None = None) -> int:
    """Returns the height of letters, pixels: by the image's ``size``, and smaller where ``boxes`` (N, 4) are small."""
    height = LETTERS * math.sqrt(size[0] * size[1])
    if boxes is not None and len(boxes):
        height = min(height, LETTERS_IN_BOX * float(np.median(np.abs(boxes[:, 2:] - boxes[:, :2]).min(axis=1))))
    return max(MIN_LETTERS, round(height))


def letters(text: str, height: int) -> NDArray[np.float32]:
    """Returns ``text``, ``height`` pixels high, in one line (h, w) with a margin: 0 for the ground, 1 for letters."""
    font = _font(height)
    _, top, _, bottom = (round(value) for value in font.getbbox(f"Ág{text}"))  # as high whatever the text
    margin = max(1, (bottom - top) // 5)
    line = Image.new("L", (round(font.getlength(text)) + 2 * margin, bottom - top + 2 * margin))
    ImageDraw.Draw(line).text((margin, margin - top), text, fill=255, font=font)
    return np.asarray(line, dtype=np.float32) / np.float32(255)


def write(canvas: NDArray[np.uint8], line: NDArray[np.float32], place: Place, color: Color) -> None:
    """Puts a ``line`` of letters (h, w) on a ground of ``color`` at ``place``, as far as that lies on the canvas."""
    x1, y1, x2, y2 = place
    ground = canvas[y1:y2, x1:x2]
    share = line[: ground.shape[0], : ground.shape[1], None]
    ground[:] = np.rint(share * np.array(letters_color(color)) + (1 - share) * np.array(color)).astype(np.uint8)


def write_note(canvas: NDArray[np.uint8], note: str, height: int) -> None:
    """Puts ``note`` at the lower left of ``canvas`` (H, W, 3), white on a darkened ground, if there is room for it."""
    line = letters(note, height)
    if line.shape[1] > canvas.shape[1] or line.shape[0] > NOTE_HEIGHT * canvas.shape[0]:
        return
    ground, share = canvas[-line.shape[0] :, : line.shape[1]], line[:, :, None]
    ground[:] = np.rint(share * 255 + (1 - share) * 0.25 * ground).astype(np.uint8)


def letters_color(color: Color) -> Color:
    """Returns black or white, whichever has the higher contrast to ``color``.

    Source: W3C, WCAG 2.1, relative luminance and contrast ratio: black from a luminance of 0.179 on.
    """
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in color]
    return BLACK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else WHITE


@lru_cache(maxsize=32)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns letters of ``height`` pixels: matplotlib's DejaVu Sans, which has Greek and Cyrillic, or Pillow's."""
    found = importlib.util.find_spec("matplotlib")  # found, not imported, which takes long
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), height)
    return ImageFont.load_default(height)
