"""The label images of a data set: the class of every pixel, and in panoptic sets its segment.

A label image is a PNG of one value a pixel, grey or palette, or in panoptic sets COCO's: the number of a segment is
R + 256 G + 65536 B.

Shapes: N images, H W height and width of an image, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detection.data.images import FORMATS, UNREADABLE, ImageError
from detection.data.packed_strings import PackedStrings
from detection.data.panoptic_files import segment_numbers
from detection.data.problems import listed
from detection.segments import Segment, Segments
from detection.structures import VOID

__all__ = ["LabelMaps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMaps:
    """The label images of N images.

    Attributes:
        class_names: (K,), at most 255.  Of panoptic sets the things come first, in the order of the index's classes.
        files: (N,) paths of the label images; "" where an image has none, and all its pixels are void.
        values: value of a pixel -> label, of label images; VOID for a value that is neither right nor wrong.
            Of panoptic sets, category id of their JSON -> label.
        num_things: how many classes, the first ones, are of countable objects; 0 where nobody says so.
        segments: (N,) of panoptic sets, JSON lists of [id, label, crowd].
    """

    class_names: tuple[str, ...]
    files: PackedStrings
    values: Mapping[int, int]
    num_things: int = 0
    segments: PackedStrings | None = None

    def read(self, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns the label (H, W) of each pixel of image ``row``, which is of ``size`` (height, width).

        Raises:
            ImageError: the file can't be read, is of another size or mode, or holds a value that is no label.
        """
        if not self.files[row]:
            return np.full(size, VOID, np.uint8)
        if self.segments is None:
            file = self.files[row]
            return _looked_up(_read(file, size, ("P", "L", "1")), self.values, file, "value")
        segments = self.read_segments(row, size)
        labels = {0: VOID} | {segment.id: segment.label for segment in segments.found}
        return _looked_up(segments.ids, labels, self.files[row], "segment")

    def read_segments(self, row: int, size: tuple[int, int]) -> Segments:
        """Returns the segments of image ``row`` of a panoptic set, which is of ``size`` (height, width).

        Raises:
            ImageError: the file can't be read, is of another size or mode, or holds a segment that has no class.
        """
        assert self.segments is not None
        found = tuple(
            Segment(int(id_), int(label), bool(crowd)) for id_, label, crowd in json.loads(self.segments[row])
        )
        if not self.files[row]:
            return Segments(np.zeros(size, np.int32), found)
        ids = segment_numbers(_read(self.files[row], size, ("RGB",)))
        present = set(np.unique(ids).tolist())
        unknown = sorted(present - {0} - {segment.id for segment in found})
        if unknown:
            raise ImageError(
                f"{self.files[row]}: segments {listed([str(number) for number in unknown])} are in the image and not "
                "in the JSON file; expected an entry of segments_info for each"
            )
        empty = [str(segment.id) for segment in found if segment.id not in present]
        if empty:
            raise ImageError(
                f"{self.files[row]}: segments {listed(empty)} are in the JSON file and not in the image; expected a "
                "pixel of each"
            )
        return Segments(ids, found)

    def take(self, rows: Tensor) -> Self:
        """Returns the label images of ``rows`` (R,)."""
        segments = None if self.segments is None else self.segments.take(rows)
        return replace(self, files=self.files.take(rows), segments=segments)

    @classmethod
    def concatenate(cls, parts: Sequence[Self | None]) -> Self | None:
        """Returns the label images of all ``parts``; None if none has any.

        Raises:
            ValueError: parts with and without label images, or of different classes or values.
        """
        known = [part for part in parts if part is not None]
        if not known:
            return None
        first = known[0]
        if len(known) < len(parts):
            raise ValueError("data sets with and without label images can't be joined")
        for other in known[1:]:
            if (other.class_names, other.num_things) != (first.class_names, first.num_things):
                raise ValueError(
                    f"label images of different classes can't be joined: {listed(first.class_names)}; and "
                    f"{listed(other.class_names)}"
                )
            if dict(other.values) != dict(first.values) or (other.segments is None) != (first.segments is None):
                raise ValueError("label images of different formats or values can't be joined")
        segments = [part.segments for part in known if part.segments is not None]
        return replace(
            first,
            files=PackedStrings.concatenate([part.files for part in known]),
            segments=PackedStrings.concatenate(segments) if segments else None,
        )


def _read(file: str, size: tuple[int, int], modes: tuple[str, ...]) -> NDArray[np.uint8]:
    """Returns the pixels of ``file``, (H, W) or (H, W, 3)."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if (image.height, image.width) != size:
                raise ValueError(f"it is {image.width}x{image.height} pixels, its image {size[1]}x{size[0]}")
            if image.mode not in modes:
                raise ValueError(f"its mode is {image.mode}, expected {' or '.join(modes)}")
            return np.asarray(image.convert("L") if image.mode == "1" else image)
    except UNREADABLE as error:
        raise ImageError(f"label image {file}: {error}") from error


def _looked_up(values: NDArray[np.integer], labels: Mapping[int, int], file: str, what: str) -> NDArray[np.uint8]:
    """Returns the label of each of ``values`` (H, W)."""
    present, places = np.unique(values, return_inverse=True)
    unknown = [str(value) for value in present.tolist() if value not in labels]
    if unknown:
        raise ImageError(
            f"label image {file}: {what} {listed(unknown)} is not among the labels {min(labels)} to {max(labels)} of "
            "its card"
        )
    table = np.array([labels[value] for value in present.tolist()], np.uint8)
    return table[places].reshape(values.shape)
