"""Reads and writes COCO's panoptic format: a PNG of segment numbers per image, and JSON with their classes.

Source: the COCO panoptic format, cocodataset.org and panopticapi.
Shapes: K classes, H W height and width of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.segments import Segments

__all__ = ["MAX_ID", "panoptic_annotation", "panoptic_categories", "save_segments", "segment_numbers"]

MAX_ID = (1 << 24) - 1  # three bytes of a pixel


def save_segments(segments: Segments, path: Path) -> None:
    """Writes the segment number of each pixel to the PNG ``path``, as R + 256 G + 65536 B."""
    ids = segments.ids.astype(np.uint32)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)).save(path)


def segment_numbers(pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Returns the segment number (H, W) of each pixel of a PNG (H, W, 3)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red + (green << 8) + (blue << 16)


def panoptic_annotation(
    segments: Segments, category_ids: Sequence[int], *, image_id: int, file_name: str
) -> dict[str, Any]:
    """Returns the entry of the list ``annotations`` for an image.

    Args:
        segments: segments of the image, each with at least one pixel.
        category_ids: (K,) category ids in the data set's files.
        image_id: id in the data set's files.
        file_name: name of the PNG.
    """
    infos = list[dict[str, Any]]()
    for segment in segments.found:
        rows, columns = np.nonzero(segments.ids == segment.id)
        left, top = int(columns.min()), int(rows.min())
        infos.append(
            {
                "id": segment.id,
                "category_id": int(category_ids[segment.label]),
                "iscrowd": int(segment.crowd),
                "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                "area": len(rows),
            }
        )
    return {"image_id": image_id, "file_name": file_name, "segments_info": infos}


def panoptic_categories(
    class_names: Sequence[str], category_ids: Sequence[int], num_things: int
) -> list[dict[str, Any]]:
    """Returns the list ``categories`` of K classes, of which the first ``num_things`` are things."""
    return [
        {"id": int(number), "name": name, "isthing": int(label < num_things)}
        for label, (number, name) in enumerate(zip(category_ids, class_names, strict=True))
    ]
