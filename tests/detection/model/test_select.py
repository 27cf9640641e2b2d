"""Mirrors detection/model/select.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from detection.model import select
from detection.model.select import (
    HEAD,
    STEPS,
    as_on_gpu,
    gather_rows,
    hash32,
    nms,
    pad_columns,
    select_top,
    waiting_is_free,
)

Path = Callable[[], AbstractContextManager[None]]
FEW, MANY = STEPS

both_paths = pytest.mark.parametrize("path", [nullcontext, as_on_gpu], ids=["cpu", "gpu"])


def dense(groups: int, count: int, *, seed: int = 0, spread: float = 200.0) -> tuple[Tensor, Tensor]:
    """Boxes (N, M, 4) that overlap a good deal, and their scores (N, M), of which a tenth does not count."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, count, 2, generator=generator) * spread
    sides = 20 + 60 * torch.rand(groups, count, 2, generator=generator)
    scores = torch.rand(groups, count, generator=generator)
    scores[torch.rand(groups, count, generator=generator) < 0.1] = -torch.inf
    return torch.cat([corners, corners + sides], dim=2), scores


def one_by_one(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """torchvision's NMS of every group and class, (N, M) bool."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(len(boxes)):
        for label in set(classes[group].tolist()):
            columns = ((classes[group] == label) & (scores[group] > -torch.inf)).nonzero().flatten()
            survivors = torchvision_nms(boxes[group, columns], scores[group, columns], threshold)
            kept[group, columns[survivors]] = True
    return kept


def survive(boxes: Tensor, scores: Tensor, classes: Tensor | None, threshold: float, wanted: int) -> Tensor:
    """Which candidates ``nms`` leaves, (N, M) bool, with the scores that they had."""
    left = nms(boxes, scores, classes, threshold, wanted)
    assert torch.equal(left, scores.masked_fill(left == -torch.inf, -torch.inf))
    return left > -torch.inf


def zeros(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.int64)


@pytest.fixture
def refuse_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No group is worked through in turn."""

    def refuse(*_: object) -> Tensor:
        raise AssertionError("the fixed point was left")

    monkeypatch.setattr(select, "_one_by_one", refuse)


@pytest.fixture
def count_one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups were worked through in turn, call by call."""
    calls, own = list[int](), select._one_by_one  # pyright: ignore[reportPrivateUsage]  # the path not to be taken

    def count(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
        calls.append(len(boxes))
        return own(boxes, scores, classes, threshold)

    monkeypatch.setattr(select, "_one_by_one", count)
    return calls


class TestNMS:
    """Group by group and class by class, it is torchvision's."""

    @both_paths
    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
    def test_dense_boxes_of_many_groups(self, threshold: float, path: Path) -> None:
        boxes, scores = dense(40, 300)
        classes = torch.arange(300).expand(40, -1) % 3
        for labels in (zeros(scores), classes):
            expected = one_by_one(boxes, scores, labels, threshold)
            with path():
                assert torch.equal(survive(boxes, scores, labels, threshold, 300), expected)
        assert 0.01 < expected.float().mean() < 0.9

    def test_dense_boxes_need_no_group_in_turn_on_a_gpu(self, refuse_one_by_one: None) -> None:
        boxes, scores = dense(40, 300)
        with as_on_gpu():
            kept = survive(boxes, scores, zeros(scores), 0.7, 300)
        assert kept.any(dim=1).all()

    @both_paths
    def test_twelve_thousand_candidates_of_eighty_classes(self, path: Path) -> None:
        boxes, scores = dense(2, 12_000, spread=600)
        classes = torch.randint(80, (2, 12_000), generator=torch.Generator().manual_seed(1))
        expected = one_by_one(boxes, scores, classes, 0.5)
        with path():
            assert torch.equal(survive(boxes, scores, classes, 0.5, 12_000), expected)

    @both_paths
    @pytest.mark.parametrize(
        ("threshold", "other", "single_is_above"),
        # IoU with (0, 0, 10, 10), by counting pixels: 30 / 100, 50 / 100, 70 / 100
        [(0.3, (0, 0, 10, 3), True), (0.5, (0, 0, 10, 5), False), (0.7, (0, 0, 7, 10), False)],
    )
    def test_exactly_at_the_threshold(
        self, threshold: float, other: tuple[int, ...], single_is_above: bool, path: Path
    ) -> None:
        # torchvision compares a float32 IoU with the float64 threshold: float32(0.3) is more than 0.3, 0.7's is less.
        assert (float(np.float32(threshold)) > threshold) is single_is_above
        boxes = torch.tensor([[(0, 0, 10, 10), other, (50, 50, 60, 60)]], dtype=torch.float32)
        scores = torch.tensor([[0.9, 0.8, 0.7]])
        expected = one_by_one(boxes, scores, zeros(scores), threshold)
        assert expected[0, 1] != single_is_above
        with path():
            assert torch.equal(survive(boxes, scores, zeros(scores), threshold, 3), expected)

    @both_paths
    @pytest.mark.parametrize("threshold", [0.25, 0.3, 0.5, 0.6, 0.7, 0.75])
    def test_many_ties_of_whole_numbers(self, threshold: float, path: Path) -> None:
        generator = torch.Generator().manual_seed(3)
        corners = torch.randint(0, 12, (20, 200, 2), generator=generator)
        sides = torch.randint(1, 11, (20, 200, 2), generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=2).float()
        scores = torch.randint(0, 6, (20, 200), generator=generator) / 8  # equal scores go by position
        expected = one_by_one(boxes, scores, zeros(scores), threshold)
        with path():
            assert torch.equal(survive(boxes, scores, zeros(scores), threshold, 200), expected)

    @both_paths
    @pytest.mark.parametrize("length", [FEW - 1, FEW, FEW + 1, 3 * FEW + 1, MANY + 20])
    def test_chains_of_suppressions(self, length: int, path: Path) -> None:
        # Each box overlaps the next by 6 / 14, so that every other one of a chain goes; a second group needs one step.
        x = torch.arange(float(length)) * 4
        chain = torch.stack([x, torch.zeros(length), x + 10, torch.full((length,), 10.0)], dim=1)
        boxes = torch.stack([chain, chain * 3])
        boxes[1, :, 2] = boxes[1, :, 0] + 1
        scores = torch.linspace(0.9, 0.1, length).expand(2, -1)
        with path():
            kept = survive(boxes, scores, zeros(scores), 0.4, length)
        assert kept[0].tolist() == [number % 2 == 0 for number in range(length)]
        assert kept[1].all()

    def test_a_chain_beyond_the_steps_is_left_to_the_exact_loop(self, count_one_by_one: list[int]) -> None:
        for length, turns in ((FEW - 2, 0), (3 * FEW, 0), (MANY + 20, 1)):
            x = torch.arange(float(length)) * 4
            chain = torch.stack([x, torch.zeros(length), x + 10, torch.full((length,), 10.0)], dim=1)[None]
            scores = torch.linspace(0.9, 0.1, length)[None]
            with as_on_gpu():
                survive(chain, scores, zeros(scores), 0.4, length)
            assert len(count_one_by_one) == turns

    def test_what_lies_behind_the_head_is_looked_at_only_where_it_is_wanted(self, count_one_by_one: list[int]) -> None:
        # Boxes apart from each other: all survive, and the best 2,048 are enough for that many.
        count = HEAD + 50
        x = torch.arange(float(count)) * 20
        boxes = torch.stack([x, x, x + 10, x + 10], dim=1)[None]
        scores = torch.linspace(0.9, 0.1, count)[None]
        with as_on_gpu():
            kept = survive(boxes, scores, zeros(scores), 0.5, HEAD)
        assert count_one_by_one == []
        assert kept[0].tolist() == [number < HEAD for number in range(count)]
        with as_on_gpu():
            assert survive(boxes, scores, zeros(scores), 0.5, HEAD + 1).all()
        assert count_one_by_one == [1]

    def test_candidates_that_do_not_count_behind_the_head_are_not_waited_for(self, refuse_one_by_one: None) -> None:
        boxes, scores = dense(2, HEAD + 500, spread=3000)
        scores[:, 1500:] = -torch.inf
        with as_on_gpu():
            kept = survive(boxes, scores, zeros(scores), 0.5, 10_000)
        assert torch.equal(kept, one_by_one(boxes, scores, zeros(scores), 0.5))

    def test_more_candidates_than_the_head_stay_exact(self) -> None:
        boxes, scores = dense(2, HEAD + 700, spread=100)  # so dense that few survive
        expected = one_by_one(boxes, scores, zeros(scores), 0.5)
        assert expected.sum(dim=1).max() < 500
        with as_on_gpu():
            assert torch.equal(survive(boxes, scores, zeros(scores), 0.5, 1000), expected)

    def test_groups_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes, scores = dense(7, 60, spread=60)
        with as_on_gpu():
            whole = survive(boxes, scores, zeros(scores), 0.5, 60)
            for elements in (1, 2 * 60 * 60, 100_000):
                monkeypatch.setattr(select, "MAX_ELEMENTS", elements)
                assert torch.equal(survive(boxes, scores, zeros(scores), 0.5, 60), whole)

    @both_paths
    def test_none_that_counts(self, path: Path) -> None:
        boxes, _ = dense(3, 20)
        scores = torch.full((3, 20), -torch.inf)
        scores[1, 7] = -1e30  # a logit may be as low as it likes
        with path():
            kept = survive(boxes, scores, zeros(scores), 0.5, 20)
        assert kept.nonzero().tolist() == [[1, 7]]

    @both_paths
    def test_no_candidates_and_no_groups(self, path: Path) -> None:
        with path():
            for shape in ((3, 0), (0, 5), (0, 0)):
                kept = survive(
                    torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), 0.5, 5
                )
                assert kept.shape == shape

    @both_paths
    def test_boxes_without_an_area_neither_go_nor_send_others_away(self, path: Path) -> None:
        boxes = torch.tensor([[(5, 5, 5, 5), (5, 5, 5, 5), (0, 0, 10, 10), (5, 0, 5, 10)]], dtype=torch.float32)
        scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
        with path():
            assert survive(boxes, scores, zeros(scores), 0.5, 4).all()

    @both_paths
    def test_arguments_stay(self, path: Path) -> None:
        boxes, scores = dense(2, 30)
        before = boxes.clone(), scores.clone()
        with path():
            survive(boxes, scores, zeros(scores), 0.5, 30)
        assert torch.equal(boxes, before[0])
        assert torch.equal(scores, before[1])

    def test_is_a_whole_operator(self) -> None:
        boxes, scores = dense(2, 30)
        torch.library.opcheck(nms, (boxes, scores, zeros(scores), 0.5, 30))


