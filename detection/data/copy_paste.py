"""Copy-paste augmentation: objects of another image, cut out by their masks, are pasted over a training image.

Source: Ghiasi et al. 2021, "Simple Copy-Paste", section 3.
Shapes: H W height and width, M objects.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import masks_to_boxes

from detection.fields.table import carried
from detection.masks import count_pixels
from detection.structures import Target

__all__ = ["choose", "paste"]


def choose(objects: Target, chance: np.random.Generator) -> Target:
    """Returns a random subset of the ``objects`` that have a mask and are not ignored, at least one if any."""
    usable = (_masks(objects).flatten(1).any(dim=1) & ~objects.ignore).nonzero().flatten()
    if not len(usable):
        return objects[usable]
    chosen = chance.permutation(len(usable))[: chance.integers(1, len(usable) + 1)]
    return objects[usable[torch.from_numpy(chosen)]]


def paste(
    image: NDArray[np.uint8], target: Target, other: NDArray[np.uint8], objects: Target
) -> tuple[NDArray[np.uint8], Target]:
    """Returns ``image`` with the masked pixels of another image's ``objects`` over it, and both targets joined.

    The objects keep their position in ``other`` and are cut off at the border of ``image``; unlike the source, their
    edges are not blended.  Label maps are pasted too where both targets have one.  An object that loses pixels gets
    the box of its remaining pixels, and is dropped if none remain.  An object without a mask stays unchanged.

    Args:
        image: (H, W, 3).
        target: the target of ``image``, with masks.
        other: (H', W', 3), the image of the ``objects``.
        objects: objects with the fields of ``target``, each with a mask of at least one pixel.
    """
    size = image.shape[0], image.shape[1]
    moved = {name: field.cut(values, size) for name, field, values in carried(objects)}
    covered = moved["masks"].any(dim=0)
    height, width = min(image.shape[0], other.shape[0]), min(image.shape[1], other.shape[1])
    pasted, pixels = image.copy(), covered[:height, :width].numpy()
    pasted[:height, :width][pixels] = other[:height, :width][pixels]
    visible: dict[str, Tensor] = {name: field.hide(values, covered) for name, field, values in carried(target)}
    if target.label_map is not None and objects.label_map is not None:
        visible["label_map"] = target.label_map.clone()
        visible["label_map"][:height, :width][covered[:height, :width]] = objects.label_map[:height, :width][
            covered[:height, :width]
        ]
    return pasted, _with_less(target, visible).joined(_with_less(objects, moved))


def _with_less(target: Target, changed: dict[str, Tensor]) -> Target:
    """Returns ``target`` with the ``changed`` fields; objects whose masks lost pixels get new boxes."""
    before, after = count_pixels(_masks(target)), count_pixels(changed["masks"])
    boxes, less = target.boxes.clone(), (after > 0) & (after < before)
    # masks_to_boxes gives the last pixel, not the edge behind it.
    boxes[less] = masks_to_boxes(changed["masks"][less]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return replace(target, boxes=boxes, **changed)[(after > 0) | (before == 0)]


def _masks(target: Target) -> Tensor:
    assert target.masks is not None
    return target.masks
