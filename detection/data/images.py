"""Reads one image file as RGB pixels, or says what is wrong with it.

Policy: greyscale, palette and CMYK pictures become RGB; an EXIF orientation is applied (the card's ``exif: ignore``
takes the pixels as they are stored); a file that ends early is an error, never a half-grey picture.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detection.data.ppm import BOUNDED_PPM

__all__ = ["FORMATS", "MAX_PIXELS", "UNREADABLE", "ImageError", "image_size", "read_image"]

MAX_PIXELS = 89_478_485  # Pillow's own limit; a header can claim any size
# Those of photographs; of what else Pillow reads, EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", BOUNDED_PPM, "TIFF", "WEBP", "JPEG2000")
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the values that swap height and width

# What Pillow raises for files that are damaged or made to do harm.
UNREADABLE = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class ImageError(ValueError):
    """An image that can't be used."""

    def __init__(self, message: str) -> None:
        # A worker process hands its exception over with a traceback in front; only the message helps a user.
        super().__init__(message.rpartition("ImageError: ")[2].strip())


def read_image(path: str | Path, *, size: tuple[int, int] | None = None, apply_exif: bool = True) -> NDArray[np.uint8]:
    """Pixels (H, W, 3), RGB.

    Args:
        path: the file.
        size: (height, width) that the annotation gives; None skips the check.
        apply_exif: turn the picture as its EXIF tag says.

    Raises:
        ImageError: the file is missing, truncated or no image, or disagrees with ``size``.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image)
            stored = image.height, image.width
            pixels = _rgb(ImageOps.exif_transpose(image) if apply_exif else image)
    except UNREADABLE as error:
        raise ImageError(f"image {path} can't be read: {error}") from error
    if size is not None and pixels.shape[:2] != tuple(size):
        raise ImageError(_disagreement(path, pixels.shape[:2], stored, size))
    return pixels


def image_size(path: str | Path, *, apply_exif: bool = True) -> tuple[int, int]:
    """(height, width) that ``read_image`` gives, from the header alone.

    Raises:
        ValueError: the file is missing or no image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image)
            turned = apply_exif and image.getexif().get(EXIF_ORIENTATION) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except UNREADABLE as error:
        raise ValueError(f"image {path} can't be read: {error}") from error


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it claims {image.width}x{image.height} pixels, more than {MAX_PIXELS}")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit greys at 255
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _disagreement(path: str | Path, read: tuple[int, ...], stored: tuple[int, int], size: tuple[int, int]) -> str:
    message = f"image {path} is {read[1]}x{read[0]} pixels, its annotation says {size[1]}x{size[0]}"
    if stored == tuple(size):
        return message + "; its EXIF tag turns it: set `exif: ignore` in the card if the boxes fit the unturned picture"
    if stored == read and image_size(path) == tuple(size):
        return (
            message + "; its EXIF tag would turn it: set `exif: apply` in the card if the boxes fit the turned picture"
        )
    return message + "; correct the annotation or the file"
