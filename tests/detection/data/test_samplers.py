"""Mirrors detection/data/samplers.py."""

from itertools import islice
from typing import Any

import pytest
import torch

from detection.data.samplers import TestBatches, TrainBatches, repeat_factors

# rows 0..9: three upright, one square, six lying
SIZES = torch.tensor([[80, 60]] * 3 + [[60, 60]] + [[60, 80]] * 6)
REPEATS = torch.tensor([2.0, 1.25] + [1.0] * 8)


def draw(count, *, rows: Any = range(10), size=2, group=True, seed=0, **options):
    sampler = TrainBatches(torch.tensor(rows), SIZES, batch_size=size, group_by_aspect=group, seed=seed, **options)
    first = list(islice(sampler, count))
    assert list(islice(sampler, min(count, 20))) == first[:20]  # it can be gone through twice
    return first


def rows_of(batches):
    return [row for batch in batches for _, row in batch]


def positions_of(batches):
    return [position for batch in batches for position, _ in batch]


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_every_image_comes_once_an_epoch(size) -> None:
    batches = draw(40 // size, size=size, group=False)
    assert (positions_of(batches), {len(batch) for batch in batches}) == (list(range(40)), {size})
    epochs = [tuple(rows_of(batches)[start : start + 10]) for start in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in epochs)
    assert len(set(epochs)) == 4  # each in an order of its own


def test_upright_and_lying_images_never_mix_and_none_is_left_out() -> None:
    batches = draw(300, size=4)
    assert all(len({row < 3 for _, row in batch}) == 1 for batch in batches)  # a square counts as lying
    counts = torch.bincount(torch.tensor(rows_of(batches)), minlength=10)
    assert 118 <= counts.min() <= counts.max() <= 122  # 1200 images in 120 epochs, less what waits
    assert len(set(positions_of(batches))) == 1200
    assert any(len({row < 3 for _, row in batch}) == 2 for batch in draw(20, group=False))


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("repeats", [None, REPEATS])
def test_a_run_that_starts_later_goes_on_exactly(group, repeats) -> None:
    for size in (3, 4, 12):
        options = {"size": size, "group": group, "repeats": repeats}
        whole = draw(70, **options)
        for start in (1, 4, 17, 60):
            assert draw(10, start=start, **options) == whole[start : start + 10]
        assert draw(10, seed=1, **options) != whole[:10]


@pytest.mark.parametrize("group", [True, False])
def test_the_parts_of_all_processes_are_the_batch_of_one(group) -> None:
    expected = draw(20, size=6, group=group, start=3)
    for count in (1, 2, 3, 6):
        parts = [draw(20, size=6, group=group, start=3, share=(number, count)) for number in range(count)]
        assert [[key for part in parts for key in part[batch]] for batch in range(20)] == expected
        assert {len(batch) for part in parts for batch in part} == {6 // count}


def test_only_the_given_rows_come_and_the_seed_alone_decides() -> None:
    first = draw(10)
    torch.manual_seed(5)
    assert draw(10) == first
    assert set(rows_of(draw(20, rows=[1, 2, 7, 8]))) == {1, 2, 7, 8}
    (batch,) = draw(1, rows=[1, 2], size=5)  # larger than the data set
    assert (positions_of([batch]), {row for _, row in batch}) == (list(range(5)), {1, 2})
    with pytest.raises(ValueError, match=r"no image to train on.*data\.skip_empty"):
        TrainBatches(torch.zeros(0, dtype=torch.int64), SIZES, batch_size=2, seed=0)


def test_images_come_as_often_as_their_factor_says() -> None:
    batches = draw(2250, group=False, repeats=REPEATS)  # 400 epochs of 11.25 images
    counts = torch.bincount(torch.tensor(rows_of(batches)), minlength=10)
    assert counts[0] == pytest.approx(800, abs=4)
    assert counts[1] == pytest.approx(500, abs=30)  # the fraction is drawn: deviation 8.7
    assert all(abs(count - 400) <= 4 for count in counts[2:].tolist())


def test_repeat_factors_by_hand(make_index) -> None:
    cat, dog, hard_dog = (((0, 0, 9, 9), label, ignore) for label, ignore in ((0, False), (1, False), (1, True)))
    index = make_index([[cat], [cat, cat], [cat, dog], [cat, hard_dog], [], [cat], [cat], [cat]])
    # Of the 8 images 7 have a cat and 1 a dog: sqrt(0.5 / (1 / 8)) = 2, and 0.5 is below the share of cats.
    expected = torch.tensor([1.0, 1, 2, 1, 1, 1, 1, 1])
    torch.testing.assert_close(repeat_factors(index, torch.arange(8), 0.5), expected)
    # Of the images that are trained on, 1 in 2 has a dog, and all have a cat.
    torch.testing.assert_close(repeat_factors(index, torch.tensor([2, 5]), 0.5), torch.ones(2))
    torch.testing.assert_close(repeat_factors(index, torch.tensor([5, 2]), 1.0), torch.tensor([1.0, 2.0**0.5]))
    assert repeat_factors(index, torch.tensor([4]), 0.5).tolist() == [1.0]


def test_testing_visits_every_row_once_in_order() -> None:
    for size in (1, 3, 4, 20):
        sampler = TestBatches(range(10), batch_size=size)
        batches = list(sampler)
        assert (rows_of(batches), len(sampler)) == (list(range(10)), len(batches))
        assert max(len(batch) for batch in batches) == min(size, 10)
    assert rows_of(list(TestBatches([7, 2]))) == [7, 2]
    assert (list(TestBatches([])), len(TestBatches([]))) == ([], 0)
