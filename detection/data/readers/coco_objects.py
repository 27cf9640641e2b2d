"""Reads the annotations of a COCO file into columns: 65 bytes per object, where a dict takes a thousand.

Most blocks have numbers where numbers are expected, and are decoded as a whole. The records of any other block are read
one by one, which finds the problem of each.

Shapes: M objects.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.images import MAX_PIXELS
from detection.data.objects import ObjectArrays
from detection.data.readers.coco_keypoints import scaled
from detection.data.readers.json_lists import UnsuitedError
from detection.data.readers.values import MISSING, FieldError, area, box, flag, mapping, shown, whole_number

__all__ = ["Annotations"]

BLOCK = 1 << 18  # objects that are checked together
UNKNOWN = msgspec.Raw(b"null")
KEYS = {"masks": "segmentation", "keypoints": "keypoints"}  # field -> key of a record


class _Annotation(msgspec.Struct, gc=False):
    """A record in the usual form."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int | bool = 0
    area: float = math.nan


class Annotations:
    """Collects the records of the list ``annotations``.

    Args:
        fields: fields of KEYS to keep, as JSON.

    Attributes:
        errors: errors of records that can't be used, by their position in the list.
    """

    def __init__(self, fields: Collection[str] = ()) -> None:
        self.errors = dict[int, str]()
        self._fields = {name: list[msgspec.Raw]() for name in KEYS if name in fields}
        self._decoder = msgspec.json.Decoder(list[_kind(self._fields)])
        # Python's arrays grow in place; NumPy's would be copied.
        self._ids, self._images, self._categories = array("q"), array("q"), array("q")
        self._boxes, self._areas, self._ignore = array("d"), array("d"), array("b")

    def __len__(self) -> int:
        return len(self._ids)

    def knows(self, name: str) -> bool:
        """Returns whether any record has the field ``name``."""
        return any(bytes(value) not in (b"null", b"[]") for value in self._fields.get(name, ()))

    def add(self, block: bytes) -> None:
        """Adds the records of a list in JSON.

        Raises:
            UnsuitedError: ``block`` is no JSON.
        """
        try:
            self._add_all(self._decoder.decode(block))
        except (msgspec.ValidationError, FieldError, OverflowError):
            try:
                self.add_each(json.loads(block))
            except (ValueError, RecursionError) as error:
                raise UnsuitedError from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise UnsuitedError from error

    def add_each(self, records: Sequence[Any]) -> None:
        """Adds ``records``, or their errors if they can't be used."""
        for record in records:
            try:
                annotation = mapping(record, "the record")
                get = annotation.get
                number = whole_number(get("id", MISSING), "id")
                image = whole_number(get("image_id", MISSING), "image_id")
                category = whole_number(get("category_id", MISSING), "category_id")
                corner_and_sides = box(get("bbox", MISSING), "bbox")
                ignore = flag(get("iscrowd", 0), "iscrowd")
                size = area(get("area"), "area") if "area" in annotation else math.nan
            except FieldError as error:
                position = len(self) + len(self.errors)
                self.errors[position] = _described(position, record, error)
                continue
            self._ids.append(number)
            self._images.append(image)
            self._categories.append(category)
            self._boxes.extend(corner_and_sides)
            self._areas.append(size)
            self._ignore.append(ignore)
            for name, values in self._fields.items():
                values.append(msgspec.Raw(json.dumps(get(KEYS[name])).encode()))

    def _add_all(self, records: Sequence[_Annotation]) -> None:
        count = len(records)
        ids, images, categories, ignore = (
            np.fromiter(map(attrgetter(key), records), np.int64, count)
            for key in ("id", "image_id", "category_id", "iscrowd")
        )
        areas = np.fromiter(map(attrgetter("area"), records), np.float64, count)
        boxes = np.fromiter(chain.from_iterable(map(attrgetter("bbox"), records)), np.float64, 4 * count)
        if ((ignore != 0) & (ignore != 1) | (areas < 0) | (areas > MAX_PIXELS)).any():
            raise FieldError("iscrowd or area", "", "one that ``add_each`` names")
        pairs = (
            (self._ids, ids),
            (self._images, images),
            (self._categories, categories),
            (self._areas, areas),
            (self._boxes, boxes),
            (self._ignore, ignore.astype(np.int8)),
        )
        for column, values in pairs:
            column.frombytes(values.tobytes())
        for name, values in self._fields.items():
            values.extend(map(attrgetter(KEYS[name]), records))

    def find(
        self, rows: Mapping[int, int], labels: Mapping[int, int], *, missing: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns the rows (M,) of the annotations' images and the labels (M,) of their categories.

        Args:
            rows: row by image id.
            labels: label by category id.
            missing: result for an unknown id.
        """
        return _find(self._images, rows, missing), _find(self._categories, labels, missing)

    def repeated(self) -> NDArray[np.bool_]:
        """Returns whether each annotation (M,) repeats the id of an earlier one."""
        ids = np.frombuffer(self._ids, np.int64)
        repeated, in_order = np.zeros(len(ids), dtype=np.bool_), np.sort(ids)
        if (in_order[1:] == in_order[:-1]).any():
            repeated[:] = True
            repeated[np.unique(ids, return_index=True)[1]] = False
        return repeated

    def numbers(self, row: int) -> tuple[int, int, int]:
        """Returns the ids of an annotation, its image and its category."""
        return self._ids[row], self._images[row], self._categories[row]

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the positions (R,) in the list of the annotations ``rows`` (R,), which are sorted."""
        bad = np.array(sorted(self.errors), dtype=np.int64)
        return rows + np.searchsorted(bad - np.arange(len(bad)), rows, side="right")

    def take(
        self,
        kept: NDArray[np.bool_],
        rows: NDArray[np.int32],
        labels: NDArray[np.int32],
        image_ids: NDArray[np.int64],
        scales: Mapping[int, tuple[float, float]],
    ) -> ObjectArrays:
        """Returns the objects that are ``kept`` (M,) and frees the columns.

        Args:
            kept: (M,) whether an annotation is returned.
            rows: (M,) row of each annotation's image.
            labels: (M,) label of each annotation.
            image_ids: image id by row.
            scales: scale (along x, along y) of an image's boxes, by row, where it is not 1.
        """
        ids, areas = _kept(np.frombuffer(self._ids, np.int64), kept), _kept(np.frombuffer(self._areas), kept)
        boxes, ignore = np.frombuffer(self._boxes).reshape(-1, 4), np.frombuffer(self._ignore, np.bool_)
        boxes, ignore, rows, labels = _kept(boxes, kept), _kept(ignore, kept), _kept(rows, kept), _kept(labels, kept)
        places = np.flatnonzero(kept).tolist() if self._fields else []
        fields = {name: [values[row] for row in places] for name, values in self._fields.items()}
        self._ids, self._images, self._categories = array("q"), array("q"), array("q")  # views keep their memory
        self._boxes, self._areas, self._ignore = array("d"), array("d"), array("b")
        boxes[:, 2:] += boxes[:, :2]
        for row in np.flatnonzero(np.isin(rows, [*scales])).tolist() if scales else ():
            sx, sy = scales[int(rows[row])]
            boxes[row] *= (sx, sy, sx, sy)
            areas[row] = areas[row] * sx * sy
            if "masks" in fields:
                fields["masks"][row] = UNKNOWN

        def in_its_image(row: int, points: Any) -> Any:
            scale = scales.get(int(rows[row]))
            return points if scale is None else scaled(points, scale)

        of: dict[str, Callable[[int, Any], Any]] = {"keypoints": in_its_image} if scales else {}
        return ObjectArrays(
            images=rows,
            boxes=boxes,
            labels=labels,
            ignore=ignore,
            areas=areas,
            names=_Names(ids, rows, image_ids),
            fields={name: _Decoded(values, of.get(name)) for name, values in fields.items()},
        )


def _kind(fields: Collection[str]) -> type[_Annotation]:
    """Returns the type of a record with ``fields``."""
    raw = [(KEYS[name], msgspec.Raw, UNKNOWN) for name in fields]
    made: Any = msgspec.defstruct("_Annotation", raw, bases=(_Annotation,), gc=False) if raw else _Annotation
    return made


class _Names(Sequence[str]):
    """Names of annotations, made on request."""

    def __init__(self, ids: NDArray[np.int64], rows: NDArray[np.int32], image_ids: NDArray[np.int64]) -> None:
        self._ids, self._rows, self._image_ids = ids, rows, image_ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: Any) -> Any:
        return f"annotation {self._ids[row]} of image {self._image_ids[self._rows[row]]}"


