"""Finds images that can't be used before the first step, and leaves them out where the card allows it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from detection.data.images import check_header, read_image
from detection.data.index import AnnotationIndex
from detection.data.kept import kept_file, store, taken, use
from detection.data.problems import Problem

__all__ = ["usable_images"]

THREADS = 16  # reading a header waits for the disk; decoding runs in C
LEAST_IMAGES = 2_000  # smaller sets are checked in 0.2 s, so nothing is cached
PART = 64  # images per task of a thread
KIND = "image that can't be used"


def usable_images(
    index: AnnotationIndex, bad_images: Literal["error", "drop"]
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the images of ``index`` that can be used, and a Problem for each of the others.

    Args:
        index: the images.
        bad_images: "error" checks headers and last bytes, 0.1 ms per image; an image damaged in between raises when
            it is decoded.  "drop" decodes every image, 3 ms per COCO image, so that none stops the run later.
            In a large set, files that passed in an earlier run and have not changed are not checked again.
    """
    decode = bad_images == "drop"
    reasons = _known_reasons(index, decode=decode)
    severity = "dropped" if decode else "error"
    problems = [Problem(severity, KIND, index.paths[row], reason) for row, reason in reasons.items()]
    rows = torch.tensor([row for row in range(len(index)) if row not in reasons] if problems else [], dtype=torch.int64)
    return (index.take(rows) if problems else index), problems


def _known_reasons(index: AnnotationIndex, *, decode: bool) -> dict[int, str]:
    """Returns ``_reasons`` of the images of ``index`` without reopening files that passed before.

    A file counts as unchanged if its name, size and times are, a check that takes a fiftieth of the time.
    """
    rows = range(len(index))
    if len(index) < LEAST_IMAGES:
        return _reasons(index, rows, decode=decode)
    files = [index.paths.characters, index.paths.ends, index.sizes, index.apply_exif, _stamps(index)]
    path = kept_file(".json", "images that can't be used", decode, files)
    if path is None:
        return _reasons(index, rows, decode=decode)
    with taken(path):
        with suppress(OSError, ValueError, TypeError):  # none, or a broken one
            rows = [row for row in json.loads(path.read_bytes()) if row in rows]
            use(path)
        reasons = _reasons(index, rows, decode=decode)
        if len(rows) == len(index):
            with suppress(OSError):  # the cache folder can't be written
                store(path, lambda temporary: temporary.write_text(json.dumps([*reasons]), encoding="utf-8"))
    return reasons


def _stamps(index: AnnotationIndex) -> Tensor:
    """Returns size and times (N, 3) of the files of all images and label images, -1 for a missing file."""
    found, maps = list[tuple[int, int, int]](), index.label_maps
    for path in (*index.paths.all(), *(() if maps is None else maps.files.all())):
        try:
            file = os.stat(path)  # noqa: PTH116  # a Path of each takes longer than the system does
        except (OSError, ValueError):
            found.append((-1, -1, -1))
        else:
            found.append((file.st_size, file.st_mtime_ns, file.st_ctime_ns))
    return torch.tensor(found, dtype=torch.int64)


def _reasons(index: AnnotationIndex, rows: Sequence[int], *, decode: bool) -> dict[int, str]:
    """Returns, by row, why images among ``rows`` can't be used; without ``decode`` only headers are checked."""

    def look(start: int) -> list[tuple[int, str]]:
        return [(row, _reason(index, row, decode=decode)) for row in rows[start : start + PART]]

    with ThreadPoolExecutor(THREADS) as pool:
        return {row: why for part in pool.map(look, range(0, len(rows), PART)) for row, why in part if why}


def _reason(index: AnnotationIndex, row: int, *, decode: bool) -> str:
    """Returns why image ``row`` can't be used; empty if no check failed."""
    height, width = index.sizes[row].tolist()
    path, apply_exif = index.paths[row], bool(index.apply_exif[row])
    try:
        if decode:
            read_image(path, size=(height, width), apply_exif=apply_exif, thorough=True)
            if index.label_maps is not None:
                index.label_maps.read(row, (height, width))
        else:
            check_header(path, size=(height, width), apply_exif=apply_exif)
            if index.label_maps is not None:
                index.label_maps.check(row, (height, width))
    except ValueError as error:
        return str(error)
    return ""
