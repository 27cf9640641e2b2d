"""Finds damage in JPEG files that decoders silently fill with grey, or with blocks that were never in the picture.

libjpeg only warns of such damage, and Pillow discards its warnings.  So the file is tested with additional bytes: after
data that end early they are decoded as the missing blocks and change pixels; after complete data they are skipped.
Source: ITU T.81, section B.1 (markers) and F.2.2 (decoding).
"""

from __future__ import annotations

import io
import random
import re
from dataclasses import dataclass
from operator import mul

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["END", "START", "JPEGData"]

END = b"\xff\xd9"  # the marker EOI
SCAN, TABLES, PROGRESSIVE = 0xDA, 0xC4, (0xC2, 0xC6, 0xCA, 0xCE)
START = b"\xff\xd8"  # the marker SOI
# Segments without an orientation tag or a further picture: quantisation and Huffman tables, restart interval, scan,
# comment, JFIF; of APP2 only colour profiles, which are not used.
BITS, CHANNELS = 8, (1, 3)
PLAIN, FRAMES, PROFILE = (0xDB, 0xC4, 0xDD, 0xDA, 0xFE, 0xE0), (0xC0, 0xC1, 0xC2), (0xE2, b"ICC_PROFILE\0")
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # 0 is a data byte of 255; D0 to D7 only restart the decoder

# Zero bytes enough for two blocks of nothing but the shortest code; a lost disk sector leaves at least 512.
ZEROS = bytes(64)

# All coefficients of a block without data are zero: luma 128.  Chroma of the next block can spread into it.
GREY, SPREAD = 128, 2
LUMA = (0.299, 0.587, 0.114)


def _probe() -> bytes:
    """Returns bytes that decode to blocks whatever the file's tables, and whatever restart marker it expects next."""
    noise = random.Random(0).randbytes(64).replace(b"\xff", b"\x7f")
    return noise + b"".join(bytes([0xFF, 0xD0 + number]) + noise for number in range(8))


PROBE = _probe()


@dataclass(frozen=True, slots=True)
class JPEGData:
    """The bytes of one JPEG file.

    Attributes:
        content: bytes of the first picture, up to its end marker.
        start: offset of the data of its last scan.
        ended: whether the file has the end marker.
        progressive: whether every scan refines the whole picture.
        flat: whether the Huffman tables can encode a flat area as zero bits.
        plain: (height, width) of an 8-bit grey or colour picture; None if a segment may hold an orientation tag or a
            further picture.
    """

    content: bytes
    start: int
    ended: bool
    progressive: bool
    flat: bool
    plain: tuple[int, int] | None = None

    @classmethod
    def parse(cls, data: bytes) -> JPEGData:
        """Parses the segments of a file; errors in them are left to the decoders."""
        at, start, progressive, flat, plain, frames = 2, 0, False, True, data[:2] == START, list[tuple[int, int]]()
        while (marker := MARKER.search(data, at)) is not None:
            found, code = marker.start(), marker[0][1]
            if code == END[1]:
                size = frames[0] if plain and len(frames) == 1 else None
                return cls(data[:found], start, True, progressive, flat, size)
            at = found + 2 + int.from_bytes(data[found + 2 : found + 4], "big")
            progressive |= code in PROGRESSIVE
            if code in FRAMES and len(data) > found + 9 and data[found + 4] == BITS and data[found + 9] in CHANNELS:
                height, width = (int.from_bytes(data[found + byte : found + byte + 2]) for byte in (5, 7))
                frames.append((height, width))
            else:
                plain &= code in PLAIN or (code, data[found + 4 : found + 16]) == PROFILE
            if code == TABLES:
                flat &= _all_end_first(data[found + 4 : at])
            if code == SCAN:
                start = at
        return cls(data, start, False, progressive, flat)

    def damage(self, pixels: NDArray[np.uint8] | None) -> str:
        """Returns the fault of the picture data, or an empty string.

        Args:
            pixels: (H, W, 3) or (H, W) as decoded, not turned.  They save a second decoding if they show that the last
                block was in the file.  None always decodes again, which also finds progressive files that end early.
        """
        zeros_mean_damage = not self.ended or not (self.flat or self.progressive)
        if self.content.find(ZEROS, self.start) >= 0 and (zeros_mean_damage or self._has_rest()):
            return "a stretch of its data is zeros"
        unsure = not self.ended or pixels is None or _may_be_grey(pixels)
        return (
            "it is truncated: its data end early, and what is missing would be grey"
            if unsure and self._ends_early()
            else ""
        )

    def _ends_early(self) -> bool:
        """Returns whether blocks lack data, so that additional bytes become pixels."""
        return not np.array_equal(_decode(self.content), _decode(self.content + PROBE))

    def _has_rest(self) -> bool:
        """Returns whether data remain after the last block, so that the last bytes don't matter."""
        count = min(16, len(self.content) - self.start)
        try:
            return np.array_equal(_decode(self.content), _decode(self.content[:-count] + PROBE[:count]))
        except OSError:
            return False


def _all_end_first(tables: bytes) -> bool:
    """Returns whether the all-zeros code ends a block in every AC table among the Huffman ``tables``."""
    at = 0
    while at + 17 <= len(tables):
        symbols = at + 17
        if tables[at] >> 4 and tables[symbols : symbols + 1] != b"\0":
            return False
        at = symbols + sum(tables[at + 1 : symbols])
    return True


def _may_be_grey(pixels: NDArray[np.uint8]) -> bool:
    """Returns whether the last block has the luma of a block without data."""
    if abs(_luma(pixels[-1, -1]) - GREY) > SPREAD:  # one pixel decides for most files
        return False
    height, width = pixels.shape[:2]
    block = pixels[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :]
    return all(abs(_luma(pixel) - GREY) <= SPREAD for row in block for pixel in row)


def _luma(pixel: NDArray[np.uint8]) -> float:
    """Returns the luma of a ``pixel``, (3,) RGB or one grey value."""
    return sum(map(mul, LUMA, pixel.tolist())) if pixel.ndim else float(pixel)


def _decode(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content + END), formats=("JPEG",)) as image:
        return np.asarray(image)
