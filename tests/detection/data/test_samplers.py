"""Mirrors detection/data/samplers.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from detection.data.index import AnnotationIndex
from detection.data.samplers import TestBatches, TrainBatches, repeat_factors

# rows 0..9: three upright, one square, six lying
SIZES = torch.tensor([[80, 60]] * 3 + [[60, 60]] + [[60, 80]] * 6)
ROWS = torch.arange(10)
Batches = list[list[tuple[int, int]]]


def draw(count: int, *, rows: torch.Tensor = ROWS, batch_size: int = 2, group: bool = True, **others: Any) -> Batches:
    options: dict[str, Any] = {"seed": 0} | others
    sampler = TrainBatches(rows, SIZES, batch_size=batch_size, group_by_aspect=group, **options)
    return list(islice(sampler, count))


def rows_of(batches: Batches) -> list[int]:
    return [row for batch in batches for _, row in batch]


def test_batches_have_their_size_and_go_on_for_ever() -> None:
    assert [len(batch) for batch in draw(50, batch_size=3)] == [3] * 50


@pytest.mark.parametrize("batch_size", [1, 2, 5, 10])
def test_every_image_comes_once_per_pass(batch_size: int) -> None:
    batches = draw(40 // batch_size, batch_size=batch_size, group=False)
    passes = [rows_of(batches)[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4  # each pass in an order of its own


def test_positions_count_the_images_of_the_run() -> None:
    positions = [position for batch in draw(12, group=False) for position, _ in batch]
    assert positions == list(range(24))


def test_upright_and_lying_images_never_mix() -> None:
    for batch in draw(200, batch_size=4):
        assert len({row < 3 for _, row in batch}) == 1  # a square counts as lying


def test_without_groups_they_do_mix() -> None:
    assert any(len({row < 3 for _, row in batch}) == 2 for batch in draw(20, group=False))


def test_groups_leave_no_image_out() -> None:
    counts = torch.bincount(torch.tensor(rows_of(draw(300))), minlength=10)
    assert counts.min() >= 58  # 600 images in 60 passes, less what waits in unfinished batches
    assert counts.max() <= 62


def test_no_position_comes_twice_in_grouped_batches() -> None:
    positions = [position for batch in draw(100, batch_size=3) for position, _ in batch]
    assert len(set(positions)) == 300


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("start", [1, 4, 17, 60])
@pytest.mark.parametrize("size", [3, 4, 12])
def test_a_run_that_starts_later_goes_on_exactly(group: bool, start: int, size: int) -> None:
    assert draw(10, batch_size=size, group=group, start=start) == draw(start + 10, batch_size=size, group=group)[start:]


def test_the_same_seed_gives_the_same_and_another_another_order() -> None:
    assert draw(10) == draw(10)
    assert draw(10) != draw(10, seed=1)


def test_a_sampler_can_be_gone_through_twice() -> None:
    sampler = TrainBatches(ROWS, SIZES, batch_size=2, seed=0)
    assert list(islice(sampler, 7)) == list(islice(sampler, 7))


def test_the_order_does_not_depend_on_numbers_drawn_elsewhere() -> None:
    first = draw(10)
    torch.manual_seed(5)
    torch.rand(3)
    assert draw(10) == first


def test_only_the_given_rows_come() -> None:
    assert set(rows_of(draw(20, rows=torch.tensor([1, 2, 7, 8])))) == {1, 2, 7, 8}


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    (batch,) = draw(1, rows=torch.tensor([1, 2]), batch_size=5)
    assert [position for position, _ in batch] == list(range(5))
    assert {row for _, row in batch} == {1, 2}


def test_no_image_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no image to train on.*data\.skip_empty"):
        TrainBatches(torch.zeros(0, dtype=torch.int64), SIZES, batch_size=2, seed=0)


# repeated images

REPEATS = torch.tensor([2.0, 1.25] + [1.0] * 8)


def repeated(count: int, *, group: bool = False, **others: Any) -> Batches:
    return draw(count, group=group, repeats=REPEATS, **others)


def test_images_come_as_often_as_their_factor_says() -> None:
    counts = torch.bincount(torch.tensor(rows_of(repeated(2250))), minlength=10)  # 400 passes of 11.25 images
    assert counts[0] == pytest.approx(800, abs=4)
    assert counts[1] == pytest.approx(500, abs=30)  # the fraction is drawn: deviation 8.7
    assert all(abs(count - 400) <= 4 for count in counts[2:].tolist())


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("start", [1, 17, 60])
def test_a_repeating_run_that_starts_later_goes_on_exactly(group: bool, start: int) -> None:
    assert repeated(10, start=start, group=group) == repeated(start + 10, group=group)[start:]
    assert repeated(10, seed=1) != repeated(10)


def test_repeat_factors_by_hand(make_index: Callable[..., AnnotationIndex]) -> None:
    cat, dog, hard_dog = (((0, 0, 9, 9), label, ignore) for label, ignore in ((0, False), (1, False), (1, True)))
    index = make_index([[cat], [cat, cat], [cat, dog], [cat, hard_dog], [], [cat], [cat], [cat]])
    # Of the 8 images 7 have a cat and 1 a dog: sqrt(0.5 / (1 / 8)) = 2, and 0.5 is below the share of cats.
    expected = torch.tensor([1.0, 1, 2, 1, 1, 1, 1, 1])
    torch.testing.assert_close(repeat_factors(index, torch.arange(8), 0.5), expected)
    # Of the images that are trained on, 1 in 2 has a dog, and all have a cat.
    torch.testing.assert_close(repeat_factors(index, torch.tensor([2, 5]), 0.5), torch.ones(2))
    torch.testing.assert_close(repeat_factors(index, torch.tensor([5, 2]), 1.0), torch.tensor([1.0, 2.0**0.5]))
    assert repeat_factors(index, torch.tensor([4]), 0.5).tolist() == [1.0]


# testing


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
def test_testing_visits_every_row_once_in_order(batch_size: int) -> None:
    sampler = TestBatches(range(10), batch_size=batch_size)
    batches = list(sampler)
    assert rows_of(batches) == list(range(10))
    assert len(sampler) == len(batches)
    assert max(len(batch) for batch in batches) == min(batch_size, 10)


def test_testing_may_have_rows_of_its_own_or_none() -> None:
    assert rows_of(list(TestBatches([7, 2]))) == [7, 2]
    assert list(TestBatches([])) == []
    assert len(TestBatches([])) == 0


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_parts_of_all_processes_are_the_batch_of_one(count: int, group: bool) -> None:
    parts = [draw(20, batch_size=6, group=group, start=3, share=(number, count)) for number in range(count)]
    joined = [[key for part in parts for key in part[batch]] for batch in range(20)]
    assert joined == draw(20, batch_size=6, group=group, start=3)
    assert {len(batch) for part in parts for batch in part} == {6 // count}
