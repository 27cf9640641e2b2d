"""Typed containers that cross module borders, with the conventions every tensor in them follows.

Boxes are (N, 4) float32 rows (x1, y1, x2, y2), in pixels of the image they belong to; width = x2 - x1, no +1.
Sizes are (height, width).  Labels are 0..K-1: the background class lives inside the RoI heads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

__all__ = ["Detections", "ImageBatch", "Proposals", "Target"]


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; towards a GPU without waiting for the copy, away from it the values must be there."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


@dataclass(frozen=True, slots=True)
class Rows:
    """Base of the containers below: every field that is not None has one row per object."""

    boxes: Tensor  # (N, 4)

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must have shape (N, 4), got {tuple(self.boxes.shape)}")
        for name, rows in self._rows().items():
            if len(rows) != len(self.boxes):
                raise ValueError(f"{name} has {len(rows)} rows, boxes have {len(self.boxes)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The rows picked by a boolean mask (N,), an index tensor (M,) or a slice."""
        return replace(self, **{name: rows[index] for name, rows in self._rows().items()})

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{name: move(rows, device) for name, rows in self._rows().items()})

    def joined(self, other: Rows) -> Self:
        """Returns these rows and then those of ``other``, which has the same fields."""
        return replace(self, **{name: torch.cat([rows, getattr(other, name)]) for name, rows in self._rows().items()})

    def _rows(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: rows for name, rows in named.items() if rows is not None}


@dataclass(frozen=True, slots=True)
class Proposals(Rows):
    """Class-agnostic boxes from the RPN, best first, in pixels of the resized image."""

    scores: Tensor  # (N,) objectness logits


@dataclass(frozen=True, slots=True)
class Detections(Rows):
    """What the detector returns for one image, best first."""

    scores: Tensor  # (N,) probabilities
    labels: Tensor  # (N,) int64, 0..K-1
    masks: Tensor | None = None  # (N, S, S) probabilities in the box


@dataclass(frozen=True, slots=True)
class Target(Rows):
    """Ground truth of one image."""

    labels: Tensor  # (N,) int64, 0..K-1
    ignore: Tensor  # (N,) bool: VOC "difficult" or COCO "iscrowd"; neither hit nor miss
    masks: Tensor | None = None  # (N, H, W) bool; without a pixel where the mask is unknown


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images of one step, padded at the right and at the bottom to a common size.

    Attributes:
        pixels: (N, 3, H, W) uint8 RGB.
        sizes: (height, width) of each image without its padding.
        seeds: of the random draws among each image's anchors and regions in training; empty: torch's own generator.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3 or self.pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be (N, 3, H, W) uint8, got {tuple(self.pixels.shape)} {self.pixels.dtype}")
        if len(self.sizes) != len(self.pixels):
            raise ValueError(f"{len(self.sizes)} sizes for {len(self.pixels)} images")
        if len(self.seeds) not in (0, len(self.pixels)):
            raise ValueError(f"{len(self.seeds)} seeds for {len(self.pixels)} images")

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def from_images(cls, images: Sequence[Tensor], seeds: Sequence[int] = ()) -> Self:
        """A batch of (3, H, W) uint8 RGB images of any sizes."""
        if not images:
            raise ValueError("a batch needs at least one image")
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise ValueError(f"an image must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        pixels = torch.zeros(len(images), 3, height, width, dtype=torch.uint8, device=images[0].device)
        for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
            row[:, :h, :w] = image
        return cls(pixels, sizes, tuple(seeds))

    def generators(self) -> list[torch.Generator | None]:
        """Where the random draws of each image come from; None is torch's own generator."""
        device = self.pixels.device
        return [torch.Generator(device).manual_seed(seed) for seed in self.seeds] or [None] * len(self)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, pixels=move(self.pixels, device))

    def pin_memory(self) -> Self:
        return replace(self, pixels=self.pixels.pin_memory())
