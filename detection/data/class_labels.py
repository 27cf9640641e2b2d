"""The class or classes of a whole image, for classification and localisation sets.

Shapes: N images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detection.data.index import AnnotationIndex

__all__ = ["image_labels", "image_tags", "whole_images"]


def image_labels(index: AnnotationIndex) -> Tensor:
    """Returns the class (N,) of every image, taken from its objects; -1 if it has none that is not ignored.

    Raises:
        ValueError: an image has objects of two classes.
    """
    counts = torch.diff(index.ends, prepend=index.ends.new_zeros(1))
    rows = torch.arange(len(index)).repeat_interleave(counts)[~index.ignore]
    wanted = index.labels[~index.ignore]
    labels = torch.full((len(index),), -1, dtype=torch.int64)
    labels[rows] = wanted
    other = (labels[rows] != wanted).nonzero().flatten()
    if len(other):
        row = int(rows[other[0]])
        names = sorted({index.class_names[label] for label in wanted[rows == row].tolist()})
        raise ValueError(
            f"{index.paths[row]} has objects of the classes {', '.join(names)}; here an image has one class"
        )
    return labels


def image_tags(index: AnnotationIndex) -> Tensor:
    """Returns the classes (N, K) bool of the objects of every image that are not ignored."""
    counts = torch.diff(index.ends, prepend=index.ends.new_zeros(1))
    rows = torch.arange(len(index)).repeat_interleave(counts)[~index.ignore]
    tags = torch.zeros(len(index), len(index.class_names), dtype=torch.bool)
    tags[rows, index.labels[~index.ignore]] = True
    return tags


def whole_images(index: AnnotationIndex) -> AnnotationIndex:
    """Returns ``index`` as a classification set: each image has one object, the whole image, with the image's class.

    Images without objects, or with ignored objects only, are left out.

    Raises:
        ValueError: an image has objects of two classes, or no image has a class.
    """
    labels = image_labels(index)
    kept = (labels >= 0).nonzero().flatten()
    if not len(kept):
        raise ValueError("no image has an object that is not ignored, so none has a class")
    sizes = index.sizes[kept]
    boxes = torch.cat([torch.zeros_like(sizes), sizes.flip(1)], dim=1).float()
    return AnnotationIndex(
        class_names=index.class_names,
        category_ids=index.category_ids,
        paths=index.paths.take(kept),
        image_ids=index.image_ids[kept],
        sizes=sizes,
        apply_exif=index.apply_exif[kept],
        ends=torch.arange(1, len(kept) + 1),
        boxes=boxes,
        labels=labels[kept],
        ignore=torch.zeros(len(kept), dtype=torch.bool),
        areas=boxes[:, 2] * boxes[:, 3],
    )
