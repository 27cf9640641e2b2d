"""The annotations of a data set in packed arrays, which worker processes share instead of copying.

A Python object per box would be copied into every worker as its reference counts change; a tensor is not.
Shapes: N images, M objects of all images together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.data.images import read_image
from detection.data.label_maps import LACKING, LabelMaps
from detection.data.packed_strings import PackedStrings, span, starts
from detection.data.problems import listed
from detection.fields.table import FIELDS, Field, fields_of
from detection.files import digest
from detection.keypoints import KeypointSpec
from detection.structures import Target

__all__ = ["AnnotationIndex", "index_digest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationIndex:
    """The images and objects of one or several data sets with the same classes.

    Boxes are in pixels of the stored image, width = x2 - x1; labels are 0..K-1.
    """

    class_names: tuple[str, ...]  # K
    category_ids: tuple[int, ...]  # (K,) category ids of the data set's files, for result files
    paths: PackedStrings  # (N,) image files
    image_ids: Tensor  # (N,) int64, unique
    sizes: Tensor  # (N, 2) int32 height, width
    apply_exif: Tensor  # (N,) bool: whether the orientation tag is applied
    ends: Tensor  # (N,) int64: image i owns the objects ends[i - 1] .. ends[i]
    boxes: Tensor  # (M, 4) float32
    labels: Tensor  # (M,) int64
    ignore: Tensor  # (M,) bool
    areas: Tensor  # (M,) float32, square pixels; mask areas where the files give them
    fields: Mapping[str, PackedStrings] = field(default_factory=dict)  # (M,) each, as packed by FIELDS; what was read
    keypoints: KeypointSpec | None = None  # of the objects, where they were read
    label_maps: LabelMaps | None = None  # of the images, where the data set has them
    # (U, 2) int64 image, label: classes that a challenge does not evaluate on an image
    unjudged: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    has_ground_truth: bool = True  # False: some images have no annotations, as in test sets of challenges

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def operations(self) -> dict[str, Field]:
        """Returns the table of fields, with the data set's own keypoints."""
        return fields_of(self.keypoints)

    def objects(self, row: int) -> slice:
        """Returns the slice of the objects of image ``row``."""
        return slice(*span(self.ends, row))

    def image(self, row: int) -> NDArray[np.uint8]:
        """Returns the RGB pixels (H, W, 3) of image ``row``.

        Raises:
            ImageError: the file can't be read, or is not of its annotated size.
        """
        return read_image(self.paths[row], size=self._size(row), apply_exif=bool(self.apply_exif[row]))

    def target(self, row: int, *, fields: Collection[str] = (), label_maps: bool = False) -> Target:
        """Returns the objects of image ``row`` with the given ``fields``, in pixels of the stored image.

        With ``label_maps`` the target also has the image's label map.

        Raises:
            ValueError: one of ``fields`` was not read, or the data set has no label maps.
            ImageError: a label image can't be read or does not fit the image.
        """
        self.require(fields, label_maps=label_maps)
        rows, size = self.objects(row), self._size(row)
        return Target(
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            ignore=self.ignore[rows],
            label_map=self._label_map(row) if label_maps else None,
            **{name: self.operations[name].to_tensor(self._unpacked(name, row), size) for name in fields},
        )

    def stored(self, name: str, row: int) -> Any:
        """Returns the field ``name`` of image ``row`` in the form of records, in pixels of the stored image.

        Returns None if the field was not read.  A data set without objects has every field, as there was nothing to
        read.
        """
        if name not in self.fields:
            return None if len(self.boxes) else self.operations[name].unpack([], self._size(row))
        return self._unpacked(name, row)

    def require(self, fields: Collection[str], *, label_maps: bool = False) -> None:
        """Checks that the ``fields``, and on request ``label_maps``, were read.

        Raises:
            ValueError: one was not read; the message says what the data set's files need.
        """
        if label_maps and self.label_maps is None:
            raise ValueError(LACKING)
        for name in fields:
            if name not in self.fields:
                raise ValueError(FIELDS[name].lacking)

    def _label_map(self, row: int) -> Tensor:
        assert self.label_maps is not None
        return torch.from_numpy(self.label_maps.read(row, self._size(row)))

    def _unpacked(self, name: str, row: int) -> Any:
        rows, packed = self.objects(row), self.fields[name]
        raw = [packed.bytes_of(i) for i in range(rows.start, rows.stop)]
        return self.operations[name].unpack(raw, self._size(row))

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self.sizes[row].tolist()
        return height, width

    def first(self, count: int) -> AnnotationIndex:
        """Returns the first ``count`` images and their objects."""
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
            fields={name: packed.first(objects.stop) for name, packed in self.fields.items()},
            unjudged=self.unjudged[self.unjudged[:, 0] < count],
            label_maps=None if self.label_maps is None else self.label_maps.take(torch.arange(count)),
        )

    def take(self, rows: Tensor) -> AnnotationIndex:
        """Returns the images ``rows`` (R,) int64, each at most once, with their objects."""
        rows = rows.to(torch.int64)
        counts = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        starts, wanted = (self.ends - counts)[rows], counts[rows]
        ends = wanted.cumsum(0)
        objects = torch.arange(int(wanted.sum())) + (starts - ends + wanted).repeat_interleave(wanted)
        places = torch.full((len(self),), -1, dtype=torch.int64)
        places[rows] = torch.arange(len(rows))
        unjudged = self.unjudged[places[self.unjudged[:, 0]] >= 0]
        return replace(
            self,
            paths=self.paths.take(rows),
            image_ids=self.image_ids[rows],
            sizes=self.sizes[rows],
            apply_exif=self.apply_exif[rows],
            ends=ends,
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            ignore=self.ignore[objects],
            areas=self.areas[objects],
            fields={name: packed.take(objects) for name, packed in self.fields.items()},
            unjudged=torch.stack([places[unjudged[:, 0]], unjudged[:, 1]], dim=1),
            label_maps=None if self.label_maps is None else self.label_maps.take(rows),
        )

    def without_objects(self) -> AnnotationIndex:
        """Returns the images with their label maps only; the classes become those of the label maps."""
        assert self.label_maps is not None
        names, nothing = self.label_maps.class_names, slice(0, 0)
        return replace(
            self,
            class_names=names,
            category_ids=tuple(range(len(names))),
            ends=torch.zeros_like(self.ends),
            boxes=self.boxes[nothing],
            labels=self.labels[nothing],
            ignore=self.ignore[nothing],
            areas=self.areas[nothing],
            fields={},
            unjudged=self.unjudged[nothing],
        )

    def unjudged_labels(self, row: int) -> Tensor:
        """Returns the labels (L,) that are not evaluated on image ``row``."""
        return self.unjudged[self.unjudged[:, 0] == row, 1]

    def num_wanted(self) -> Tensor:
        """Returns the number (N,) of objects of each image that are not ignored."""
        counted = torch.cat([torch.zeros(1, dtype=torch.int64), (~self.ignore).cumsum(0)])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.ends[:-1]])
        return counted[self.ends] - counted[starts]

    @classmethod
    def concatenate(cls, parts: Sequence[AnnotationIndex]) -> AnnotationIndex:
        """Returns all images of ``parts``; if image ids collide, they are replaced by 1..N.

        If only some parts have a field, its values are unknown for the objects of the others.

        Raises:
            ValueError: there are no parts, or their classes or keypoints differ.
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
        keypoints = _shared_keypoints(parts)
        offsets = starts([len(part.boxes) for part in parts])
        images = starts([len(part) for part in parts])
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
            ends=torch.cat([part.ends + offset for part, offset in zip(parts, offsets, strict=True)]),
            boxes=torch.cat([part.boxes for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            ignore=torch.cat([part.ignore for part in parts]),
            areas=torch.cat([part.areas for part in parts]),
            fields={
                name: _concatenate_field(name, parts, keypoints)
                for name in FIELDS
                if any(name in part.fields for part in parts)
            },
            keypoints=keypoints,
            label_maps=LabelMaps.concatenate([part.label_maps for part in parts]),
            unjudged=torch.cat(
                [part.unjudged + torch.tensor([start, 0]) for part, start in zip(parts, images, strict=True)]
            ),
            has_ground_truth=all(part.has_ground_truth for part in parts),
        )


def index_digest(index: AnnotationIndex) -> str:
    """Returns the hexadecimal SHA-256 of classes, image file names, objects, and label maps (file names and values).

    Pixels, folders and ids of images and categories do not count, so a data set that moved keeps its digest.
    """
    names = [Path(path).name for path in index.paths]
    objects = [index.sizes, index.ends, index.boxes, index.labels, index.ignore]
    fields = [[packed.characters, packed.ends] for _, packed in sorted(index.fields.items())] or [None]
    return digest([index.class_names, names, objects, *fields, *_label_facts(index.label_maps)])


def _label_facts(maps: LabelMaps | None) -> list[Any]:
    """Returns the facts that label maps add to the digest of a data set."""
    if maps is None:
        return []
    packed = [[part.characters, part.ends] for part in (maps.segments, maps.objects) if part is not None]
    names = [Path(file).name for file in maps.files]
    return [maps.class_names, maps.num_things, names, dict(maps.values), packed]


def _difference(one: AnnotationIndex, other: AnnotationIndex) -> list[str]:
    pairs = zip_longest(one.class_names, other.class_names, fillvalue="nothing")
    return [f"{first} and {second}" for first, second in pairs if first != second]


def _shared_keypoints(parts: Sequence[AnnotationIndex]) -> KeypointSpec | None:
    """Returns the keypoints of ``parts``, whose names must agree; None if no part has any."""
    known = [part.keypoints for part in parts if part.keypoints is not None]
    for other in known[1:]:
        if other.names != known[0].names:
            raise ValueError(
                f"data sets with different keypoints can't be joined: {listed(known[0].names)}; and "
                f"{listed(other.names)}"
            )
    return known[0] if known else None


def _concatenate_field(name: str, parts: Sequence[AnnotationIndex], keypoints: KeypointSpec | None) -> PackedStrings:
    operations = fields_of(keypoints)[name]
    return PackedStrings.concatenate(
        [part.fields[name] if name in part.fields else _unknown(operations, part) for part in parts]
    )


def _unknown(operations: Field, index: AnnotationIndex) -> PackedStrings:
    """Returns unknown values, for the objects of ``index``, of a field that was not read."""
    numbers = index.ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    images = zip(index.sizes.tolist(), numbers, strict=True)
    unknown = [[operations.unknown((height, width))] * number for (height, width), number in images]
    return PackedStrings.pack([packed for image in unknown for packed in image])
