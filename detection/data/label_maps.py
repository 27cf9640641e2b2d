"""The label images of a data set: the class of every pixel, and in panoptic sets its segment.

A label image is a grey or palette PNG with one value per pixel.  Panoptic sets have COCO's PNGs, where the number of a
segment is R + 256 G + 65536 B.  Label maps can also be made from the masks of objects.

Shapes: N images, H W height and width of an image, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detection.data.images import FORMATS, UNREADABLE, ImageError
from detection.data.packed_strings import PackedStrings
from detection.data.panoptic_files import segment_numbers
from detection.data.problems import listed
from detection.files import require_file
from detection.masks import decode
from detection.segments import Segment, Segments
from detection.structures import VOID

__all__ = ["LACKING", "LabelMaps", "without_file"]

LACKING = (
    "the data set has no label maps; they need a card of the format label_images or coco_panoptic, or with the key "
    "`label_maps: polygons` of the format coco, whose files have `segmentation`"
)
MODES = ("P", "L", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMaps:
    """The label images of N images.

    Attributes:
        class_names: (K,), at most 255.  In panoptic sets the things come first, in the order of the index's classes.
        files: (N,) paths of the label images; "" for an image without one, whose pixels are all void.
        values: pixel value -> label, VOID for a value that is not evaluated.  In panoptic sets, category id of the
            JSON file -> label.
        num_things: number of classes of countable objects, which come first; 0 if unknown.
        segments: (N,) for panoptic sets, JSON lists of [id, label, crowd].
        objects: (N,) for label maps made from masks, JSON lists of [label, counts of the compressed run-length code].
            Pixels of two masks are VOID, pixels of none have label 0.
    """

    class_names: tuple[str, ...]
    files: PackedStrings
    values: Mapping[int, int]
    num_things: int = 0
    segments: PackedStrings | None = None
    objects: PackedStrings | None = None

    def labelled(self) -> Tensor:
        """Returns whether each image (N,) bool has a label map."""
        if self.objects is not None:
            return torch.ones(len(self.files), dtype=torch.bool)
        return torch.diff(self.files.ends, prepend=self.files.ends.new_zeros(1)) > 0

    def read(self, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns the label (H, W) of each pixel of image ``row``, whose ``size`` is (height, width).

        Raises:
            ImageError: the file can't be read, has another size or mode, or holds a value that is no label.
        """
        if self.objects is not None:
            return _drawn(json.loads(self.objects[row]), size)
        if not self.files[row]:
            return np.full(size, VOID, np.uint8)
        if self.segments is None:
            return self._labels_of(self.stored(row, size), self.files[row])
        return self.read_segments(row, size).labels

    def check(self, row: int, size: tuple[int, int]) -> None:
        """Checks the header of the label image of image ``row``, whose ``size`` is (height, width).

        Raises:
            ImageError: the file can't be read, or is of another size or mode.
        """
        if self.files[row]:
            with _opened(self.files[row], size, MODES if self.segments is None else ("RGB",)):
                pass

    def stored(self, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns the values (H, W) in the label image of image ``row``, whose ``size`` is (height, width).

        Raises:
            ImageError: the file can't be read, or is of another size or mode.
        """
        return _read(self.files[row], size, MODES)

    def _labels_of(self, values: NDArray[np.uint8], file: str) -> NDArray[np.uint8]:
        table, known = np.zeros(256, np.uint8), np.zeros(256, np.bool_)
        known[[*self.values]], table[[*self.values]] = True, [*self.values.values()]
        if not known.take(values).all():
            unknown = [str(value) for value in np.unique(values).tolist() if not known[value]]
            what = f"value {unknown[0]} is" if len(unknown) == 1 else f"values {listed(unknown)} are"
            raise ImageError(
                f"label image {file}: {what} not among those of its card ({_ranges(self.values)}); "
                "add it to `values` or `void` of the card, or mend the file (a palette image saved as grey holds "
                "brightness, not classes)"
            )
        return table.take(values)  # half the time of table[values]

    def read_segments(self, row: int, size: tuple[int, int]) -> Segments:
        """Returns the segments of image ``row`` of a panoptic set; ``size`` is its (height, width).

        Raises:
            ImageError: the file can't be read, has another size or mode, or holds a segment without a class.
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
        objects = None if self.objects is None else self.objects.take(rows)
        return replace(self, files=self.files.take(rows), segments=segments, objects=objects)

    @classmethod
    def concatenate(cls, parts: Sequence[Self | None]) -> Self | None:
        """Returns the label images of all ``parts``; None if no part has any.

        Raises:
            ValueError: only some parts have label images, or their classes or values differ.
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
            if dict(other.values) != dict(first.values) or _kind(other) != _kind(first):
                raise ValueError("label images of different formats or values can't be joined")
        segments = [part.segments for part in known if part.segments is not None]
        objects = [part.objects for part in known if part.objects is not None]
        return replace(
            first,
            files=PackedStrings.concatenate([part.files for part in known]),
            segments=PackedStrings.concatenate(segments) if segments else None,
            objects=PackedStrings.concatenate(objects) if objects else None,
        )


def _read(file: str, size: tuple[int, int], modes: tuple[str, ...]) -> NDArray[np.uint8]:
    """Returns the pixels of ``file``, (H, W) or (H, W, 3)."""
    with _opened(file, size, modes) as image:
        return np.asarray(image.convert("L") if image.mode == "1" else image)


@contextmanager
def _opened(file: str, size: tuple[int, int], modes: tuple[str, ...]) -> Iterator[Image.Image]:
    """Opens ``file`` and checks its header.

    Raises:
        ImageError: the file can't be read, or has another size or mode.
    """
    try:
        require_file(file)
        with Image.open(file, formats=FORMATS) as image:
            if (image.height, image.width) != size:
                raise ValueError(
                    f"it is {image.width}x{image.height} pixels, its image {size[1]}x{size[0]}; save it at that size"
                )
            if image.mode not in modes:
                raise ValueError(f"its mode is {image.mode}, expected {' or '.join(modes)}{_repair(image.mode, modes)}")
            yield image
    except UNREADABLE as error:
        raise ImageError(f"label image {file}: {error}") from error


def _repair(mode: str, modes: tuple[str, ...]) -> str:
    """Returns the repair, which ends a message about a file of ``mode``."""
    if modes != MODES:
        return "; save the number of each pixel's segment as R + 256 G + 65536 B"
    if mode.startswith("I"):
        return ", 8 bits a pixel: save it anew with values 0 to 255"
    return (
        ", the value of a class in each pixel; of an image of colours make one by its colour table, such as with "
        "numpy: labels[(image == colour).all(axis=-1)] = value"
    )


def without_file(error: ValueError, file: str) -> str:
    """Returns the text of ``error`` without the name of its ``file``, for which a Problem has a field."""
    return str(error).removeprefix("label image ").removeprefix(f"{file}: ")


def _ranges(values: Collection[int]) -> str:
    """Returns numbers as text, such as "0-20, 255"."""
    parts, numbers = list[list[int]](), sorted(values)
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return listed([str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts])


def _kind(maps: LabelMaps) -> tuple[bool, bool]:
    return maps.segments is None, maps.objects is None


def _drawn(objects: Sequence[tuple[int, str]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns the label map (H, W) of ``objects``; pixels of two are VOID, as in torchvision's references."""
    labels, covered = np.zeros(size, np.uint8), np.zeros(size, np.bool_)
    for label, counts in objects:
        mask = decode([{"size": [*size], "counts": counts.encode()}], size)[0].numpy()
        labels[mask] = label
        labels[mask & covered] = VOID
        covered |= mask
    return labels
