"""Instance masks as a field that moves with boxes.

The index keeps the counts of their compressed run-length codes (RLE), a target has (M, H, W) bool, detections have
(D, S, S) probabilities in their boxes, and a record has RLEs of the whole image.  An unknown mask has no pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detection.mask_geometry import MaskGeometry
from detection.mask_pasting import paste
from detection.masks import RLE, count_pixels, decode, empty_rle, to_rle

__all__ = ["Masks"]

Size = tuple[int, int]  # (height, width)


class Masks:
    """The operations of ``detection.fields.table.Field`` on masks.

    Args:
        geometry: mask geometry of the detector whose masks are pasted.
    """

    lacking = (
        "the data set has no masks, or they were not read; COCO files need `segmentation`, and the split of a VOC card "
        "`instances: SegmentationObject`; label images have none, a card of the format coco_panoptic has"
    )
    unusable = "mask that is missing or can't be used; the object's box is kept"

    def __init__(self, geometry: MaskGeometry = "exact") -> None:
        self.geometry: MaskGeometry = geometry

    def pack(self, raw: Any, size: Size) -> bytes:
        return to_rle(raw, size)["counts"]

    def unknown(self, size: Size) -> bytes:
        return empty_rle(size)["counts"]

    def unpack(self, packed: Sequence[bytes], size: Size) -> tuple[RLE, ...]:
        return tuple({"size": [*size], "counts": counts} for counts in packed)

    def to_tensor(self, values: Sequence[RLE], size: Size) -> Tensor:
        return decode(values, size)

    def resize(self, values: Tensor, size: Size, new_size: Size) -> Tensor:
        pixels = values[:, None].to(torch.uint8)
        return functional.interpolate(pixels, size=new_size, mode="nearest-exact")[:, 0].bool()

    def place(
        self, values: Tensor, size: Size, resized: Size, corner: tuple[int, int], canvas: Size
    ) -> tuple[Tensor, Tensor]:
        """Moves masks by nearest source pixels, as ``resize``; an object is removed when its mask has no pixel left."""
        shown = [min(canvas[i], resized[i]) for i in (0, 1)]
        rows, columns = ((torch.arange(shown[i]) + corner[i] + 0.5) * (size[i] / resized[i]) for i in (0, 1))
        placed = values.new_zeros(len(values), *canvas)
        placed[:, : shown[0], : shown[1]] = values[:, rows.long()][:, :, columns.long()]
        return placed, count_pixels(placed).bool() | ~count_pixels(values).bool()

    def cut(self, values: Tensor, size: Size) -> Tensor:
        height, width = (min(sides) for sides in zip(size, values.shape[1:], strict=True))
        moved = values.new_zeros(len(values), *size)
        moved[:, :height, :width] = values[:, :height, :width]
        return moved

    def hide(self, values: Tensor, covered: Tensor) -> Tensor:
        return values & ~covered

    def compose(self) -> Mapping[str, Any]:
        return {}

    def to_albumentations(self, values: Tensor, size: Size) -> Mapping[str, Any]:
        return {"masks": values.numpy().astype(np.uint8)} if len(values) else {}  # albumentations can't stack 0 masks

    def from_albumentations(self, result: Mapping[str, Any], kept: Tensor, size: Size) -> Tensor:
        # Masks of removed objects are returned too.
        stacked = np.asarray(result.get("masks", ()), dtype=np.uint8).reshape(-1, *size)
        return torch.from_numpy(stacked)[kept].bool()

    def on_image(self, values: Tensor, boxes: Tensor, size: Size) -> tuple[RLE, ...]:
        return tuple(paste(values, boxes, size, geometry=self.geometry))
