"""Finds images that can't be used before the first step, and leaves them out where the card allows it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from detection.data.images import check_header, read_image
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem

__all__ = ["usable_images"]

THREADS = 16  # a header is a wait for the disk; decoding runs in C
PART = 64  # images that a thread takes at a time
KIND = "image that can't be used"


def usable_images(
    index: AnnotationIndex, bad_images: Literal["error", "drop"]
) -> tuple[AnnotationIndex, list[Problem]]:
    """The images of ``index`` that can be used, and a Problem for each of the others.

    Args:
        index: the images.
        bad_images: "error" looks at headers and last bytes, 0.1 ms an image; one that is damaged within raises when
            it is decoded.  "drop" decodes all images, 3 ms each of COCO's, since none may stop the run later.
    """
    decode = bad_images == "drop"

    def look(start: int) -> list[str]:
        return [_reason(index, row, decode=decode) for row in range(start, min(start + PART, len(index)))]

    with ThreadPoolExecutor(THREADS) as pool:
        reasons = [reason for part in pool.map(look, range(0, len(index), PART)) for reason in part]
    severity = "dropped" if decode else "error"
    problems = [Problem(severity, KIND, index.paths[row], reason) for row, reason in enumerate(reasons) if reason]
    rows = torch.tensor([row for row, reason in enumerate(reasons) if not reason], dtype=torch.int64)
    return (index.take(rows) if problems else index), problems


def _reason(index: AnnotationIndex, row: int, *, decode: bool) -> str:
    """Why image ``row`` can't be used; empty if it can, as far as was looked."""
    height, width = index.sizes[row].tolist()
    path, apply_exif = index.paths[row], bool(index.apply_exif[row])
    try:
        if decode:
            read_image(path, size=(height, width), apply_exif=apply_exif, thorough=True)
        else:
            check_header(path, size=(height, width), apply_exif=apply_exif)
    except ValueError as error:
        return str(error)
    return ""
