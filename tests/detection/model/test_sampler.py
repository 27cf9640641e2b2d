"""Mirrors detection/model/sampler.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detection.model.sampler import BalancedSampler, Drawn
from detection.model.select import hash32

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def states(positives: int, negatives: int, ignored: int) -> Tensor:
    """Shuffled states (M,) of so many rows."""
    rows = torch.tensor([POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORED] * ignored, dtype=torch.int8)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def draw(sampler: BalancedSampler, *images: Tensor, seeds: tuple[int, ...] = (0,)) -> Drawn:
    """What is drawn of ``images`` with as many states each."""
    return sample(sampler, torch.stack(images), hash32(torch.tensor(seeds), torch.arange(len(images[0])), 0))


def sample(sampler: BalancedSampler, rows: Tensor, numbers: Tensor) -> Drawn:
    return sampler(rows == POSITIVE, rows == NEGATIVE, numbers)


def parts(drawn: Drawn, image: int = 0) -> tuple[Tensor, Tensor]:
    """Positive and negative rows of one image."""
    columns, positive, valid = drawn.columns[image], drawn.positive[image], drawn.valid[image]
    return columns[positive], columns[valid & ~positive]


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
    found = parts(draw(BalancedSampler(16, 0.25), rows))
    assert tuple(len(part) for part in found) == drawn
    for part, state in zip(found, (POSITIVE, NEGATIVE), strict=True):
        assert part.dtype == torch.int64
        assert (rows[part] == state).all()
        assert len(part.unique()) == len(part)


@pytest.mark.parametrize(("fraction", "drawn"), [(0.0, (0, 8)), (0.5, (4, 4)), (1.0, (8, 0))])
def test_fraction_bounds_the_positives(fraction: float, drawn: tuple[int, int]) -> None:
    sampler = BalancedSampler(8, fraction)
    found = parts(draw(sampler, states(20, 20, ignored=0)))
    assert tuple(len(part) for part in found) == drawn
    assert sampler.most_positives == drawn[0]


def test_every_row_has_its_chance() -> None:
    rows, sampler = states(6, 6, ignored=3), BalancedSampler(4, 0.5)
    found = draw(sampler, *[rows] * 300, seeds=tuple(range(300)))
    counts = found.columns[found.valid].bincount(minlength=len(rows))
    assert not counts[rows == IGNORED].any()
    # Two of six in each of 300 draws: 100 each, with a standard deviation of 8.
    assert ((counts[rows != IGNORED] > 60) & (counts[rows != IGNORED] < 140)).all()


def test_seed_decides_the_draw() -> None:
    rows, sampler = states(50, 50, ignored=9), BalancedSampler(16, 0.25)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed + 1)  # the state of torch's own generator does not matter
        return draw(sampler, rows, seeds=(seed,)).columns

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_no_rows() -> None:
    drawn = draw(BalancedSampler(16, 0.25), torch.zeros(0, dtype=torch.int8))
    assert drawn.columns.shape == drawn.positive.shape == drawn.valid.shape == (1, 0)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (8, -0.1), (8, 1.1)])
def test_impossible_samples_are_refused(count: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="count >= 1"):
        BalancedSampler(count, fraction)


def test_positives_come_first_then_negatives_then_padding() -> None:
    drawn = draw(BalancedSampler(16, 0.25), states(2, 5, ignored=40))
    assert drawn.positive.tolist() == [[True] * 2 + [False] * 14]
    assert drawn.valid.tolist() == [[True] * 7 + [False] * 9]
    assert ((drawn.columns >= 0) & (drawn.columns < 47)).all()  # of the padding too: they index the candidates


@pytest.mark.parametrize("available", [1, 5, 15])
def test_more_are_wanted_than_there_are(available: int) -> None:
    rows = states(1, available - 1, ignored=0)
    drawn = draw(BalancedSampler(16, 0.25), rows)
    assert drawn.columns.shape == (1, available)
    assert drawn.valid.all()
    assert sorted(drawn.columns[0].tolist()) == list(range(available))


def test_more_are_wanted_than_there_are_but_positives_are_bounded() -> None:
    drawn = draw(BalancedSampler(16, 0.25), states(8, 2, ignored=0))
    assert drawn.columns.shape == (1, 10)
    assert [len(part) for part in parts(drawn)] == [4, 2]


def test_the_smallest_numbers_are_drawn_and_equal_ones_by_place() -> None:
    rows = torch.tensor([[POSITIVE, POSITIVE, POSITIVE, NEGATIVE, IGNORED, NEGATIVE, NEGATIVE]], dtype=torch.int8)
    numbers = torch.tensor([[7, 3, 2**32 - 1, 5, 0, 5, 2**32 - 1]])
    drawn = sample(BalancedSampler(4, 0.5), rows, numbers)
    assert drawn.columns.tolist() == [[1, 0, 3, 5]]
    assert drawn.positive.tolist() == [[True, True, False, False]]


def test_the_largest_numbers_at_the_last_columns_are_still_candidates() -> None:
    rows = torch.tensor([[NEGATIVE, POSITIVE]], dtype=torch.int8)
    drawn = sample(BalancedSampler(2, 0.5), rows, torch.full((1, 2), 2**32 - 1))
    assert drawn.columns.tolist() == [[1, 0]]
    assert drawn.positive.tolist() == [[True, False]]
    assert drawn.valid.all()


def test_padding_of_the_batch_and_its_other_images_change_no_draw() -> None:
    rows, sampler = states(30, 60, ignored=9), BalancedSampler(16, 0.25)
    wide = torch.cat([rows, torch.full((40,), IGNORED, dtype=torch.int8)])
    others = [states(count, 139 - 2 * count, ignored=count) for count in (0, 60)]
    alone = parts(draw(sampler, rows, seeds=(7,)))
    for image, batch in enumerate(([wide, *others], [others[0], wide, others[1]], [*others, wide])):
        seeds = tuple(7 if number == image else number + 100 for number in range(3))
        drawn = draw(sampler, *batch, seeds=seeds)
        for found, expected in zip(parts(drawn, image), alone, strict=True):
            assert torch.equal(found, expected)