class TestSelectTop:
    """The best that count."""

    def test_by_hand(self) -> None:
        none = -torch.inf
        columns, values = select_top(torch.tensor([[0.1, none, 0.5, 0.7], [none, none, 0.2, none]]), 3)
        assert columns[0].tolist() == [3, 2, 0]
        assert columns[1, 0] == 2
        torch.testing.assert_close(values, torch.tensor([[0.7, 0.5, 0.1], [0.2, none, none]]))
        assert ((columns >= 0) & (columns < 4)).all()

    @pytest.mark.parametrize("count", [1, 3, 50, 200])
    def test_ties_go_by_place_whatever_the_count(self, count: int) -> None:
        scores = torch.randint(0, 3, (4, 100), generator=torch.Generator().manual_seed(0)).float()
        columns, values = select_top(scores, count)
        assert columns.shape == (4, min(count, 100))
        for row in range(4):
            expected = sorted(range(100), key=lambda column: (-float(scores[row, column]), column))
            assert columns[row].tolist() == expected[:count]
        assert torch.equal(values, scores.gather(1, columns))

    def test_nothing(self) -> None:
        columns, values = select_top(torch.zeros(2, 0), 3)
        assert columns.shape == values.shape == (2, 0)


class TestHash:
    """Random numbers that are a function of seed, place and stream."""

    def test_are_uniform_in_every_bit_and_from_seed_to_seed(self) -> None:
        numbers = hash32(torch.arange(64), torch.arange(4096), 1)
        assert ((numbers >= 0) & (numbers < 2**32)).all()
        # 262,144 numbers: a bit is set in half of them, up to five standard deviations of 256.
        counts = torch.stack([((numbers >> bit) & 1).sum() for bit in range(32)])
        assert (counts - 2**17).abs().max() < 5 * 256
        # In each of 64 equal parts, 4,096 with a standard deviation of 64.
        parts = (numbers >> 26).flatten().bincount(minlength=64)
        assert (parts - 4096).abs().max() < 5 * 64
        shares = numbers.double() / 2**32
        for rows in (shares, shares.T):  # neighbours say nothing of each other: a mean of 1 / 4, a deviation of 0.0005
            assert (rows[1:] * rows[:-1]).mean().item() == pytest.approx(0.25, abs=0.003)

    def test_the_columns_beside_it_do_not_matter(self) -> None:
        few = hash32(torch.tensor([5, 9]), torch.arange(10), 1)
        assert torch.equal(hash32(torch.tensor([9, 1, 5]), torch.arange(1000), 1)[[2, 0], :10], few)
        assert torch.equal(hash32(torch.tensor([5, 9]), torch.tensor([7, 3]), 1), few[:, [7, 3]])

    def test_equal_seeds_are_equal_rows_and_others_are_not(self) -> None:
        numbers = hash32(torch.tensor([3, 4, 3]), torch.arange(100), 1)
        assert torch.equal(numbers[0], numbers[2])
        assert (numbers[0] != numbers[1]).float().mean() > 0.99

    def test_streams_are_apart(self) -> None:
        seeds, places = torch.arange(20), torch.arange(100)
        assert (hash32(seeds, places, 1) != hash32(seeds, places, 2)).float().mean() > 0.99

    @pytest.mark.parametrize("value", [0, 2**31 - 1])
    def test_at_the_ends_of_its_ranges(self, value: int) -> None:
        # The product of such a seed with its factor needs all 63 bits; this is the hash in whole numbers of any size.
        def expected(seed: int, place: int, stream: int) -> int:
            state = (seed * 0x9E3779B1 + place * 0x85EBCA77 + stream * 0xC2B2AE3D) % 2**32
            state = ((state ^ state >> 16) * 0x7FEB352D) % 2**32
            state = ((state ^ state >> 15) * 0x846CA68B) % 2**32
            return state ^ state >> 16

        places = [0, 1, 2**24, 2**31 - 1]
        found = hash32(torch.tensor([value]), torch.tensor(places), 2)
        assert found.tolist() == [[expected(value, place, 2) for place in places]]


def test_gather_rows_of_any_shape() -> None:
    values, columns = torch.arange(48.0).view(2, 4, 3, 2), torch.tensor([[3, 0, 3], [1, 1, 2]])
    expected = torch.stack([values[0, columns[0]], values[1, columns[1]]])
    assert torch.equal(gather_rows(values, columns), expected)
    assert torch.equal(gather_rows(values[:, :, 0, 0], columns), expected[:, :, 0, 0])


def test_columns_are_padded_at_the_end() -> None:
    assert pad_columns(torch.tensor([[1.0, 2.0]]), 4, -torch.inf).tolist() == [[1, 2, -torch.inf, -torch.inf]]
    assert pad_columns(torch.tensor([[1, 2]]), 2, 0).tolist() == [[1, 2]]


def test_waiting_costs_nothing_on_a_cpu_alone() -> None:
    values = torch.zeros(1)
    assert waiting_is_free(values)
    assert not waiting_is_free(values.to("meta"))
    with as_on_gpu():
        assert not waiting_is_free(values)
    assert waiting_is_free(values)


def test_the_path_of_a_gpu_ends_with_an_error_too() -> None:
    def fail() -> None:
        with as_on_gpu():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert waiting_is_free(torch.zeros(1))
