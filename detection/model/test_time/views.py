"""Images at other scales or flipped, and the scale at which each region is pooled.

Source: "Deep Residual Learning", appendix B (multi-scale testing); "Object Detection Networks on Convolutional Feature
Maps" (Ren et al. 2015), section 3 (two adjacent scales per region).
Shapes: N images, C channels, H W height and width, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.boxes import areas
from detection.structures import ImageBatch

__all__ = ["adjacent_scales", "flip_boxes", "flip_images", "resize_images"]

REGION_SIDE = 224.0  # pixels; a region is pooled at the scale where it is about as large as a pre-training image


def adjacent_scales(boxes: Tensor, shorter: Tensor, scales: Sequence[int]) -> Tensor:
    """Returns the lower of each region's two adjacent scales, as an index into ``scales``.

    Between these two the region's side, the square root of its area, reaches 224 pixels.  A region that reaches it at
    lower or higher scales gets the lowest or the highest two.

    Args:
        boxes: (R, 4) pixels of the images as given.
        shorter: (R,) shorter side of each region's image.
        scales: shorter sides in pixels, rising, two or more.

    Returns:
        (R,) int64 in 0 .. len(scales) - 2.
    """
    sides = areas(boxes).clamp(min=1e-6).sqrt()
    ideal = shorter * REGION_SIDE / sides  # shorter side at which the region is 224 pixels large
    above = torch.searchsorted(torch.tensor(scales, device=boxes.device, dtype=ideal.dtype), ideal)
    return (above - 1).clamp(0, len(scales) - 2)


def resize_images(images: ImageBatch, shorter: int) -> ImageBatch:
    """Scales images to shorter sides of ``shorter`` pixels, bilinear and, when shrinking, antialiased."""
    resized = []
    for pixels, (height, width) in zip(images.pixels, images.size_list(), strict=True):
        factor = shorter / min(height, width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        crop = pixels[None, :, :height, :width].float()
        view = F.interpolate(crop, size=size, mode="bilinear", antialias=True, align_corners=False)
        resized.append(view[0].round().clamp(0, 255).to(torch.uint8))
    return ImageBatch.from_images(resized)


def flip_images(images: ImageBatch) -> ImageBatch:
    """Returns the images flipped left to right, each within its own width."""
    pixels = images.pixels.clone()
    for row, (_, width) in zip(pixels, images.size_list(), strict=True):
        row[:, :, :width] = row[:, :, :width].flip(-1)
    return replace(images, pixels=pixels)


def flip_boxes(boxes: Tensor, widths: Tensor) -> Tensor:
    """Returns ``boxes`` (N, ..., 4) in the flipped images of ``widths`` (N,) pixels; twice gives the same boxes."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    widths = widths.view(-1, *[1] * (x1.ndim - 1))
    return torch.stack([widths - x2, y1, widths - x1, y2], dim=-1)