class _Decoded(Sequence[Any]):
    """JSON values that are decoded, and changed depending on row and value, on request."""

    def __init__(self, texts: Sequence[msgspec.Raw], change: Callable[[int, Any], Any] | None) -> None:
        self._texts, self._change = texts, change

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: Any) -> Any:
        value = json.loads(bytes(self._texts[row]))
        return value if self._change is None else self._change(row, value)


def _find(ids: array[int], known: Mapping[int, int], missing: int) -> NDArray[np.int32]:
    """Returns the values (M,) of ``known`` for ``ids`` (M,)."""
    wanted, found = np.frombuffer(ids, np.int64), np.full(len(ids), missing, dtype=np.int32)
    if not known:
        return found
    keys = np.fromiter(known.keys(), np.int64, len(known))
    order = np.argsort(keys)
    keys, values = keys[order], np.fromiter(known.values(), np.int32, len(known))[order]
    for start in range(0, len(wanted), BLOCK):
        own = wanted[start : start + BLOCK]
        at = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        found[start : start + BLOCK] = np.where(keys[at] == own, values[at], missing)
    return found


def _kept(column: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
    """Moves the rows of ``column`` that are ``kept`` to its start, and returns them."""
    if kept.all():
        return column
    count = 0
    for start in range(0, len(column), BLOCK):
        own = column[start : start + BLOCK][kept[start : start + BLOCK]]
        column[count : count + len(own)] = own
        count += len(own)
    return column[:count]


def _described(position: int, record: Any, error: FieldError) -> str:
    """Returns ``error`` after the ids or the position of ``record``."""
    known = record if isinstance(record, dict) else {}
    ids = ", ".join(f"{key} {shown(known[key])}" for key in ("id", "image_id") if key in known)
    repair = ""
    if "bbox" not in known and known.get("segmentation"):
        repair = "; it has a segmentation: add the box around it"
    return f"annotations[{position}]{f' ({ids})' if ids else ''}: {error}{repair}"
