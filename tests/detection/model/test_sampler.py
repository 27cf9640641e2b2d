"""Mirrors detection/model/sampler.py."""

from __future__ import annotations

import pytest
import torch

from detection.model.matcher import IGNORED, NEGATIVE, POSITIVE
from detection.model.sampler import BalancedSampler


def states(positives: int, negatives: int, ignored: int) -> torch.Tensor:
    """Shuffled states of so many rows."""
    rows = torch.tensor([POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORED] * ignored, dtype=torch.int8)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn"),
    [
        (50, 50, (4, 12)),  # enough of both
        (2, 50, (2, 14)),  # negatives fill up
        (50, 3, (4, 3)),  # positives do not
        (1, 1, (1, 1)),
        (0, 50, (0, 16)),
        (50, 0, (4, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts(positives: int, negatives: int, drawn: tuple[int, int]) -> None:
    rows = states(positives, negatives, ignored=9)
    found = BalancedSampler(16, 0.25)(rows)
    assert tuple(len(part) for part in found) == drawn
    for part, state in zip(found, (POSITIVE, NEGATIVE), strict=True):
        assert part.dtype == torch.int64
        assert (rows[part] == state).all()
        assert len(part.unique()) == len(part)


@pytest.mark.parametrize(("fraction", "drawn"), [(0.0, (0, 8)), (0.5, (4, 4)), (1.0, (8, 0))])
def test_fraction_bounds_the_positives(fraction: float, drawn: tuple[int, int]) -> None:
    found = BalancedSampler(8, fraction)(states(20, 20, ignored=0))
    assert tuple(len(part) for part in found) == drawn


def test_every_row_has_its_chance() -> None:
    torch.manual_seed(0)
    rows = states(6, 6, ignored=3)
    sampler = BalancedSampler(4, 0.5)
    drawn = {int(row) for _ in range(100) for part in sampler(rows) for row in part}
    assert drawn == set((rows != IGNORED).nonzero().flatten().tolist())


def test_seed_decides_the_draw() -> None:
    rows, sampler = states(50, 50, ignored=0), BalancedSampler(16, 0.5)
    torch.manual_seed(3)
    first = torch.cat(sampler(rows))
    second = torch.cat(sampler(rows))
    torch.manual_seed(3)
    assert torch.equal(torch.cat(sampler(rows)), first)
    assert not torch.equal(first, second)


def test_no_rows() -> None:
    positives, negatives = BalancedSampler(16, 0.25)(torch.zeros(0, dtype=torch.int8))
    assert len(positives) == len(negatives) == 0


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (8, -0.1), (8, 1.1)])
def test_impossible_samples_are_refused(count: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="count >= 1"):
        BalancedSampler(count, fraction)


def test_a_generator_decides_what_is_drawn() -> None:
    rows, sampler = states(50, 50, ignored=9), BalancedSampler(16, 0.25)

    def draw(seed: int) -> torch.Tensor:
        torch.rand(seed)  # the state of torch's own generator does not matter
        return torch.cat(sampler(rows, torch.Generator().manual_seed(seed)))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
