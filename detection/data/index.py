"""The annotations of a data set in packed arrays, which worker processes share instead of copying.

A Python object per box would be copied into every worker as its reference counts change; a tensor is not.
Shapes: N images, M objects of all images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.data.images import read_image
from detection.data.problems import listed
from detection.masks import RLE, decode, empty_rle
from detection.structures import Target

__all__ = ["NO_MASKS", "AnnotationIndex", "PackedStrings"]

NO_MASKS = (
    "the data set has no masks, or they were not read; COCO files need `segmentation`, and the split of a VOC card "
    "`instances: SegmentationObject`"
)


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """A sequence of strings in two tensors."""

    characters: Tensor  # uint8, all strings one after the other
    ends: Tensor  # (N,) int64

    @classmethod
    def concatenate(cls, parts: Sequence[PackedStrings]) -> Self:
        offsets = [0, *torch.tensor([len(part.characters) for part in parts]).cumsum(0).tolist()]
        return cls(
            torch.cat([part.characters for part in parts]),
            torch.cat([part.ends + offset for part, offset in zip(parts, offsets[:-1], strict=True)]),
        )

    @classmethod
    def pack(cls, strings: Sequence[str]) -> Self:
        encoded = [text.encode() for text in strings]
        lengths = torch.tensor([len(text) for text in encoded], dtype=torch.int64)
        joined = bytearray(b"".join(encoded))
        characters = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
        return cls(characters, lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.characters[start : int(self.ends[row])].numpy().tobytes().decode()

    def take(self, rows: Tensor) -> PackedStrings:
        """The strings of ``rows`` (R,)."""
        return self.pack([self[row] for row in rows.tolist()])

    def first(self, count: int) -> PackedStrings:
        """The first ``count`` strings."""
        return PackedStrings(self.characters, self.ends[:count])


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationIndex:
    """Images and objects of one or several data sets with the same classes.

    Boxes are in pixels of the stored image, width = x2 - x1; labels are 0..K-1.
    """

    class_names: tuple[str, ...]  # K
    category_ids: tuple[int, ...]  # (K,) the ids of the data set's own files, for result files
    paths: PackedStrings  # (N,) image files
    image_ids: Tensor  # (N,) int64, unique
    sizes: Tensor  # (N, 2) int32 height, width
    apply_exif: Tensor  # (N,) bool: whether the image is turned as its EXIF tag says
    ends: Tensor  # (N,) int64: image i owns the objects ends[i - 1] .. ends[i]
    boxes: Tensor  # (M, 4) float32
    labels: Tensor  # (M,) int64
    ignore: Tensor  # (M,) bool
    areas: Tensor  # (M,) float32, square pixels: of the mask where the files give it
    masks: PackedStrings | None = None  # (M,) counts of their RLE, without a pixel if unknown; None: not read
    has_ground_truth: bool = True  # False: of a part of the images the objects are unknown, as of challenges' test sets

    def __len__(self) -> int:
        return len(self.ends)

    def objects(self, row: int) -> slice:
        """Where the objects of image ``row`` stand."""
        return slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))

    def image(self, row: int) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) of image ``row``, RGB, as ``read_image`` gives them.

        Raises:
            ImageError: the file can't be read or is of another size than its annotation says.
        """
        return read_image(self.paths[row], size=self._size(row), apply_exif=bool(self.apply_exif[row]))

    def target(self, row: int, *, masks: bool = False) -> Target:
        """The objects of image ``row``, in pixels of the stored image, with their ``masks`` on request.

        An object whose mask the files do not give has one without a pixel.
        """
        rows = self.objects(row)
        return Target(
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            ignore=self.ignore[rows],
            masks=decode(self.rles(row), self._size(row)) if masks else None,
        )

    def rles(self, row: int) -> tuple[RLE, ...]:
        """The masks of the objects of image ``row``, in pixels of the stored image.

        Raises:
            ValueError: the masks were not read.
        """
        if self.masks is None:
            raise ValueError(NO_MASKS)
        rows, size = self.objects(row), [*self._size(row)]
        return tuple({"size": size, "counts": self.masks[number].encode()} for number in range(rows.start, rows.stop))

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self.sizes[row].tolist()
        return height, width

    def first(self, count: int) -> AnnotationIndex:
        """The first ``count`` images and their objects."""
        count = min(count, len(self))
        objects = slice(int(self.ends[count - 1]) if count else 0)
        return replace(
            self,
            paths=self.paths.first(count),
            image_ids=self.image_ids[:count],
            sizes=self.sizes[:count],
            apply_exif=self.apply_exif[:count],
            ends=self.ends[:count],
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            ignore=self.ignore[objects],
            areas=self.areas[objects],
            masks=None if self.masks is None else self.masks.first(objects.stop),
        )

    def num_wanted(self) -> Tensor:
        """How many objects (N,) each image has that are not ignored."""
        counted = torch.cat([torch.zeros(1, dtype=torch.int64), (~self.ignore).cumsum(0)])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.ends[:-1]])
        return counted[self.ends] - counted[starts]

    @classmethod
    def concatenate(cls, parts: Sequence[AnnotationIndex]) -> AnnotationIndex:
        """All images of ``parts``; image ids that occur twice are replaced by 1..N.

        If only some parts have masks, those of the others have no pixel.

        Raises:
            ValueError: no parts, or parts with different classes.
        """
        if not parts:
            raise ValueError("no data set given")
        first = parts[0]
        for part in parts[1:]:
            if part.class_names != first.class_names:
                raise ValueError(
                    f"data sets with different classes can't be joined: {listed(first.class_names)}; and "
                    f"{listed(part.class_names)}; they differ in {listed(_difference(first, part))}"
                )
        if len(parts) == 1:
            return first
        offsets = [0, *torch.tensor([len(part.boxes) for part in parts]).cumsum(0).tolist()]
        same_ids = all(part.category_ids == first.category_ids for part in parts)
        image_ids = torch.cat([part.image_ids for part in parts])
        if len(image_ids.unique()) < len(image_ids):
            image_ids = torch.arange(1, len(image_ids) + 1)
        return cls(
            class_names=first.class_names,
            category_ids=first.category_ids if same_ids else tuple(range(1, len(first.class_names) + 1)),
            paths=PackedStrings.concatenate([part.paths for part in parts]),
            image_ids=image_ids,
            sizes=torch.cat([part.sizes for part in parts]),
            apply_exif=torch.cat([part.apply_exif for part in parts]),
            ends=torch.cat([part.ends + offset for part, offset in zip(parts, offsets[:-1], strict=True)]),
            boxes=torch.cat([part.boxes for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            ignore=torch.cat([part.ignore for part in parts]),
            areas=torch.cat([part.areas for part in parts]),
            masks=_concatenate_masks(parts),
            has_ground_truth=all(part.has_ground_truth for part in parts),
        )


def _difference(one: AnnotationIndex, other: AnnotationIndex) -> list[str]:
    pairs = zip_longest(one.class_names, other.class_names, fillvalue="nothing")
    return [f"{first} and {second}" for first, second in pairs if first != second]


def _concatenate_masks(parts: Sequence[AnnotationIndex]) -> PackedStrings | None:
    if all(part.masks is None for part in parts):
        return None
    return PackedStrings.concatenate([_unknown_masks(part) if part.masks is None else part.masks for part in parts])


def _unknown_masks(index: AnnotationIndex) -> PackedStrings:
    numbers = index.ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    images = zip(index.sizes.tolist(), numbers, strict=True)
    empty = [[empty_rle((height, width))["counts"].decode()] * number for (height, width), number in images]
    return PackedStrings.pack([counts for image in empty for counts in image])
