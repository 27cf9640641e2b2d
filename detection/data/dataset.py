"""One training or test sample: pixels and target, augmented and resized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.transforms import Augment, Resize
from detection.structures import ImageBatch, Target

__all__ = ["Batch", "DetectionDataset", "Sample", "collate"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as the detector sees it."""

    row: int  # in the index
    path: str
    image: Tensor  # (3, H, W) uint8 RGB
    target: Target  # pixels of the resized image


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step."""

    images: ImageBatch
    targets: tuple[Target, ...]
    rows: tuple[int, ...]
    paths: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        targets = tuple(target.to(device) for target in self.targets)
        return Batch(self.images.to(device), targets, self.rows, self.paths)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.targets, self.rows, self.paths)


class DetectionDataset(Dataset[Sample]):
    """The images of ``index``.

    A sample is asked for by (position, row): its place in the whole run, which seeds its augmentation, and its row in
    the index.  So the number of worker processes changes nothing.

    Args:
        index: images and objects.
        resize: to the detector's scale.
        augment: before resizing; None at test time.
        seed: of the run.
    """

    def __init__(
        self, index: AnnotationIndex, *, resize: Resize, augment: Augment | None = None, seed: int = 0
    ) -> None:
        self.index, self.resize, self.augment, self.seed = index, resize, augment, seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, row = key
        path = self.index.paths[row]
        height, width = self.index.sizes[row].tolist()
        image = read_image(path, size=(height, width), apply_exif=bool(self.index.apply_exif[row]))
        target = self.index.target(row)
        if self.augment is not None:
            image, target = self.augment(image, target, seed=(self.seed, position))
        image, target = self.resize(image, target)
        return Sample(row, path, torch.from_numpy(image).permute(2, 0, 1).contiguous(), target)


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of ``samples``, padded to a common size."""
    return Batch(
        ImageBatch.from_images([sample.image for sample in samples]),
        tuple(sample.target for sample in samples),
        tuple(sample.row for sample in samples),
        tuple(sample.path for sample in samples),
    )
