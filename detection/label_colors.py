"""Colours of the values of label images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["VOID_COLOR", "color_map"]

VOID_COLOR = (224, 224, 192)  # of 255 in PASCAL VOC's colour map


def color_map() -> NDArray[np.uint8]:
    """Returns PASCAL VOC's colour map (256, 3): the bits of a number, dealt to red, green and blue from the highest."""
    numbers, colors = np.arange(256), np.zeros((256, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            bit = 3 * place + channel
            if bit < 8:
                colors[:, channel] |= (numbers >> bit & 1) << (7 - place)
    return colors.astype(np.uint8)
