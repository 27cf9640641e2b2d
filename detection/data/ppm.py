"""Reads PPM, PGM and PBM files only if their header is short: Pillow reads a header of any length byte by byte."""

from __future__ import annotations

import re
from typing import IO

from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile

__all__ = ["BOUNDED_PPM"]

BOUNDED_PPM = "BOUNDED_PPM"  # a format for Pillow's ``open``
MAX_HEADER = 1 << 16  # bytes
MAX_COMMENTS = 1000  # in a file of written-out numbers, which is copied for each
COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
WRITTEN_OUT = (b"P1", b"P2", b"P3")


def _open(file: IO[bytes], name: str | bytes) -> PpmImageFile:
    start = file.read(MAX_HEADER)
    if len(start) == MAX_HEADER and len(COMMENT.sub(b" ", start).split()) < 5:  # kind, width, height, maximum, pixels
        file.close()
        raise ValueError(f"its header has more than {MAX_HEADER} bytes of comments and blanks")
    if start[:2] in WRITTEN_OUT:
        comments = start.count(b"#")
        while comments <= MAX_COMMENTS and (block := file.read(1 << 20)):
            comments += block.count(b"#")
        if comments > MAX_COMMENTS:
            file.close()
            raise ValueError(f"it has more than {MAX_COMMENTS} comments")
    file.seek(0)
    return PpmImageFile(file, name)


Image.register_open(BOUNDED_PPM, _open, lambda prefix: prefix.startswith(b"P"))
