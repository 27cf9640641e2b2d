"""The table of fields that travel with boxes, and the operations that a field brings.

A field named NAME is an optional attribute of ``Target`` and ``Detections``, and ``Record`` has it as ``NAME`` and
``gt_NAME``.  A reader puts what the files give into ``ObjectRows.fields[NAME]``, and a head makes the attribute of
``Detections``.  All code between loops over this table, so a new field is a module in this package and a line below.

Shapes: M objects, D detections.  Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from detection.fields.keypoints import Keypoints
from detection.fields.masks import Masks
from detection.keypoints import KeypointSpec
from detection.structures import Rows

__all__ = ["FIELDS", "Field", "carried", "fields_of"]

Size = tuple[int, int]


class Field(Protocol):
    """Operations on the values of one field; arguments are not changed.

    Attributes:
        lacking: message about a data set without the field, with the repair.
        unusable: kind of problem of an object whose value is missing or can't be used.
    """

    lacking: str
    unusable: str

    # From a reader to targets and records.

    def pack(self, raw: Any, size: Size) -> bytes:
        """Packs a reader's value ``raw``, or None, of one object in an image of ``size`` for the index.

        Raises:
            ValueError: ``raw`` can't be used.
        """
        ...

    def unknown(self, size: Size) -> bytes:
        """Returns the packed value of an object whose value is unknown."""
        ...

    def unpack(self, packed: Sequence[bytes], size: Size) -> Any:
        """Returns the M values of an image of ``size`` as ``Record.gt_NAME`` holds them, in pixels of that image."""
        ...

    def to_tensor(self, values: Any, size: Size) -> Tensor:
        """Returns unpacked values as a target holds them: M rows, also where M is 0."""
        ...

    # With the pixels of training images.

    def resize(self, values: Tensor, size: Size, new_size: Size) -> Tensor:
        """Returns the values (M, ...) of an image of ``size`` that becomes ``new_size``."""
        ...

    def place(
        self, values: Tensor, size: Size, resized: Size, corner: tuple[int, int], canvas: Size
    ) -> tuple[Tensor, Tensor]:
        """Returns the values after large-scale jitter, and which objects (M,) bool stay.

        An image of ``size`` becomes ``resized``; the part from its ``corner`` (y, x) on lies at the top left of a
        canvas, and no other part is seen.
        """
        ...

    def cut(self, values: Tensor, size: Size) -> Tensor:
        """Returns the values of objects that are pasted into an image of ``size`` at the same pixels."""
        ...

    def hide(self, values: Tensor, covered: Tensor) -> Tensor:
        """Returns the values after other objects cover the pixels ``covered`` (H, W) bool."""
        ...

    def compose(self) -> Mapping[str, Any]:
        """Returns the arguments of ``albumentations.Compose`` that the field needs."""
        ...

    def to_albumentations(self, values: Tensor, size: Size) -> Mapping[str, Any]:
        """Returns the arguments of a call of ``Compose`` on an image of ``size``."""
        ...

    def from_albumentations(self, result: Mapping[str, Any], kept: Tensor, size: Size) -> Tensor:
        """Returns the values of the objects ``kept`` (int64) in the ``result`` of that call, an image of ``size``."""
        ...

    # From a head to records.

    def on_image(self, values: Tensor, boxes: Tensor, size: Size) -> Any:
        """Returns the values (D, ...) of detections as ``Record.NAME`` holds them, in pixels of an image of ``size``.

        ``boxes`` (D, 4) are those of the detections, in pixels of that image.
        """
        ...


FIELDS: dict[str, Field] = {
    "masks": Masks(),
    "keypoints": Keypoints(),
}


def fields_of(keypoints: KeypointSpec | None) -> dict[str, Field]:
    """Returns the table for a data set with these ``keypoints``."""
    return FIELDS if keypoints is None else FIELDS | {"keypoints": Keypoints(keypoints)}


def carried(rows: Rows, fields: Mapping[str, Field] = FIELDS) -> Iterator[tuple[str, Field, Tensor]]:
    """Yields name, operations and values (M, ...) of each of ``fields`` that ``rows`` have."""
    for name, field in fields.items():
        values = getattr(rows, name, None)
        if values is not None:
            yield name, field, values
