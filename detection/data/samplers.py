"""Samplers, which choose the images of each batch.

Batch n depends only on the seed and n, so a run resumes exactly.
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
    """Endless batches: one shuffled epoch after the other.

    With several processes, each gets its part of every batch, so batches do not depend on the number of processes.

    Args:
        rows: (R,) the rows of the index to train on.
        sizes: (N, 2) height and width of every image of the index.
        batch_size: images per batch, over all processes.
        seed: seed of the run.
        group_by_aspect: make batches of only portrait or only landscape images, which saves padding.
        start: number of the first batch.
        repeats: (R,) how often each of ``rows`` occurs in an epoch; the fractional part is the probability of one more
            time, drawn anew each epoch.  None: once.
        share: (rank, world size); the batch size is a multiple of the world size.
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
            if number + full <= self.start:  # the whole epoch is skipped
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
        """Yields for each epoch the positions among ``rows`` in shuffled order."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self.repeats is None:
                yield torch.randperm(len(self.rows), generator=generator)
            else:
                counts = (self.repeats + torch.rand(len(self.rows), generator=generator)).long()
                places = torch.arange(len(self.rows)).repeat_interleave(counts)
                yield places[torch.randperm(len(places), generator=generator)]


def repeat_factors(index: AnnotationIndex, rows: Tensor, threshold: float) -> Tensor:
    """Returns the repeat factor (R,), float32, of each image of ``rows`` (R,), so that rare classes occur more often.

    A class c that occurs in the fraction f(c) of these images has r(c) = max(1, sqrt(threshold / f(c))).  An image gets
    the largest r of its classes.  Ignored objects do not count.

    Source: Gupta et al. 2019, "LVIS", appendix, repeat factor sampling.
    """
    num_classes, counts = len(index.class_names), torch.diff(index.ends, prepend=index.ends.new_zeros(1))
    places = torch.full((len(index),), -1)
    places[rows] = torch.arange(len(rows))
    owners = places.repeat_interleave(counts)  # (M,) position in ``rows`` of each object's image
    counted = (owners >= 0) & ~index.ignore
    pairs = (owners * num_classes + index.labels)[counted].unique()  # (image, class), each once
    images, classes = pairs // num_classes, pairs % num_classes
    shares = classes.bincount(minlength=num_classes) / len(rows)
    repeats = (threshold / shares).sqrt().clamp(min=1)
    return torch.ones(len(rows)).scatter_reduce(0, images, repeats[classes], "amax")


class TestBatches(Sampler[list[Key]]):
    """Every one of ``rows`` once, in batches of ``batch_size``."""

    __test__ = False  # pytest would collect it by its name

    def __init__(self, rows: Sequence[int], *, batch_size: int = 1) -> None:
        self.rows, self.batch_size = rows, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield [(row, row) for row in self.rows[start : start + self.batch_size]]
