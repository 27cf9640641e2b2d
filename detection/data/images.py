"""Reads one image file as RGB pixels, or says what is wrong with it.

Policy: greyscale, palette and CMYK pictures become RGB; an orientation tag (EXIF, also of PNG, TIFF and WebP, or
XMP) is applied (the card's ``exif: ignore`` takes the pixels as they are stored); a file that ends early or lost a
stretch is an error, never a half-grey picture.
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
# Those of photographs; of what else Pillow reads, EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", BOUNDED_PPM, "TIFF", "WEBP", "JPEG2000")
JPEGS = ("JPEG", "MPO")  # the second: several in one file, of which the first is read
ENDS = {"JPEG": END, "PNG": b"IEND\xaeB`\x82"}  # the last bytes of a file

# The tag of the orientation and, for each of its values, the quarter turns (counter-clockwise) and whether the picture
# is mirrored left to right before them.
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


def read_image(
    path: str | Path, *, size: tuple[int, int] | None = None, apply_exif: bool = True, thorough: bool = False
) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3), RGB.

    Args:
        path: the file.
        size: (height, width) that the annotation gives; None skips the check.
        apply_exif: turn the picture as its EXIF tag says.
        thorough: also find progressive JPEGs that end early, which takes a second decoding.

    Raises:
        ImageError: the file is missing, damaged or no image, or disagrees with ``size``.
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
    """Returns the pixels of a JPEG with nothing but a picture, as nearly all are; None: Pillow is to look at the file.

    Raises:
        ValueError: it is damaged.
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
    """Returns pixels, (height, width) as stored, and the value of the orientation tag; ``data`` is that of a JPEG."""
    # Given a path, Pillow maps some TIFFs into memory, and there garbles those that it turns.
    with Image.open(stream, formats=FORMATS) as image:
        stored, orientation = _frame(image)
        if data is not None and image.format in JPEGS:
            pixels = _read_jpeg(data, image, thorough=thorough)
        else:
            pixels = to_rgb(image)
        if image.format == "TIFF":  # which Pillow has turned
            pixels = pixels if apply_exif else _turned(pixels, orientation, back=True)
        elif apply_exif:
            pixels = _turned(pixels, orientation)
    return pixels, stored, orientation


def image_size(path: str | Path, *, apply_exif: bool = True) -> tuple[int, int]:
    """Returns (height, width) of what ``read_image`` gives, from the header alone.

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
    """Raises what ``read_image`` raises for most unusable files, from their first and last bytes.

    Only files whose last bytes are not those of their format are decoded.
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
    """Returns (height, width) as stored and the value of the orientation tag, of an image that is not decoded yet."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it claims {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
    orientation = image.getexif().get(ORIENTATION)
    stored = image.height, image.width
    if image.format == "TIFF":  # for which Pillow gives the turned size
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
    """Returns pixels as stored, also of a file that lacks only its end marker."""
    if data.ended:
        # Of data that end early OpenCV would print a warning.
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
    """Returns pixels as stored, equal to Pillow's in four fifths of its time; None if OpenCV can't read them."""
    pixels = cv2.imdecode(np.frombuffer(content + END, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), dtype=np.uint8)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3) of an image of any mode.

    Raises:
        ValueError: they are 32-bit numbers.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit greys at 255
        return np.repeat(_grey(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _grey(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Returns 8 bits of each value; cameras with 12 bits put them into the lower ones of 16."""
    bits = 12 if values.max(initial=0) < 1 << 12 else 16
    return (values >> (bits - 8)).astype(np.uint8)


def _unreadable(path: str | Path, error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):  # which names the stream
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
