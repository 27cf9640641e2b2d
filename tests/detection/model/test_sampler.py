"""Mirrors detection/model/sampler.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detection.model.sampler import BalancedSampler, Drawn
from detection.model.select import hash32

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def states(positives: int, negatives: int, ignored: int = 0) -> Tensor:
    """Shuffled states (M,) of so many rows."""
    rows = torch.tensor([POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORED] * ignored, dtype=torch.int8)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def draw(sampler: BalancedSampler, *images: Tensor, seeds: Any = (0,), numbers: Tensor | None = None) -> Drawn:
    rows = torch.stack(images)
    numbers = hash32(torch.tensor(seeds), torch.arange(rows.shape[1]), 0) if numbers is None else numbers
    return sampler(rows == POSITIVE, rows == NEGATIVE, numbers)


def parts(drawn: Drawn, image: int = 0) -> tuple[Tensor, Tensor]:
    columns, positive, valid = drawn.columns[image], drawn.positive[image], drawn.valid[image]
    return columns[positive], columns[valid & ~positive]


@pytest.mark.parametrize(
    ("counts", "sample", "drawn"),
    [
        ((50, 50, 9), (16, 0.25), (4, 12)),  # enough of both
        ((2, 50, 9), (16, 0.25), (2, 14)),  # negatives fill up
        ((50, 3, 9), (16, 0.25), (4, 3)),  # positives do not
        ((1, 1, 9), (16, 0.25), (1, 1)),
        ((0, 50, 9), (16, 0.25), (0, 16)),
        ((50, 0, 9), (16, 0.25), (4, 0)),
        ((0, 0, 9), (16, 0.25), (0, 0)),
        ((1, 4, 0), (16, 0.25), (1, 4)),  # more are wanted than there are
        ((8, 2, 0), (16, 0.25), (4, 2)),
        ((0, 0, 0), (16, 0.25), (0, 0)),
        ((20, 20, 0), (8, 0.0), (0, 8)),
        ((20, 20, 0), (8, 0.5), (4, 4)),
        ((20, 20, 0), (8, 1.0), (8, 0)),
    ],
)
def test_counts(counts, sample, drawn) -> None:
    """Positives come first, then negatives, then padding, which indexes the candidates too."""
    rows, sampler = states(*counts), BalancedSampler(*sample)
    found = draw(sampler, rows)
    width, positives, all_drawn = min(sample[0], sum(counts)), drawn[0], sum(drawn)
    assert sampler.most_positives == int(sample[0] * sample[1])
    assert found.positive.tolist() == [[True] * positives + [False] * (width - positives)]
    assert found.valid.tolist() == [[True] * all_drawn + [False] * (width - all_drawn)]
    assert ((found.columns >= 0) & (found.columns < max(1, sum(counts)))).all()
    for part, state in zip(parts(found), (POSITIVE, NEGATIVE), strict=True):
        assert part.dtype == torch.int64
        assert (rows[part] == state).all()
        assert len(part.unique()) == len(part)


def test_every_row_has_its_chance_and_the_seed_decides() -> None:
    rows, sampler = states(6, 6, ignored=3), BalancedSampler(4, 0.5)
    found = draw(sampler, *[rows] * 300, seeds=tuple(range(300)))
    counts = found.columns[found.valid].bincount(minlength=len(rows))
    assert not counts[rows == IGNORED].any()
    # Two of six in each of 300 draws: 100 each, with a standard deviation of 8.
    assert ((counts[rows != IGNORED] > 60) & (counts[rows != IGNORED] < 140)).all()
    torch.manual_seed(1)  # the state of torch's own generator does not matter
    assert torch.equal(draw(sampler, rows, seeds=(3,)).columns[0], found.columns[3])


def test_the_smallest_numbers_are_drawn_and_equal_ones_by_place() -> None:
    rows = torch.tensor([POSITIVE, POSITIVE, POSITIVE, NEGATIVE, IGNORED, NEGATIVE, NEGATIVE])
    numbers = torch.tensor([[7, 3, 2**32 - 1, 5, 0, 5, 2**32 - 1]])
    drawn = draw(BalancedSampler(4, 0.5), rows, numbers=numbers)
    assert (drawn.columns.tolist(), drawn.positive.tolist()) == ([[1, 0, 3, 5]], [[True, True, False, False]])
    # The largest numbers at the last columns are still candidates.
    drawn = draw(BalancedSampler(2, 0.5), torch.tensor([NEGATIVE, POSITIVE]), numbers=torch.full((1, 2), 2**32 - 1))
    assert (drawn.columns.tolist(), drawn.positive.tolist()) == ([[1, 0]], [[True, False]])
    assert drawn.valid.all()


def test_impossible_samples_are_refused() -> None:
    for count, fraction in ((0, 0.5), (8, -0.1), (8, 1.1)):
        with pytest.raises(ValueError, match="count >= 1"):
            BalancedSampler(count, fraction)
