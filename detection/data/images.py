"""Reads one image file as RGB pixels, or raises an error that names the fault.

Greyscale, palette and CMYK images become RGB.  An orientation tag (EXIF, also of PNG, TIFF and WebP, or XMP) is applied
unless the card has ``exif: ignore``.  A file that ends early or lacks a stretch in the middle is an error, never a
half-grey image.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detection.data.jpeg import END, START, JPEGData
from detection.data.ppm import BOUNDED_PPM
from detection.files import require_file

__all__ = ["FORMATS", "MAX_PIXELS", "UNREADABLE", "ImageError", "check_header", "image_size", "read_image", "to_rgb"]

MAX_PIXELS = 89_478_485  # Pillow's own limit; a header can claim any size
# Formats of photographs only: among Pillow's others, EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", BOUNDED_PPM, "TIFF", "WEBP", "JPEG2000")
JPEGS = ("JPEG", "MPO")  # an MPO file holds several images, of which the first is read
ENDS = {"JPEG": END, "PNG": b"IEND\xaeB`\x82"}  # the last bytes of a file

# Orientation tag. For each value: the quarter turns (counter-clockwise), and whether the image is flipped left to right
# before them.
ORIENTATION, UPRIGHT = 0x0112, 1
TURNS = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (1, True),
    6: (3, False),
    7: (3, True),
    8: (1, False),
}
TIFF_WIDTH, TIFF_HEIGHT = 256, 257

# Errors of Pillow for damaged or malicious files.
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
        # A worker process puts a traceback in front of its exception's message; only the message helps a user.
        super().__init__(message.rpartition("ImageError: ")[2].strip())


def read_image(
    path: str | Path, *, size: tuple[int, int] | None = None, apply_exif: bool = True, thorough: bool = False
) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3), RGB.

    Args:
        path: the file.
        size: (height, width) that the annotation gives; None skips the check.
        apply_exif: apply the orientation tag.
        thorough: also find progressive JPEGs that end early, which takes a second decoding.

    Raises:
        ImageError: the file is missing, damaged or no image, or is not of the given ``size``.
    """
    try:
        require_file(path)
        with open(path, "rb") as stream:  # noqa: PTH123  # as there
            data = JPEGData.parse(START + stream.read()) if stream.read(len(START)) == START else None
            pixels = None if data is None else _plain_jpeg(data, thorough=thorough)
            stored, orientation = (0, 0) if pixels is None else pixels.shape[:2], UPRIGHT
            if pixels is None:
                stream.seek(0)
                pixels, stored, orientation = _read_by_pillow(stream, data, apply_exif=apply_exif, thorough=thorough)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    _check_size(path, (pixels.shape[0], pixels.shape[1]), stored, orientation, size)
    return pixels


def _plain_jpeg(data: JPEGData, *, thorough: bool) -> NDArray[np.uint8] | None:
    """Returns the pixels of a JPEG without special segments, as nearly all are; None if Pillow has to read the file.

    Raises:
        ValueError: the file is damaged.
    """
    if data.plain is None or not 0 < data.plain[0] * data.plain[1] <= MAX_PIXELS:
        return None
    pixels = _decoded_by_opencv(data.content)
    if pixels is None or pixels.shape[:2] != data.plain:
        return None
    if damage := data.damage(None if thorough and data.progressive else pixels):
        raise ValueError(damage)
    return pixels


def _read_by_pillow(
    stream: BinaryIO, data: JPEGData | None, *, apply_exif: bool, thorough: bool
) -> tuple[NDArray[np.uint8], tuple[int, int], int]:
    """Returns pixels, stored (height, width) and the value of the orientation tag; ``data`` is given for JPEGs."""
    # A stream rather than a path: Pillow maps some TIFFs into memory, and then garbles those that it turns.
    with Image.open(stream, formats=FORMATS) as image:
        stored, orientation = _frame(image)
        if data is not None and image.format in JPEGS:
            pixels = _read_jpeg(data, image, thorough=thorough)
        else:
            pixels = to_rgb(image)
        if image.format == "TIFF":  # Pillow has turned it already
            pixels = pixels if apply_exif else _turned(pixels, orientation, back=True)
        elif apply_exif:
            pixels = _turned(pixels, orientation)
    return pixels, stored, orientation


