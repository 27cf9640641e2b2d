"""Damage in JPEG files that decoders fill with grey, or with blocks that were never in the picture, without an error.

libjpeg only warns of it, and Pillow does not pass its warnings on.  So the file is asked: bytes put behind data that
end early are taken for the missing blocks and change pixels; behind complete data they are skipped.
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
# Segments that tell nothing but how to decode, or nothing at all: quantisation and Huffman tables, restart interval,
# scan, comment, JFIF; of APP2 those that hold a colour profile, which is not used.
BITS, CHANNELS = 8, (1, 3)
PLAIN, FRAMES, PROFILE = (0xDB, 0xC4, 0xDD, 0xDA, 0xFE, 0xE0), (0xC0, 0xC1, 0xC2), (0xE2, b"ICC_PROFILE\0")
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # 0 is a data byte of 255; D0 to D7 only restart the decoder

# Two blocks and more of nothing but the shortest code; a disk that lost a sector leaves at least 512.
ZEROS = bytes(64)

# A block without data has only zeros for coefficients: luma 128.  Chroma of the block beside it can spread into it.
GREY, SPREAD = 128, 2
LUMA = (0.299, 0.587, 0.114)


def _probe() -> bytes:
    """Returns data that some table of any file decodes to blocks, also where it waits for a certain restart marker."""
    noise = random.Random(0).randbytes(64).replace(b"\xff", b"\x7f")
    return noise + b"".join(bytes([0xFF, 0xD0 + number]) + noise for number in range(8))


PROBE = _probe()


@dataclass(frozen=True, slots=True)
class JPEGData:
    """The bytes of one JPEG file.

    Attributes:
        content: of the first picture, without its end marker and what follows it.
        start: where the data of its last scan begin.
        ended: whether the file has the end marker.
        progressive: whether every scan refines the whole picture.
        flat: whether a flat area can be zero bits, by the Huffman tables.
        plain: (height, width) of an 8-bit grey or colour picture, if the file has no segment that may hold an
            orientation tag or a further picture; else None.
    """

    content: bytes
    start: int
    ended: bool
    progressive: bool
    flat: bool
    plain: tuple[int, int] | None = None

    @classmethod
    def parse(cls, data: bytes) -> JPEGData:
        """Walks through the segments of a file; where they make no sense, decoders will say so."""
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
        """Names what is wrong with the picture data; empty if nothing is.

        Args:
            pixels: (H, W, 3) or (H, W) as decoded, not turned.  If they show that the last block came out of the file,
                a second decoding is saved; None: it is always done, which also finds progressive files that end early.
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
        """Returns whether blocks lack data: further bytes become pixels."""
        return not np.array_equal(_decode(self.content), _decode(self.content + PROBE))

    def _has_rest(self) -> bool:
        """Returns whether data are left when all blocks are there: the last bytes don't matter."""
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
    """Returns whether the last block has the luma of one without data."""
    if abs(_luma(pixels[-1, -1]) - GREY) > SPREAD:  # of most files one pixel tells
        return False
    height, width = pixels.shape[:2]
    block = pixels[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :]
    return all(abs(_luma(pixel) - GREY) <= SPREAD for row in block for pixel in row)


def _luma(pixel: NDArray[np.uint8]) -> float:
    """Returns luma of a ``pixel``, (3,) RGB or one grey value."""
    return sum(map(mul, LUMA, pixel.tolist())) if pixel.ndim else float(pixel)


def _decode(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content + END), formats=("JPEG",)) as image:
        return np.asarray(image)
