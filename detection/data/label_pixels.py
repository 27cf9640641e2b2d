"""Pure functions on label maps, (H, W) uint8 with the class of each pixel; sizes are (height, width)."""

from __future__ import annotations

import torch
from torch import Tensor

from detection.structures import VOID

__all__ = ["nearest", "on_canvas"]

Size = tuple[int, int]


def nearest(labels: Tensor, resized: Size, corner: Size = (0, 0), shown: Size | None = None) -> Tensor:
    """Returns a part of ``labels`` (H, W) resized to ``resized``: the label under the middle of each new pixel.

    Args:
        labels: of the whole image.
        resized: of the whole image then.
        corner: (y, x) in the resized image where the part begins.
        shown: size of the part; None: all of it.
    """
    if shown is None:
        shown = resized
    rows, columns = (
        ((torch.arange(shown[side]) + corner[side] + 0.5) * (labels.shape[side] / resized[side])).long()
        for side in (0, 1)
    )
    return labels[rows][:, columns]


def on_canvas(labels: Tensor, canvas: Size) -> Tensor:
    """Returns ``labels`` (H, W) at the top left of a ``canvas`` that is VOID elsewhere."""
    placed = labels.new_full(canvas, VOID)
    placed[: labels.shape[0], : labels.shape[1]] = labels
    return placed
