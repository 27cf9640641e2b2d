"""Views of images for a classifier: augmented in training; one crop, ten crops or whole images in a test.

Source: "Deep Residual Learning for Image Recognition", section 3.4; Krizhevsky et al. 2012, section 4.1 (ten crops).
Shapes: V views of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detection.data.dataset import DetectionDataset
from detection.data.index import AnnotationIndex
from detection.data.loader import make_loader
from detection.data.samplers import TestBatches
from detection.model.test_time.views import resize_images
from detection.structures import ImageBatch, Target

__all__ = ["ClassImages", "ClassViews", "Views", "class_view_loader"]

AT_ONCE = 64  # images per batch; whole images come one by one, as their sizes differ


class ClassImages(DetectionDataset):
    """The images of an index, for training; each object becomes the whole image and keeps its label.

    Augmentation then skips boxes, which take most of the time for images of 32 x 32 pixels.
    """

    def _unresized(self, row: int, seed: Sequence[int]) -> tuple[NDArray[np.uint8], Target]:
        image = self.index.image(row)
        if self.augment is not None:
            image = self.augment.pixels(image, seed=seed)
        whole = torch.tensor([[0.0, 0.0, image.shape[1], image.shape[0]]])
        target = self.index.target(row)
        return image, replace(target, boxes=whole.repeat(len(target), 1))


@dataclass(frozen=True, kw_only=True)
class ClassViews:
    """The views of an image that a classifier sees.

    Attributes:
        kind: "crop", the central crop; "ten_crop", also those at the corners, and flips of all five; "dense", the whole
            image at each of ``scales``, for the fully convolutional form of a network. Corners are those of the whole
            image; Krizhevsky et al. crop its central square first.
        crop: side of a crop, pixels.
        shorter_side: shorter side of the image that crops are cut from, pixels.
        scales: shorter sides of the whole images, pixels.
    """

    kind: Literal["crop", "ten_crop", "dense"]
    crop: int
    shorter_side: int
    scales: tuple[int, ...]

    def of(self, image: Tensor) -> list[Tensor]:
        """Returns the views (3, H', W') of an ``image`` (3, H, W) uint8."""
        if self.kind == "dense":
            return [_resized(image, scale) for scale in self.scales]
        resized, side = _resized(image, self.shorter_side), self.crop
        height, width = resized.shape[1:]
        bottom, right = height - side, width - side
        corners = [(bottom // 2, right // 2)]
        if self.kind == "ten_crop":
            corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        crops = [resized[:, y : y + side, x : x + side] for y, x in corners]
        return crops if self.kind == "crop" else crops + [crop.flip(2) for crop in crops]


@dataclass(frozen=True, slots=True)
class Views:
    """Some test images: row i of each of the V batches is a view of image ``rows[i]``."""

    rows: tuple[int, ...]
    batches: tuple[ImageBatch, ...]

    def pin_memory(self) -> Views:
        return Views(self.rows, tuple(images.pin_memory() for images in self.batches))


class _ViewDataset(Dataset[tuple[int, list[Tensor]]]):
    def __init__(self, index: AnnotationIndex, views: ClassViews) -> None:
        self.index, self.views = index, views

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, list[Tensor]]:
        _, row = key
        return row, self.views.of(torch.tensor(self.index.image(row)).permute(2, 0, 1))


def class_view_loader(
    index: AnnotationIndex, views: ClassViews, *, rows: Sequence[int], workers: int, pin: bool = False
) -> DataLoader[Any]:
    """Returns the ``views`` of the images ``rows`` of ``index``, as ``Views``."""
    batches = TestBatches(rows, batch_size=1 if views.kind == "dense" else AT_ONCE)
    return make_loader(_ViewDataset(index, views), batches, workers=workers, pin=pin, collate=_collate)


def _collate(samples: list[tuple[int, list[Tensor]]]) -> Views:
    rows, images = zip(*samples, strict=True)
    return Views(tuple(rows), tuple(ImageBatch.from_images(view) for view in zip(*images, strict=True)))


def _resized(image: Tensor, shorter: int) -> Tensor:
    """Returns the resized image, or the image itself if it has that size already."""
    if min(image.shape[1:]) == shorter:
        return image
    (resized,) = resize_images(ImageBatch.from_images([image]), shorter).pixels
    return resized
