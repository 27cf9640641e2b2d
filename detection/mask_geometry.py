"""Training targets of masks: the part of a whole image's mask in each box, on the cells of the box.

A mask is (H, W) bool in the pixels of a whole image, or (S, S) cells 0..1 in a box.  Boxes are (N, 4) rows
(x1, y1, x2, y2) in pixels, sizes (height, width); pixel i of a row reaches from i to i + 1.

A network learns where the cells of a box lie on the image, so its masks are pasted (detection/mask_pasting.py) by the
geometry they were trained with:

- exact: cells divide the box at its float coordinates; a target is 1 where the mask covers half of a cell or more;
- torchvision: RoIAlign that is off by half a pixel, the share itself; boxes rounded to whole pixels when pasting;
- detectron2: as exact, but a mask fades to 0 within half a cell of the border of its box.

Source: He et al., "Mask R-CNN", sections 3 and 3.1; torchvision 0.29, models/detection/roi_heads.py; Detectron2,
structures/masks.py (``BitMasks``).
Shapes: G objects, R regions, S cells of a side, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["MaskGeometry", "crop_and_resize"]

MaskGeometry = Literal["exact", "torchvision", "detectron2"]  # the choices of mask.geometry in a config

# Samples of a cell and side in exact targets. Perfect targets of coco128:seg_val keep an AP of 95.4 with 1, 95.6 with 4
# and with RoIAlign's number, which grows with the box.
SAMPLES = 4


def crop_and_resize(
    masks: Tensor, boxes: Tensor, side: int, *, rows: Tensor | None = None, geometry: MaskGeometry
) -> Tensor:
    """Returns training targets (R, S, S) float32 in 0..1: the part of a mask in each box, on the cells of the box.

    One call serves a batch.  Exact targets take 217 bytes a cell at their peak, whatever the sizes of images: 350 MB
    for 16 images of 128 boxes and 28 cells a side.  The two projects' take ``masks`` as float32, 4 G H W bytes.

    Args:
        masks: (G, H, W) bool, of one image or of all images of a batch.
        boxes: (R, 4) in pixels of the masks.
        side: S, cells.
        rows: (R,) int64 0..G-1, the mask that each box belongs to, any of them for a box that is padding; None: mask r
            for box r.  Indexing ``masks`` instead would copy a whole image per box.
        geometry: see the top of the file.
    """
    rows = torch.arange(len(boxes), device=boxes.device) if rows is None else rows
    if not len(masks):  # there is nothing to look up, and all boxes are padding
        return boxes.new_zeros(len(boxes), side, side)
    match geometry:
        case "exact":
            return (_covered(masks, boxes, rows, side) >= 0.5).to(boxes.dtype)
        case "torchvision":
            return _aligned(masks, boxes, rows, side, shift=False)
        case "detectron2":
            return (_aligned(masks, boxes, rows, side, shift=True) >= 0.5).to(boxes.dtype)


def _covered(masks: Tensor, boxes: Tensor, rows: Tensor, side: int) -> Tensor:
    """Returns the share (R, S, S) of each cell that its mask covers: the mean of SAMPLES x SAMPLES bilinear samples.

    Nothing is covered outside the image.  Equal to RoIAlign with ``aligned``, which needs all masks as float32.
    """
    total = boxes.new_zeros(len(boxes), side * SAMPLES, side * SAMPLES)
    for y, vertical in _neighbours(boxes[:, 1], boxes[:, 3], side, masks.shape[1]):
        for x, horizontal in _neighbours(boxes[:, 0], boxes[:, 2], side, masks.shape[2]):
            inside = masks[rows[:, None, None], y[:, :, None], x[:, None, :]]  # (R, samples, samples) bool
            total = torch.addcmul(total, inside.to(total.dtype) * vertical[:, :, None], horizontal[:, None, :])
    return total.unflatten(2, (side, SAMPLES)).unflatten(1, (side, SAMPLES)).mean(dim=(2, 4))


def _neighbours(low: Tensor, high: Tensor, side: int, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the pixel (R, samples) int64 before each sample and the one after it, and their weights (R, samples).

    Samples are spread evenly over ``low``..``high`` (R,), in pixels of an axis of ``limit`` pixels.
    """
    places = (torch.arange(side * SAMPLES, device=low.device) + 0.5) / (side * SAMPLES)
    samples = low[:, None] + places * (high - low)[:, None]
    seen = (samples >= 0) & (samples <= limit)
    centres = (samples - 0.5).clamp(0, limit - 1)  # in the half pixel at a border the mask continues unchanged
    before = centres.floor()
    share = centres - before
    for shift, weight in ((0, 1 - share), (1, share)):
        yield (before.long() + shift).clamp(max=limit - 1), weight * seen


def _aligned(masks: Tensor, boxes: Tensor, rows: Tensor, side: int, *, shift: bool) -> Tensor:
    """Returns RoIAlign (R, S, S) of ``masks`` with as many samples as pixels; ``shift`` to the centres of pixels."""
    regions = torch.cat([rows[:, None].to(boxes.dtype), boxes], dim=1)
    return roi_align(masks[:, None].to(boxes.dtype), regions, side, spatial_scale=1.0, aligned=shift)[:, 0]
