"""Finds duplicate images: identical files, and near-duplicates.

Near-duplicates have similar perceptual hashes and similar small versions: re-encoded, resized or brightened images, and
neighbouring frames of a still scene.  Crops and flipped images are not found.

Shapes: N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detection.data.images import FORMATS, MAX_PIXELS, UNREADABLE
from detection.files import require_file

__all__ = ["Look", "Pair", "copies_between", "look_at", "near_copies_between", "pairs_alike"]

BITS = 64  # of a perceptual hash
MOST_BITS = 6  # different bits in the hashes of near-duplicates
SIDE = 32  # pixels of the small version
MOST_GREY = 8.0  # mean difference of the small versions of near-duplicates, of 255
FLAT = 4.0  # standard deviation of greys below which an image is too uniform to compare
COMPARED = 1 << 24  # pairs compared at a time


@dataclass(frozen=True, slots=True)
class Look:
    """The features by which one image is compared.

    Attributes:
        content: SHA-256 of the file; None if it can't be read.
        bits: (64,) bool, perceptual hash; None if the image can't be read or is uniform.
        small: (32, 32) grey values; None as for ``bits``.
    """

    content: bytes | None
    bits: NDArray[np.bool_] | None
    small: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two duplicate or near-duplicate images.

    Attributes:
        one: row of the first image.
        other: row of the second image.
        same: whether the files are identical, byte for byte.
    """

    one: int
    other: int
    same: bool


def look_at(
    paths: Sequence[str],
    *,
    threads: int = 4,
    track: Callable[[Iterable[Look]], Iterable[Look]] = lambda looks: looks,
) -> list[Look]:
    """Returns the features of the images at ``paths``; an unreadable file matches no other.

    Args:
        paths: image files.
        threads: number of images read at a time.
        track: wraps the results as they come, to show progress.
    """
    with ThreadPoolExecutor(threads) as pool:
        return [*track(pool.map(_look, paths))]


def pairs_alike(looks: Sequence[Look]) -> list[Pair]:
    """Returns the pairs of duplicates and near-duplicates, by rows; three copies give two pairs with the first."""
    first, pairs = dict[bytes, int](), list[Pair]()
    for row, look in enumerate(looks):
        if look.content is not None:
            if look.content in first:
                pairs.append(Pair(first[look.content], row, same=True))
            first.setdefault(look.content, row)
    rows = [row for row in first.values() if looks[row].bits is not None]
    pairs += [Pair(rows[i], rows[j], same=False) for i, j in _near([looks[row] for row in rows])]
    return sorted(pairs, key=lambda pair: (pair.one, pair.other))


def copies_between(ones: Mapping[str, int], others: Mapping[str, int]) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns (one, other) for each of ``ones`` that is identical to one of ``others``, and the unreadable files.

    Both arguments map path -> size in bytes.  Only files of equal size are read, each once.
    """
    own = {path: size for path, size in ones.items() if path not in others}
    sizes = {*own.values()} & {*others.values()}
    contents = _contents([path for files in (own, others) for path, size in files.items() if size in sizes])
    first = dict[bytes | None, str]()
    for path in others:
        first.setdefault(contents.get(path), path)
    copies = list[tuple[str, str]]()
    for path in ones:
        content = contents.get(path)
        if path in others:
            copies.append((path, path))
        elif content is not None and content in first:
            copies.append((path, first[content]))
    return copies, sorted(path for path, content in contents.items() if content is None)


def near_copies_between(ones: Sequence[Look], others: Sequence[Look]) -> list[tuple[int, int]]:
    """Returns the rows (i, j) of near-duplicates in ``ones`` and ``others``, without identical files."""
    left, right = ([row for row, look in enumerate(looks) if look.bits is not None] for looks in (ones, others))
    pairs = _near([*(ones[row] for row in left), *(others[row] for row in right)], apart=len(left))
    rows = ((left[i], right[j - len(left)]) for i, j in pairs)
    return [(i, j) for i, j in rows if ones[i].content != others[j].content]


def _contents(paths: Collection[str], threads: int = 4) -> dict[str, bytes | None]:
    """Returns the SHA-256 of each file; None if it can't be read."""
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(paths, pool.map(_content_or_none, paths), strict=True))


def _content_or_none(path: str) -> bytes | None:
    try:
        return _content(path)
    except UNREADABLE:
        return None


def _content(path: str) -> bytes:
    require_file(Path(path))
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _look(path: str) -> Look:
    try:
        content = _content(path)
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return Look(content, None, None)
            image.draft("L", (8 * SIDE, 8 * SIDE))  # decodes a JPEG at about this size
            grey = ImageOps.exif_transpose(image).convert("L")
            bits = imagehash.phash(grey).hash.reshape(-1)
            small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    except UNREADABLE:
        return Look(None, None, None)
    return Look(content, bits, small) if small.std() >= FLAT else Look(content, None, None)


def _near(looks: Sequence[Look], *, apart: int | None = None) -> list[tuple[int, int]]:
    """Returns near-duplicate pairs (i, j), i < j, of ``looks``; with ``apart`` only pairs i < ``apart`` <= j."""
    if len(looks) < 2:
        return []
    signs = np.array([look.bits for look in looks], dtype=np.float32) * 2 - 1
    pairs = list[tuple[int, int]]()
    rows, end = max(1, COMPARED // len(signs)), len(signs) if apart is None else apart
    for start in range(0, end, rows):
        column = start if apart is None else apart
        # 64 minus twice the number of different bits
        agreeing = signs[start : min(start + rows, end)] @ signs[column:].T
        for i, j in np.argwhere(agreeing >= BITS - 2 * MOST_BITS).tolist():
            one, other = looks[start + i].small, looks[column + j].small
            if start + i >= column + j or one is None or other is None:
                continue
            if _difference(one, other) <= MOST_GREY:
                pairs.append((start + i, column + j))
    return pairs


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Returns the mean absolute difference of greys after subtracting each image's mean."""
    return float(np.abs((one - one.mean()) - (other - other.mean())).mean())
