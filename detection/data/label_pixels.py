"""Pure functions on label maps, (H, W) uint8 with the class of each pixel; sizes are (height, width)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection.structures import VOID

__all__ = ["nearest", "on_canvas"]

Size = tuple[int, int]


def nearest(labels: Tensor, resized: Size, corner: Size = (0, 0), shown: Size | None = None) -> Tensor:
    """Returns a part of ``labels`` (H, W) after nearest-neighbour resizing, by the centre of each new pixel.

    Args:
        labels: labels of the whole image.
        resized: size of the whole image after resizing.
        corner: (y, x) of the part's top left corner in the resized image.
        shown: size of the part; None: the whole image.
    """
    rows, columns = (
        ((np.arange(part) + start + 0.5) * (side / new)).astype(np.int64)
        for part, start, side, new in zip(shown or resized, corner, labels.shape, resized, strict=True)
    )
    return torch.from_numpy(labels.numpy().take(rows, axis=0).take(columns, axis=1))  # a third of the time of torch's


def on_canvas(labels: Tensor, canvas: Size) -> Tensor:
    """Returns ``labels`` (H, W) at the top left of a ``canvas`` that is VOID elsewhere."""
    placed = labels.new_full(canvas, VOID)
    placed[: labels.shape[0], : labels.shape[1]] = labels
    return placed
