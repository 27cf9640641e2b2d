"""Mixes the images of a batch with those of the reversed batch, and their classes by the same share.

Source: Zhang et al. 2018, "mixup", section 2; Yun et al. 2019, "CutMix", section 3; Verma et al. 2019, "Manifold
Mixup", section 2.  Pairs are formed with the reversed batch and not, as in the papers, with a permutation, as batches
are shuffled already.

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
    """Options for mixing a batch.

    Attributes:
        kind: "mixup" of pixels, "cutmix", or "manifold" mixup, of pixels or of a feature map.
        alpha: parameter of the beta distribution of the shares.
    """

    kind: Literal["mixup", "cutmix", "manifold"]
    alpha: float

    def draw_share(self, random: np.random.Generator) -> float:
        """Draws the share of each image itself."""
        return float(random.beta(self.alpha, self.alpha))


def blend(values: Tensor, share: float) -> Tensor:
    """Returns ``share`` times ``values`` (N, ...) plus the rest times the reversed values."""
    return share * values + (1 - share) * values.flip(0)


def cut_box(share: float, size: tuple[int, int], random: np.random.Generator) -> tuple[slice, slice]:
    """Returns the rows and columns of a box of 1 - ``share`` of an image of ``size``, cut at the image's borders.

    Its centre is anywhere in the image; it has the aspect ratio of the image.
    """
    spans: list[slice] = []
    for side in size:
        length = int(side * math.sqrt(1 - share))
        centre = int(random.integers(side))
        spans.append(slice(max(centre - length // 2, 0), min(centre - length // 2 + length, side)))
    return spans[0], spans[1]


def cut(pixels: Tensor, share: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Replaces a box of each of ``pixels`` (N, C, H, W) by that of its partner; also returns the remaining share."""
    height, width = pixels.shape[-2:]
    rows, columns = cut_box(share, (height, width), random)
    mixed = pixels.clone()
    mixed[:, :, rows, columns] = pixels.flip(0)[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)


@contextmanager
def mixed_output(module: nn.Module, share: float) -> Iterator[None]:
    """Blends the output of ``module``."""

    def mix(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return blend(output, share)

    handle = module.register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()


def draw_layer(layers: Sequence[str], random: np.random.Generator) -> str | None:
    """Draws one of ``layers``, or None for the image itself, with equal probability; None without layers."""
    if not layers:
        return None
    place = int(random.integers(len(layers) + 1))
    return None if place == 0 else layers[place - 1]
