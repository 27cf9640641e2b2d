"""Samplers: the images that make up each batch.

Batch n is a pure function of the seed and n, so a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from detection.data.index import AnnotationIndex

__all__ = ["TestBatches", "TrainBatches", "repeat_factors"]

Key = tuple[int, int]  # (position in the run, row of the index)


class TrainBatches(Sampler[list[Key]]):
    """Batches for ever: one shuffled pass over the images after the other.

    Of several processes each gets its part of every batch, so a batch is the same whatever their number.

    Args:
        rows: (R,) the rows of the index to train on.
        sizes: (N, 2) height and width of every image of the index.
        batch_size: images per batch, of all processes.
        seed: of the run.
        group_by_aspect: batches of only upright or only lying images, which saves padding.
        start: number of the batch to begin with.
        repeats: (R,) how often a pass has each of ``rows``; of a fraction every pass draws anew whether it counts.
            None: once.
        share: (number of this process, of how many); the batch size is a multiple of the latter.
    """

    def __init__(
        self,
        rows: Tensor,
        sizes: Tensor,
        *,
        batch_size: int,
        seed: int,
        group_by_aspect: bool = True,
        start: int = 0,
        repeats: Tensor | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if not len(rows):
            raise ValueError("no image to train on: none has an object that is not ignored (data.skip_empty)")
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, start
        self.repeats = repeats
        number, count = share
        self.part = slice(number * batch_size // count, (number + 1) * batch_size // count)
        lying = sizes[rows, 1] >= sizes[rows, 0]
        self.groups = (lying if group_by_aspect else torch.zeros_like(lying)).long()

    def __iter__(self) -> Iterator[list[Key]]:
        number = position = 0
        waiting: tuple[list[Key], list[Key]] = ([], [])
        for places in self._passes():
            groups, rows = self.groups[places], self.rows[places]
            ends = [len(batch) + int((groups == group).sum()) for group, batch in enumerate(waiting)]
            full = sum(end // self.batch_size for end in ends)
            if number + full <= self.start:  # all of the pass is skipped
                for group, batch in enumerate(waiting):
                    members = (groups == group).nonzero().flatten()[-self.batch_size :].tolist()
                    batch += [(position + member, int(rows[member])) for member in members]
                    del batch[: len(batch) - ends[group] % self.batch_size]
                number += full
            else:
                for key, group in zip(enumerate(rows.tolist(), start=position), groups.tolist(), strict=True):
                    batch = waiting[group]
                    batch.append(key)
                    if len(batch) == self.batch_size:
                        if number >= self.start:
                            yield batch[self.part]
                        batch.clear()
                        number += 1
            position += len(places)

    def _passes(self) -> Iterator[Tensor]:
        """Yields the places among ``rows``, in the order of one epoch after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self.repeats is None:
                yield torch.randperm(len(self.rows), generator=generator)
            else:
                counts = (self.repeats + torch.rand(len(self.rows), generator=generator)).long()
                places = torch.arange(len(self.rows)).repeat_interleave(counts)
                yield places[torch.randperm(len(places), generator=generator)]


def repeat_factors(index: AnnotationIndex, rows: Tensor, threshold: float) -> Tensor:
    """Returns how often (R,) a pass has each image of ``rows`` (R,), float32, so that rare classes are seen more often.

    For a class c that the share f(c) of these images has, r(c) = max(1, sqrt(threshold / f(c))); an image has the
    largest r of its classes.  Objects that are ignored do not count.

    Source: Gupta et al. 2019, "LVIS", appendix, repeat factor sampling.
    """
    num_classes, counts = len(index.class_names), torch.diff(index.ends, prepend=index.ends.new_zeros(1))
    places = torch.full((len(index),), -1)
    places[rows] = torch.arange(len(rows))
    owners = places.repeat_interleave(counts)  # (M,) the place in ``rows`` of the image of each object
    counted = (owners >= 0) & ~index.ignore
    pairs = (owners * num_classes + index.labels)[counted].unique()  # an image and one of its classes each
    images, classes = pairs // num_classes, pairs % num_classes
    shares = classes.bincount(minlength=num_classes) / len(rows)
    repeats = (threshold / shares).sqrt().clamp(min=1)
    return torch.ones(len(rows)).scatter_reduce(0, images, repeats[classes], "amax")


class TestBatches(Sampler[list[Key]]):
    """Every one of ``rows`` once, in batches of ``batch_size``."""

    __test__ = False  # the name is no test case

    def __init__(self, rows: Sequence[int], *, batch_size: int = 1) -> None:
        self.rows, self.batch_size = rows, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield [(row, row) for row in self.rows[start : start + self.batch_size]]
