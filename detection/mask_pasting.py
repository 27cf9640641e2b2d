"""Masks of whole images from the probabilities that a network finds in boxes.

A predicted mask is (S, S) cells 0..1 in a box; boxes are (N, 4) rows (x1, y1, x2, y2) in pixels, sizes (height, width);
pixel i of a row reaches from i to i + 1.  The geometries are described in detection/mask_geometry.py.

Source: He et al., "Mask R-CNN", section 3.1; torchvision 0.29, models/detection/roi_heads.py; Detectron2,
layers/mask_ops.py.
Shapes: N masks, S cells of a side, H W height and width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detection.mask_geometry import MaskGeometry
from detection.masks import RLE, encode

__all__ = ["paste"]


def paste(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float = 0.5, geometry: MaskGeometry
) -> list[RLE]:
    """Returns the masks of a whole image of ``size`` that probabilities in boxes make: at least ``threshold``.

    One mask at a time is drawn, on the rows and columns that it reaches, so the memory is one byte per pixel of the
    image, however many masks there are.

    Args:
        masks: (N, S, S) probabilities, each of its box.
        boxes: (N, 4) in pixels of the image.
        size: (height, width) of the image.
        threshold: above 0, at most 1.
        geometry: that the network was trained with.  Probabilities before the threshold are those of the two projects.
    """
    canvas = np.zeros(size, dtype=np.uint8, order="F")
    masks, boxes = masks.detach().float().cpu(), boxes.detach().float().cpu()
    if geometry == "torchvision":
        masks, boxes = _on_whole_pixels(masks, boxes)
    rles = []
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        rows, down = _interpolation(y1, y2, mask.shape[0], size[0], fades=geometry == "detectron2")
        columns, across = _interpolation(x1, x2, mask.shape[1], size[1], fades=geometry == "detectron2")
        canvas[rows, columns] = (down @ mask @ across.T >= threshold).numpy()  # bilinear: linear in each direction
        rles.append(encode(canvas))
        canvas[rows, columns] = 0
    return rles


def _on_whole_pixels(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns masks (N, S + 2, S + 2) and boxes around whole pixels that paste as torchvision pastes them.

    A border of zeros lets a mask fade out; the box grows with it, its corners are rounded towards 0, and the last pixel
    belongs to it.
    """
    samples = masks.shape[-1] + 2
    center, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * (samples / masks.shape[-1])
    first, last = (center - half).trunc(), (center + half).trunc()
    return functional.pad(masks, (1, 1, 1, 1)), torch.cat([first, last.maximum(first) + 1], dim=1)


def _interpolation(low: float, high: float, cells: int, limit: int, *, fades: bool) -> tuple[slice, Tensor]:
    """Returns the pixels 0..limit-1 whose centres ``cells`` over ``low``..``high`` reach, and their weights.

    The weights (pixels, cells) interpolate between the centres of cells.  In the half cell at a border of the box the
    last cell continues unchanged; or it fades, as if zeros lay around the box, over half a cell outside it too.
    A box without area reaches no pixel.
    """
    beyond = (high - low) / (2 * cells) if fades else 0.0
    start = min(max(math.ceil(low - beyond - 0.5), 0), limit)
    stop = max(min(math.ceil(high + beyond - 0.5), limit), start) if high > low else start
    places = (torch.arange(start, stop) + 0.5 - low) / max(high - low, 1e-12) * cells - 0.5
    places = places if fades else places.clamp(0, cells - 1)
    return slice(start, stop), (1 - (places[:, None] - torch.arange(cells)).abs()).clamp(min=0)
