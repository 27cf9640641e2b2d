"""Reads human boundary annotations: BSDS500's images, each with a MATLAB file of several annotators' boundary maps.

Every annotator becomes an object whose box is the whole image and whose mask is the boundary map, so that transforms of
masks also transform boundaries.

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
from detection.data.readers.frames import require_folder
from detection.data.readers.image_files import images_below
from detection.data.readers.labelled import LabelledImage, LabelledObject, Labels

__all__ = ["BOUNDARY", "BSDSSplit", "parse_bsds"]

BOUNDARY = "boundary"

# Errors of SciPy for damaged files or other formats.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, NotImplementedError, AttributeError, MemoryError)


@checked
class BSDSSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    images: str  # folder
    boundaries: str  # folder with a .mat file of the same name for each image


def parse_bsds(folder: Path, entry: dict[str, Any], classes: tuple[str, ...]) -> Labels:
    """Returns the labels of the split ``entry``, with images in the order of their names.

    Raises:
        ValueError: ``entry`` does not describe such a split, or its folder of images is missing.
    """
    split = build_dataclass(BSDSSplit, entry)
    require_folder(folder / split.images)
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
    """Returns the boundary map (H, W) bool of each annotator."""
    cells = loadmat(file)["groundTruth"]
    return [np.asarray(cell["Boundaries"][0, 0]) > 0 for cell in cells.flat]


def _code(drawn: np.ndarray) -> Any:
    return coco_mask.encode(np.asfortranarray(drawn, dtype=np.uint8))
