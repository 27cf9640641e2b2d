"""Training samples of an R-CNN: proposals, each cut from its image and warped to a square.

Shapes: N images, H W height and width, M regions of all images together, R regions of one image, S side of a warped
region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.ops import roi_align

from detection.boxes import iou
from detection.data.dataset import Batch, Sample
from detection.data.index import AnnotationIndex
from detection.data.loader import make_loader
from detection.data.proposals import StoredProposals
from detection.model.test_time.views import flip_boxes
from detection.structures import Target

__all__ = ["RegionBatches", "RegionDataset", "region_loader", "to_region", "warp"]

Key = tuple[int, int]  # (position in the run, number of the region)


def warp(image: Tensor, regions: Tensor, side: int) -> Tensor:
    """Warps the ``regions`` (R, 4) of an ``image`` (3, H, W) uint8 to (R, 3, S, S), S = ``side``.

    Samples bilinearly, one point per pixel, at the exact position of the centre of each warped pixel in the region.
    """
    warped = roi_align(image[None].float(), [regions], side, sampling_ratio=1, aligned=True)
    return warped.round().clamp(0, 255).to(torch.uint8)


def to_region(boxes: Tensor, region: Tensor, side: int) -> Tensor:
    """Converts ``boxes`` (..., 4) of an image to pixels of its ``region`` (4,) warped to ``side`` x ``side``."""
    corner, size = region[:2], region[2:] - region[:2]
    return (boxes - corner.repeat(2)) * (side / size).repeat(2)


class RegionDataset(Dataset[Sample]):
    """The stored proposals of all images, one sample each.

    A sample is indexed by (position, number): its position in the whole run, which seeds the flip, and its number among
    the proposals of all images.  Its target holds the object with the largest overlap if the region is positive, in
    pixels of the warped region and not clipped to its border; else nothing.

    Args:
        index: images and objects.
        proposals: proposals of every image.
        side: S, side of a warped region.
        positive_iou: overlap from which a region is positive.
        seed: seed of the run.
    """

    def __init__(
        self, index: AnnotationIndex, proposals: StoredProposals, *, side: int, positive_iou: float, seed: int
    ) -> None:
        if not len(proposals.boxes):
            raise ValueError("no region to train on: the stored proposals are none")
        self.index, self.proposals = index, proposals
        self.side, self.positive_iou, self.seed = side, positive_iou, seed

    def __len__(self) -> int:
        return len(self.proposals.boxes)

    def __getitem__(self, key: Key) -> Sample:
        position, number = key
        row = int(torch.searchsorted(self.proposals.ends, number, right=True))
        region = self.proposals.boxes[number]
        (warped,) = warp(torch.tensor(self.index.image(row)).permute(2, 0, 1), region[None], self.side)
        target = self._target(self.index.target(row), region)
        if np.random.default_rng((self.seed, position)).random() < 0.5:
            warped = warped.flip(2)
            target = replace(target, boxes=flip_boxes(target.boxes[None], torch.tensor([self.side]))[0])
        return Sample(row, self.index.paths[row], warped, target)

    def _target(self, objects: Target, region: Tensor) -> Target:
        wanted = objects[~objects.ignore]
        overlaps = iou(wanted.boxes, region[None])[:, 0]
        best = overlaps.argsort(descending=True, stable=True)[:1]
        found = wanted[best[overlaps[best] >= self.positive_iou]]
        return replace(found, boxes=to_region(found.boxes, region, self.side))


class RegionBatches(Sampler[list[Key]]):
    """Endless batches of regions, drawn with replacement from all images; batch n depends only on the seed and n.

    A shuffled epoch as in TrainBatches would list all regions, a hundred million on ImageNet.

    Args:
        num_regions: M.
        batch_size: regions per batch.
        seed: seed of the run.
        start: number of the batch to begin with.
    """

    def __init__(self, num_regions: int, *, batch_size: int, seed: int, start: int = 0) -> None:
        self.num_regions, self.batch_size, self.seed, self.start = num_regions, batch_size, seed, start

    def __iter__(self) -> Iterator[list[Key]]:
        number = self.start
        while True:
            numbers = np.random.default_rng((self.seed, number)).integers(self.num_regions, size=self.batch_size)
            yield [(number * self.batch_size + place, region) for place, region in enumerate(numbers.tolist())]
            number += 1


def region_loader(
    dataset: RegionDataset, workers: int, *, batch_size: int, seed: int, start: int = 0, pin: bool = False
) -> DataLoader[Batch]:
    """Returns endless batches of ``batch_size`` warped regions, from batch ``start`` of the run seeded ``seed``."""
    batches = RegionBatches(len(dataset), batch_size=batch_size, seed=seed, start=start)
    return make_loader(dataset, batches, workers=workers, pin=pin)
