"""Which images make up which batch.

Batch n is a pure function of the seed and n, so a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["TestBatches", "TrainBatches"]

Key = tuple[int, int]  # (position in the run, row of the index)


class TrainBatches(Sampler[list[Key]]):
    """Batches for ever: one shuffled pass over the images after the other.

    Args:
        rows: (R,) the rows of the index to train on.
        sizes: (N, 2) height and width of every image of the index.
        batch_size: images per batch.
        seed: of the run.
        group_by_aspect: batches of only upright or only lying images, which saves padding.
        start: number of the batch to begin with.
    """

    def __init__(
        self, rows: Tensor, sizes: Tensor, *, batch_size: int, seed: int, group_by_aspect: bool = True, start: int = 0
    ) -> None:
        if not len(rows):
            raise ValueError("no image to train on: none has an object that is not ignored (data.skip_empty)")
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, start
        lying = sizes[rows, 1] >= sizes[rows, 0]
        self.groups = (lying if group_by_aspect else torch.zeros_like(lying)).long()

    def __iter__(self) -> Iterator[list[Key]]:
        number = 0
        waiting: tuple[list[Key], list[Key]] = ([], [])
        for position, place in enumerate(self._places()):
            batch = waiting[int(self.groups[place])]
            batch.append((position, int(self.rows[place])))
            if len(batch) == self.batch_size:
                if number >= self.start:
                    yield list(batch)
                batch.clear()
                number += 1

    def _places(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.rows), generator=generator).tolist()


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