def image_size(path: str | Path, *, apply_exif: bool = True) -> tuple[int, int]:
    """Returns the (height, width) of ``read_image``'s result from the header alone.

    Raises:
        ImageError: the file is missing or no image.
    """
    try:
        require_file(Path(path))
        with Image.open(path, formats=FORMATS) as image:
            return _size(*_frame(image), apply_exif=apply_exif)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def check_header(path: str | Path, *, size: tuple[int, int], apply_exif: bool) -> None:
    """Raises ``read_image``'s error for most unusable files, checking only their first and last bytes.

    A file is decoded only if it does not end as its format requires.
    """
    try:
        require_file(Path(path))
        with Path(path).open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            stored, orientation = _frame(image)
            end = ENDS.get(image.format or "", b"")
            stream.seek(-len(end), io.SEEK_END)
            whole = stream.read() == end
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    _check_size(path, _size(stored, orientation, apply_exif=apply_exif), stored, orientation, size)
    if not whole:
        read_image(path, size=size, apply_exif=apply_exif)


def _frame(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Returns the stored (height, width) and the value of the orientation tag of an image that is not decoded yet."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"its header declares {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
    orientation = image.getexif().get(ORIENTATION)
    stored = image.height, image.width
    if image.format == "TIFF":  # Pillow gives the turned size
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]  # only TIFFs have it
        stored = tags[TIFF_HEIGHT], tags[TIFF_WIDTH]
    return stored, orientation if orientation in TURNS else UPRIGHT


def _size(stored: tuple[int, int], orientation: int, *, apply_exif: bool) -> tuple[int, int]:
    quarters, _ = TURNS[orientation]
    return (stored[1], stored[0]) if apply_exif and quarters % 2 else stored


def _turned(pixels: NDArray[np.uint8], orientation: int, *, back: bool = False) -> NDArray[np.uint8]:
    """Returns ``pixels`` (H, W, 3) put upright, or ``back`` as they were stored."""
    quarters, mirrored = TURNS[orientation]
    if back:
        pixels = np.rot90(pixels, -quarters)
        return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))


def _read_jpeg(data: JPEGData, image: Image.Image, *, thorough: bool) -> NDArray[np.uint8]:
    """Returns the stored pixels, also if the file lacks only its end marker."""
    if data.ended:
        # OpenCV prints a warning about data that end early, so it gets none.
        pixels = _decoded_by_opencv(data.content) if image.mode in ("L", "RGB") else None
        pixels = to_rgb(image) if pixels is None else pixels
    else:
        with Image.open(io.BytesIO(data.content + END), formats=FORMATS) as ended:
            pixels = to_rgb(ended)
    conclusive = image.mode in ("L", "RGB") and not (thorough and data.progressive)
    if damage := data.damage(pixels if conclusive else None):
        raise ValueError(damage)
    return pixels


def _decoded_by_opencv(content: bytes) -> NDArray[np.uint8] | None:
    """Returns the stored pixels, equal to Pillow's in four fifths of its time; None if OpenCV can't read them."""
    pixels = cv2.imdecode(np.frombuffer(content + END, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), dtype=np.uint8)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Returns the RGB pixels (H, W, 3) of an image of any mode.

    Raises:
        ValueError: the pixels are 32-bit numbers.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit greys at 255
        return np.repeat(_grey(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _grey(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Returns 8 bits of each value; 12-bit cameras use the lower bits of 16."""
    bits = 12 if values.max(initial=0) < 1 << 12 else 16
    return (values >> (bits - 8)).astype(np.uint8)


def _unreadable(path: str | Path, error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):  # its message names the stream
        known = ", ".join(name.removeprefix("BOUNDED_") for name in FORMATS)
        return ImageError(f"image {path} can't be read: it is no image, or of another format than {known}")
    return ImageError(f"image {path} can't be read: {str(error) or type(error).__name__}")


def _check_size(
    path: str | Path, read: tuple[int, int], stored: tuple[int, int], orientation: int, size: tuple[int, int] | None
) -> None:
    if size is None or read == tuple(size):
        return
    message = f"image {path} is {read[1]}x{read[0]} pixels, its annotation says {size[1]}x{size[0]}"
    if stored == tuple(size):
        message += "; its EXIF tag turns it: set `exif: ignore` in the card if the boxes fit the unturned picture"
    elif _size(stored, orientation, apply_exif=True) == tuple(size):
        message += "; its EXIF tag would turn it: set `exif: apply` in the card if the boxes fit the turned picture"
    else:
        message += (
            "; correct the annotation or the file, or set `other_size: scale` in the card if the boxes fit its size"
        )
    raise ImageError(message)
