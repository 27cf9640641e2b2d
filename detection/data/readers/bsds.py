"""Reads boundaries that people drew: BSDS500's images, with a MATLAB file of several annotators' maps for each.

Every annotator becomes an object, the whole image, whose mask is the map; so all that moves masks moves boundaries too.

Source: Arbeláez et al. 2011, "Contour Detection and Hierarchical Image Segmentation", the layout of BSDS500.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.readers.image_files import images_below
from detection.data.readers.labelled import LabelledImage, LabelledObject, Labels

__all__ = ["BOUNDARY", "BSDSSplit", "parse_bsds"]

BOUNDARY = "boundary"

# What SciPy raises for files that are damaged or of another kind.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, NotImplementedError, AttributeError, MemoryError)


@checked
class BSDSSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    images: str  # folder
    boundaries: str  # folder of a .mat of the same name for each image


def parse_bsds(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``: its images in the order of their names.

    Raises:
        ValueError: ``entry`` is no description of such a split.
    """
    split = build_dataclass(BSDSSplit, entry)
    labels = Labels(declared=(BOUNDARY,))
    for path in images_below(folder / split.images):
        file = folder / split.boundaries / f"{path.stem}.mat"
        if not file.is_file():
            labels.say("labels that are missing", file, f"it belongs to {path}")
            continue
        try:
            maps = _read(file)
        except _UNREADABLE as error:
            labels.say("labels that can't be read", file, f"{type(error).__name__}: {error}")
            continue
        sizes = {drawn.shape for drawn in maps}
        if len(sizes) != 1 or len(maps[0].shape) != 2:
            labels.say("labels that can't be read", file, f"annotators' maps have the sizes {sorted(sizes)}, not one")
            continue
        height, width = maps[0].shape
        objects = [
            LabelledObject(BOUNDARY, (0.0, 0.0, float(width), float(height)), f"annotator {number}", mask=_code(drawn))
            for number, drawn in enumerate(maps, start=1)
        ]
        labels.images.append(LabelledImage(path, file, (height, width), objects))
    return labels


def _read(file: Path) -> list[np.ndarray]:
    """Returns the boundaries (H, W) bool of each annotator."""
    cells = loadmat(file)["groundTruth"]
    return [np.asarray(cell["Boundaries"][0, 0]) > 0 for cell in cells.flat]


def _code(drawn: np.ndarray) -> Any:
    return coco_mask.encode(np.asfortranarray(drawn, dtype=np.uint8))
