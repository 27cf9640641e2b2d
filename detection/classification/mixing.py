"""Mixing the images of a batch: each image with the one at its place from the end, and their classes by the same share.

Source: Zhang et al. 2018, "mixup", section 2; Yun et al. 2019, "CutMix", section 3; Verma et al. 2019, "Manifold
Mixup", section 2.  The pairs are those of the batch and its reverse, where the papers draw a permutation: batches are
shuffled already.

Shapes: N images, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

__all__ = ["Mixing", "blend", "cut", "cut_box", "draw_layer", "mixed_output"]


@dataclass(frozen=True, slots=True)
class Mixing:
    """Says how a batch is mixed.

    Attributes:
        kind: "mixup" of pixels, "cutmix", or "manifold" mixup, of pixels or of a feature map.
        alpha: alpha of the beta distribution of the shares.
    """

    kind: Literal["mixup", "cutmix", "manifold"]
    alpha: float

    def draw_share(self, random: np.random.Generator) -> float:
        """Returns the share of each image itself."""
        return float(random.beta(self.alpha, self.alpha))


def blend(values: Tensor, share: float) -> Tensor:
    """Returns ``share`` of ``values`` (N, ...) and the rest of their reverse."""
    return share * values + (1 - share) * values.flip(0)


def cut_box(share: float, size: tuple[int, int], random: np.random.Generator) -> tuple[slice, slice]:
    """Returns the rows and columns of a box of 1 - ``share`` of an image of ``size``, cut at the image's borders.

    Its centre is anywhere in the image; its sides are to each other as the image's.
    """
    spans: list[slice] = []
    for side in size:
        length = int(side * math.sqrt(1 - share))
        centre = int(random.integers(side))
        spans.append(slice(max(centre - length // 2, 0), min(centre - length // 2 + length, side)))
    return spans[0], spans[1]


def cut(pixels: Tensor, share: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Returns ``pixels`` (N, C, H, W) with a box of each from its partner, and the share that is left of its own."""
    height, width = pixels.shape[-2:]
    rows, columns = cut_box(share, (height, width), random)
    mixed = pixels.clone()
    mixed[:, :, rows, columns] = pixels.flip(0)[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)


@contextmanager
def mixed_output(module: nn.Module, share: float) -> Iterator[None]:
    """Blends what ``module`` gives."""

    def mix(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return blend(output, share)

    handle = module.register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()


def draw_layer(layers: Sequence[str], random: np.random.Generator) -> str | None:
    """Returns one of ``layers``, or None for the image itself; all are as likely.  Without layers nothing is drawn."""
    if not layers:
        return None
    place = int(random.integers(len(layers) + 1))
    return None if place == 0 else layers[place - 1]
