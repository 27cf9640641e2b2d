"""Reads one image file as RGB pixels, or says what is wrong with it.

Policy: greyscale, palette and CMYK pictures become RGB; an EXIF orientation is applied (the card's ``exif: ignore``
takes the pixels as they are stored); a file that ends early is an error, never a half-grey picture.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["read_image"]


def read_image(path: str | Path, *, size: tuple[int, int] | None = None, apply_exif: bool = True) -> NDArray[np.uint8]:
    """Pixels (H, W, 3), RGB.

    Args:
        path: the file.
        size: (height, width) that the annotation gives; None skips the check.
        apply_exif: turn the picture as its EXIF tag says.

    Raises:
        ValueError: the file is missing, truncated or no image, or disagrees with ``size``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", Image.DecompressionBombWarning
            )  # a header that claims over 89 million pixels
            with Image.open(path) as image:
                stored = image.height, image.width
                upright = ImageOps.exif_transpose(image) if apply_exif else image
                pixels = np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image {path} can't be read: {error}") from error
    if size is not None and pixels.shape[:2] != tuple(size):
        raise ValueError(_disagreement(path, pixels.shape[:2], stored, size))
    return pixels


def _disagreement(path: str | Path, read: tuple[int, ...], stored: tuple[int, int], size: tuple[int, int]) -> str:
    message = f"image {path} is {read[1]}x{read[0]} pixels, its annotation says {size[1]}x{size[0]}"
    if stored == tuple(size):
        return message + "; its EXIF tag turns it: set `exif: ignore` in the card if the boxes fit the unturned picture"
    return message + "; correct the annotation or the file"
