"""Typed containers that cross module borders, with the conventions every tensor in them follows.

Boxes are (..., 4) float32 rows (x1, y1, x2, y2), in pixels of the image they belong to; width = x2 - x1, no +1.
Sizes are (height, width).  Labels are 0..K-1: the background class lives inside the RoI heads only.

These have as many rows as an image has objects; inside the model the images of a batch have equally many
(detection/padded.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["VOID", "Detections", "ImageBatch", "Proposals", "Rows", "Target", "move", "present"]

VOID = 255  # of a pixel in a label map: neither right nor wrong
OF_IMAGE = ("label_map", "label_scores")  # fields without a row per object


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns ``tensor`` on ``device``; copies to a GPU do not wait, and copies from it do."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


@dataclass(frozen=True, slots=True)
class Rows:
    """Base of the containers of one image.

    Every field that is not None has one row per object; only those of ``OF_IMAGE`` belong to the whole image.
    """

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
        """Returns the rows picked by a boolean mask (N,), an index tensor (M,) or a slice."""
        return replace(self, **{name: rows[index] for name, rows in self._rows().items()})

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{name: move(values, device) for name, values in present(self).items()})

    def joined(self, other: Rows) -> Self:
        """Returns these rows and then those of ``other``, which has the same fields."""
        return replace(self, **{name: torch.cat([rows, getattr(other, name)]) for name, rows in self._rows().items()})

    def _rows(self) -> dict[str, Tensor]:
        return {name: rows for name, rows in present(self).items() if name not in OF_IMAGE}


@dataclass(frozen=True, slots=True)
class Proposals(Rows):
    """Class-agnostic boxes from the RPN, best first, in pixels of the resized image."""

    scores: Tensor  # (N,) objectness logits


@dataclass(frozen=True, slots=True)
class Detections(Rows):
    """The detections of one image, best first."""

    scores: Tensor  # (N,) probabilities
    labels: Tensor  # (N,) int64, 0..K-1
    masks: Tensor | None = None  # (N, S, S) probabilities in the box
    keypoints: Tensor | None = None  # (N, J, 3) x, y in pixels of the image, and score
    label_scores: Tensor | None = None  # (K, H, W) logits of each class of label maps, of each pixel of the image


@dataclass(frozen=True, slots=True)
class Target(Rows):
    """Ground truth of one image."""

    labels: Tensor  # (N,) int64, 0..K-1
    ignore: Tensor  # (N,) bool: VOC "difficult" or COCO "iscrowd"; neither hit nor miss
    masks: Tensor | None = None  # (N, H, W) bool; without a pixel where the mask is unknown
    keypoints: Tensor | None = None  # (N, J, 3) float32 x, y and visibility: 0 not labelled, 1 hidden, 2 visible
    label_map: Tensor | None = None  # (H, W) uint8 class of each pixel, VOID where it is unknown


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images of one step, padded at the right and at the bottom to a common size.

    Attributes:
        pixels: (N, 3, H, W) uint8 RGB, of any memory format.
        sizes: (N, 2) int64, height and width of each image without its padding.
        seeds: (N,) int64, which seed the sampling of each image's anchors and regions in training; None: from torch's
            random generator.
    """

    pixels: Tensor
    sizes: Tensor
    seeds: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3 or self.pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be (N, 3, H, W) uint8, got {tuple(self.pixels.shape)} {self.pixels.dtype}")
        if self.sizes.shape != (len(self.pixels), 2):
            raise ValueError(f"sizes must be ({len(self.pixels)}, 2), got {tuple(self.sizes.shape)}")
        if self.seeds is not None and self.seeds.shape != (len(self.pixels),):
            raise ValueError(f"seeds must be ({len(self.pixels)},), got {tuple(self.seeds.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def from_images(cls, images: Sequence[Tensor], seeds: Sequence[int] = ()) -> Self:
        """Returns a batch, channels last, of (3, H, W) uint8 RGB images of any sizes."""
        if not images:
            raise ValueError("a batch needs at least one image")
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise ValueError(f"an image must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
        sizes = [image.shape[-2:] for image in images]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        device = images[0].device
        pixels = torch.zeros(len(images), height, width, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
            row[:, :h, :w] = image
        return cls(pixels, torch.tensor(sizes, device=device), torch.tensor(seeds, device=device) if seeds else None)

    def framed(self, size: tuple[int, int]) -> Self:
        """Returns the batch padded to ``size`` (height, width), channels last."""
        height, width = self.pixels.shape[2:]
        pixels = self.pixels.new_zeros(len(self), *size, 3).permute(0, 3, 1, 2)
        pixels[:, :, :height, :width] = self.pixels
        return replace(self, pixels=pixels)

    def size_list(self) -> list[tuple[int, int]]:
        """Returns (height, width) of each image; waits for a GPU."""
        return [(int(height), int(width)) for height, width in self.sizes.cpu().numpy()]

    def draw_seeds(self) -> Tensor:
        """Returns ``seeds``, or new ones (N,) from torch's random generator."""
        return torch.randint(2**31, (len(self),), device=self.pixels.device) if self.seeds is None else self.seeds

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{name: move(values, device) for name, values in present(self).items()})

    def pin_memory(self) -> Self:
        return replace(self, **{name: values.pin_memory() for name, values in present(self).items()})


def present(container: Any) -> dict[str, Tensor]:
    """Returns the fields of ``container`` that are not None, by name."""
    named = {f.name: getattr(container, f.name) for f in fields(container)}
    return {name: values for name, values in named.items() if values is not None}
