"""Converts the masks of objects to label maps: 0 is the background, and each class has its label + 1.

Pixels of two objects are void, and so are crowds and the boxes of objects without a known mask.
Source: torchvision's references for semantic segmentation, for training on COCO.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.masks import empty_rle, to_rle
from detection.structures import VOID

__all__ = ["BACKGROUND", "with_polygon_maps"]

BACKGROUND = "background"


def with_polygon_maps(index: AnnotationIndex) -> AnnotationIndex:
    """Returns the images of ``index``, which has masks, with label maps in place of objects.

    If no object has a mask, there are no label maps.

    Raises:
        ValueError: a class is already called "background", or there are too many classes.
    """
    if len(index.boxes) and "masks" not in index.fields:
        return index
    if BACKGROUND in index.class_names or len(index.class_names) >= VOID:
        raise ValueError(
            f"label_maps: polygons puts {BACKGROUND!r} before the classes, which then are {VOID} at most; the card has "
            f"{len(index.class_names)}{f' and {BACKGROUND!r} among them' * (BACKGROUND in index.class_names)}"
        )
    names, none = (BACKGROUND, *index.class_names), torch.zeros(0, dtype=torch.int64)
    rows = [json.dumps(_objects(index, row)) for row in range(len(index))]
    maps = LabelMaps(
        class_names=names,
        files=PackedStrings.pack([""] * len(index)),
        values={value: value for value in (*range(len(names)), VOID)},
        objects=PackedStrings.pack(rows),
    )
    return replace(
        index,
        class_names=names,
        category_ids=(0, *index.category_ids),
        ends=torch.zeros_like(index.ends),
        boxes=index.boxes[:0],
        labels=none,
        ignore=index.ignore[:0],
        areas=index.areas[:0],
        fields={},
        keypoints=None,
        label_maps=maps,
    )


def _objects(index: AnnotationIndex, row: int) -> list[tuple[int, str]]:
    """Returns label and run-length code of the objects of image ``row``."""
    objects, found = index.objects(row), list[tuple[int, str]]()
    if objects.start == objects.stop:
        return found
    height, width = index.sizes[row].tolist()
    unknown, masks = empty_rle((height, width))["counts"], index.fields["masks"]
    for place in range(objects.start, objects.stop):
        counts, ignored = masks.bytes_of(place), bool(index.ignore[place])
        if counts == unknown:
            x1, y1, x2, y2 = index.boxes[place].tolist()
            ignored, counts = True, to_rle([[x1, y1, x2, y1, x2, y2, x1, y2]], (height, width))["counts"]
        found.append((VOID if ignored else int(index.labels[place]) + 1, counts.decode()))
    return found
