"""Reads every label map of a data set, lists its problems, and counts the pixels of each class.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.data.label_maps import without_file
from detection.data.problems import Problem, listed
from detection.structures import VOID

__all__ = ["LabelCounts", "check_label_maps"]

MOST_VOID = 0.5  # fraction of all pixels; published data sets have 0.01 to 0.15

Track = Callable[[Iterable["Counted"]], Iterable["Counted"]]
Counted = NDArray[np.int64] | Problem | None  # pixels (256,) of each label; None without a label map


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Pixel counts of the label maps of a split.

    Attributes:
        class_names: (K,).
        pixels: (K,) int64, pixels of each class in all images.
        void: pixels that are not evaluated.
        present: (N, K) bool, whether an image has a pixel of a class.
        labelled: number of images with a readable label map.
    """

    class_names: tuple[str, ...]
    pixels: NDArray[np.int64]
    void: int
    present: NDArray[np.bool_]
    labelled: int

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Class, percent of all pixels and number of images, as text; void comes last."""
        total = max(1, int(self.pixels.sum()) + self.void)
        images = self.present.sum(axis=0).tolist()
        named = zip(self.class_names, self.pixels.tolist(), images, strict=True)
        rows = [(name, f"{100 * count / total:.2f}", f"{of:,}") for name, count, of in named]
        return [*rows, ("void", f"{100 * self.void / total:.2f}", "")]


def check_label_maps(
    index: AnnotationIndex, *, threads: int = 4, track: Track = iter
) -> tuple[LabelCounts, list[Problem]]:
    """Returns the pixels of each class in ``index``, and the problems of its label maps.

    A label image that can't be read, has another size or holds an unknown value is an error; so is a set without any
    label.

    Args:
        index: images with label maps.
        threads: number of label maps read at a time.
        track: wraps the results as they come, to show progress.
    """
    maps = index.label_maps
    assert maps is not None
    count = len(maps.class_names)
    pixels, present = np.zeros(256, np.int64), np.zeros((len(index), count), np.bool_)
    problems, labelled = list[Problem](), 0
    wanted = maps.labelled().tolist()
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda row: _count(index, row) if wanted[row] else None, range(len(index)))
        for row, found in enumerate(track(results)):
            if isinstance(found, Problem):
                problems.append(found)
            elif found is not None:
                labelled += 1
                pixels += found
                present[row] = found[:count] > 0
                if not found[:count].any():
                    image = index.paths[row]
                    file = maps.files[row] or image
                    problems.append(Problem("note", "label map that is void everywhere", file, image, images=(image,)))
    counts = LabelCounts(maps.class_names, pixels[:count], int(pixels[VOID]), present, labelled)
    return counts, problems + _of_all(index, counts)


def _count(index: AnnotationIndex, row: int) -> Counted:
    maps, (height, width) = index.label_maps, index.sizes[row].tolist()
    assert maps is not None
    try:
        return np.bincount(maps.read(row, (height, width)).ravel(), minlength=256)
    except ValueError as error:
        path = index.paths[row]
        file = maps.files[row] or path
        return Problem("error", "label map", file, without_file(error, file), images=(path,))


def _of_all(index: AnnotationIndex, counts: LabelCounts) -> list[Problem]:
    """Returns problems that only the sum over all images shows."""
    if not counts.labelled:
        return []
    folder, problems = str(Path(index.paths[0]).parent), list[Problem]()
    missing = [name for name, own in zip(counts.class_names, counts.pixels.tolist(), strict=True) if not own]
    if missing:
        problems.append(Problem("note", "class without a pixel", folder, listed(missing), len(missing)))
    total = int(counts.pixels.sum()) + counts.void
    if counts.void > MOST_VOID * total:
        detail = (
            f"{100 * counts.void / total:.0f} % of all pixels are void: neither trained on nor judged; look whether "
            "`values` and `void` of the card mean what the files hold"
        )
        problems.append(Problem("note", "mostly void", folder, detail))
    return problems
