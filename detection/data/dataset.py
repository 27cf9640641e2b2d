"""One training or test sample: pixels and target, augmented and resized."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from detection.data.copy_paste import choose, paste
from detection.data.images import ImageError
from detection.data.index import AnnotationIndex
from detection.data.proposals import StoredProposals
from detection.data.slices import Slices, cut
from detection.data.transforms import Augment, Change, RandomResize, Resize
from detection.padded import Regions, Targets
from detection.structures import ImageBatch, Proposals, Target

__all__ = ["Batch", "DetectionDataset", "Sample", "collate"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as the detector sees it."""

    row: int  # in the index
    path: str
    image: Tensor  # (3, H, W) uint8 RGB
    target: Target  # pixels of the resized image
    proposals: Proposals | None = None  # from a file, in pixels of the resized image
    seed: int = 0  # 0..2**31 - 1, for sampling its anchors and regions
    batch: Tensor | None = None  # (N, 3, H, W) pixels of the whole batch, if ``image`` is a view of them


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step."""

    images: ImageBatch
    targets: Targets
    rows: tuple[int, ...]
    paths: tuple[str, ...]
    proposals: Regions | None = None  # from a file

    def to(self, device: torch.device | str) -> Batch:
        proposals = None if self.proposals is None else self.proposals.to(device)
        return replace(self, images=self.images.to(device), targets=self.targets.to(device), proposals=proposals)

    def pin_memory(self) -> Batch:
        proposals = None if self.proposals is None else self.proposals.pin_memory()
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory(), proposals=proposals)


class DetectionDataset(Dataset[Sample]):
    """The images of ``index``.

    The key of a sample is (position, row).  Its position in the whole run seeds its augmentation and the sampling of
    its anchors; row is its row in the index.  So the number of workers and processes changes no sample.

    With ``copy_paste``, objects of another image are pasted, which is augmented and resized as well.  With ``slices``,
    a row is the number of a window, which is cut out before any other step.

    Args:
        index: images and objects.
        resize: resizes to the detector's scale.
        augment: augmentation before resizing; None at test time.
        seed: seed of the run.
        proposals: proposals of every image, from a file.
        fields: fields of the targets.
        label_maps: whether targets have label maps.
        copy_paste: probability of pasting objects, which need masks.
        corrupt: corruption before any other step, to test robustness.
        slices: windows of the images; each is one sample.

    Raises:
        ValueError: ``index`` lacks fields or label maps, or fields are combined with proposals.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        *,
        resize: Change,
        augment: Augment | None = None,
        seed: int = 0,
        proposals: StoredProposals | None = None,
        fields: Collection[str] = (),
        copy_paste: float = 0.0,
        corrupt: Change | None = None,
        slices: Slices | None = None,
        label_maps: bool = False,
    ) -> None:
        index.require(fields, label_maps=label_maps)
        if fields and proposals is not None:
            raise ValueError(
                f"{', '.join(fields)} can't be trained on proposals from a file; leave data.proposals empty"
            )
        self.index, self.resize, self.augment, self.seed = index, resize, augment, seed
        self.proposals, self.fields, self.copy_paste, self.corrupt = proposals, fields, copy_paste, corrupt
        self.slices, self.label_maps = slices, label_maps
        wanted = index.num_wanted() if slices is None else slices.wanted
        self.pasted_from = wanted.nonzero().flatten() if copy_paste else None

    def __len__(self) -> int:
        return len(self.index) if self.slices is None else len(self.slices.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, row = key
        seed = (self.seed, position)
        image, target = self._named_view(row, seed)
        if self.pasted_from is not None:
            image, target = self._paste(image, target, self.pasted_from[self.pasted_from != row], seed)
        return self._sample(key, image, target)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        """Returns the samples of one batch, which a loader requests together.

        Where the sample sizes follow from the image sizes, images are resized straight into the batch's memory; a
        copy of all pixels took a tenth of the time.
        """
        if self.pasted_from is not None or not isinstance(self.resize, (Resize, RandomResize)):
            return [self[key] for key in keys]
        seeds = [(self.seed, position) for position, _ in keys]
        views = [
            self._named(row, partial(self._unresized, row, seed)) for (_, row), seed in zip(keys, seeds, strict=True)
        ]
        scales = [self.resize.chosen(seed) for seed in seeds]
        sizes = [scale.size(image.shape[:2]) for scale, (image, _) in zip(scales, views, strict=True)]
        batch = np.empty((len(keys), *(max(sides) for sides in zip(*sizes, strict=True)), 3), dtype=np.uint8)
        pixels, samples = torch.from_numpy(batch).permute(0, 3, 1, 2), list[Sample]()
        for key, (image, target), scale, place, (height, width) in zip(keys, views, scales, batch, sizes, strict=True):
            place[height:], place[:height, width:] = 0, 0
            resize = partial(scale, image, target, out=place[:height, :width])
            samples.append(replace(self._sample(key, *self._named(key[1], resize)), batch=pixels))
        return samples

    def _sample(self, key: tuple[int, int], image: NDArray[np.uint8], target: Target) -> Sample:
        position, row = key
        proposals = None
        if self.proposals is not None:
            target, proposals = _without_proposals(target)
        pixels = torch.from_numpy(image).permute(2, 0, 1)  # a view: the batch takes pixels as they are decoded
        draws = np.random.SeedSequence((self.seed, position), spawn_key=(2,)).generate_state(1, np.uint32)
        image_row = self._image_row(row)
        return Sample(image_row, self.index.paths[image_row], pixels, target, proposals, int(draws[0]) >> 1)

    def _image_row(self, row: int) -> int:
        """Returns the row in the index of a sample's image."""
        return row if self.slices is None else int(self.slices.images[row])

    def _named_view(self, row: int, seed: Sequence[int]) -> tuple[NDArray[np.uint8], Target]:
        """Returns the image (H, W, 3) of ``row`` and its target, augmented and resized."""

        def view() -> tuple[NDArray[np.uint8], Target]:
            return self.resize(*self._unresized(row, seed), seed=seed)

        return self._named(row, view)

    def _named(
        self, row: int, view: Callable[[], tuple[NDArray[np.uint8], Target]]
    ) -> tuple[NDArray[np.uint8], Target]:
        """Returns ``view(row)``; errors name the image.

        Raises:
            ImageError: the image can't be read, is not of its annotated size, or can't be augmented or resized.
        """
        try:
            return view()
        except ImageError:
            raise
        except (ValueError, cv2.error) as error:
            raise ImageError(f"image {self.index.paths[self._image_row(row)]}: {error}") from error

    def _unresized(self, row: int, seed: Sequence[int]) -> tuple[NDArray[np.uint8], Target]:
        """Returns the augmented image (H, W, 3) of ``row`` and its target, which holds proposals as further rows."""
        image_row = self._image_row(row)
        image = self.index.image(image_row)
        target = self.index.target(image_row, fields=self.fields, label_maps=self.label_maps)
        if self.proposals is not None:
            target = _with_proposals(target, self.proposals.of(image_row))
        if self.slices is not None:
            image, target = cut(image, target, self.slices.window(row), visible=self.slices.visible)
        if self.corrupt is not None:
            image, target = self.corrupt(image, target, seed=seed)
        if self.augment is not None:
            image, target = self.augment(image, target, seed=seed)
        return image, target

    def _paste(
        self, image: NDArray[np.uint8], target: Target, rows: Tensor, seed: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """Returns ``image`` and ``target``, at random with objects of one of the images ``rows`` (R,) pasted over."""
        chance = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        if chance.random() >= self.copy_paste or not len(rows):
            return image, target
        other, objects = self._named_view(int(rows[chance.integers(len(rows))]), (*seed, 1))
        chosen = choose(objects, chance)
        return paste(image, target, other, chosen) if len(chosen) else (image, target)


def _with_proposals(target: Target, proposals: Proposals) -> Target:
    """Appends the proposals as rows with label -1, so that they are transformed like objects."""
    count = len(proposals)
    return target.joined(
        Target(
            boxes=proposals.boxes,
            labels=target.labels.new_full((count,), -1),
            ignore=target.ignore.new_ones(count),
        )
    )


def _without_proposals(target: Target) -> tuple[Target, Proposals]:
    """Splits objects from proposals, best first; the scores are ranks only, as training ignores them."""
    boxes = target.boxes[target.labels < 0]
    return target[target.labels >= 0], Proposals(boxes=boxes, scores=-torch.arange(len(boxes)).float())


def _images(samples: Sequence[Sample]) -> ImageBatch:
    seeds, batch = [sample.seed for sample in samples], samples[0].batch if samples else None
    if batch is None or len(batch) != len(samples) or any(sample.batch is not batch for sample in samples):
        return ImageBatch.from_images([sample.image for sample in samples], seeds)
    return ImageBatch(batch, torch.tensor([sample.image.shape[1:] for sample in samples]), torch.tensor(seeds))


def collate(samples: Sequence[Sample]) -> Batch:
    """Returns one batch of ``samples``, padded to a common size."""
    proposals = [sample.proposals for sample in samples if sample.proposals is not None]
    return Batch(
        _images(samples),
        Targets.pad([sample.target for sample in samples]),
        tuple(sample.row for sample in samples),
        tuple(sample.path for sample in samples),
        Regions.pad(proposals) if len(proposals) == len(samples) else None,
    )
