"""Mirrors detection/model/select.py."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from detection.model import select
from detection.model.select import HEAD, STEPS, as_on_gpu, gather_rows, hash32, nms, pad_columns, select_top

FEW, MANY = STEPS


def dense(groups: int, count: int, *, spread: float = 200.0) -> tuple[Tensor, Tensor]:
    """Boxes (N, M, 4) that overlap a good deal, and their scores (N, M), of which a tenth does not count."""
    generator = torch.Generator().manual_seed(0)
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


def survive(boxes: Tensor, scores: Tensor, classes: Any, threshold: float, wanted: int, *, gpu: bool) -> Tensor:
    """Which candidates ``nms`` leaves, (N, M) bool, with the scores that they had."""
    before = boxes.clone(), scores.clone()
    with as_on_gpu() if gpu else nullcontext():
        left = nms(boxes, scores, classes, threshold, wanted)
    assert torch.equal(left, scores.masked_fill(left == -torch.inf, -torch.inf))
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])
    return left > -torch.inf


def check(boxes: Tensor, scores: Tensor, threshold: float, classes: Tensor | None = None) -> Tensor:
    """What survives, which is the same on both paths as by torchvision."""
    own = torch.zeros_like(scores, dtype=torch.int64) if classes is None else classes
    expected = one_by_one(boxes, scores, own, threshold)
    for gpu in (False, True):
        assert torch.equal(survive(boxes, scores, classes, threshold, scores.shape[1], gpu=gpu), expected)
    return expected


@pytest.fixture
def in_turn(monkeypatch) -> Mock:
    """Working through groups in turn, the path not to be taken on a GPU."""
    monkeypatch.setattr(select, "_one_by_one", spy := Mock(wraps=select._one_by_one))
    return spy


class TestNMS:
    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
    def test_dense_boxes_of_many_groups(self, threshold, in_turn) -> None:
        boxes, scores = dense(40, 300)
        for classes in (None, *(torch.arange(300).expand(40, -1) % kinds for kinds in (1, 3))):
            assert 0.01 < check(boxes, scores, threshold, classes).float().mean() < 0.9
        in_turn.reset_mock()
        survive(boxes, scores, None, 0.7, 300, gpu=True)
        assert not in_turn.called

    def test_twelve_thousand_candidates_of_eighty_classes(self) -> None:
        boxes, scores = dense(2, 12_000, spread=600)
        check(boxes, scores, 0.5, torch.randint(80, (2, 12_000), generator=torch.Generator().manual_seed(1)))

    @pytest.mark.parametrize(
        ("threshold", "other", "single_is_above"),
        # IoU with (0, 0, 10, 10), by counting pixels: 30 / 100, 50 / 100, 70 / 100
        [(0.3, (0, 0, 10, 3), True), (0.5, (0, 0, 10, 5), False), (0.7, (0, 0, 7, 10), False)],
    )
    def test_exactly_at_the_threshold(self, threshold, other, single_is_above) -> None:
        # torchvision compares a float32 IoU with the float64 threshold: float32(0.3) is more than 0.3, 0.7's is less.
        assert (float(np.float32(threshold)) > threshold) is single_is_above
        boxes = torch.tensor([[(0, 0, 10, 10), other, (50, 50, 60, 60)]], dtype=torch.float32)
        assert check(boxes, torch.tensor([[0.9, 0.8, 0.7]]), threshold)[0, 1] != single_is_above

    @pytest.mark.parametrize("threshold", [0.25, 0.3, 0.5, 0.6, 0.7, 0.75])
    def test_many_ties_of_whole_numbers(self, threshold) -> None:
        generator = torch.Generator().manual_seed(3)
        corners = torch.randint(0, 12, (20, 200, 2), generator=generator)
        sides = torch.randint(1, 11, (20, 200, 2), generator=generator)
        scores = torch.randint(0, 6, (20, 200), generator=generator) / 8  # equal scores go by position
        check(torch.cat([corners, corners + sides], dim=2).float(), scores, threshold)

    @pytest.mark.parametrize("length", [FEW - 1, FEW, FEW + 1, 3 * FEW + 1, MANY + 20])
    def test_chains_of_suppressions(self, length, in_turn) -> None:
        # Each box overlaps the next by 6 / 14, so that every other one of a chain goes; a second group needs one step.
        # A chain beyond the steps is left to the exact loop.
        x = torch.arange(float(length)) * 4
        chain = torch.stack([x, torch.zeros(length), x + 10, torch.full((length,), 10.0)], dim=1)
        boxes, scores = torch.stack([chain, chain * 3]), torch.linspace(0.9, 0.1, length).expand(2, -1)
        boxes[1, :, 2] = boxes[1, :, 0] + 1
        kept = check(boxes, scores, 0.4)
        assert kept[0].tolist() == [number % 2 == 0 for number in range(length)]
        assert kept[1].all()
        in_turn.reset_mock()
        survive(boxes, scores, None, 0.4, length, gpu=True)
        assert in_turn.call_count == (length > MANY)

    def test_what_lies_behind_the_head_is_looked_at_only_where_it_is_wanted(self, in_turn) -> None:
        # Boxes apart from each other: all survive, and the best 2,048 are enough for that many.
        x = torch.arange(HEAD + 50.0) * 20
        apart = torch.stack([x, x, x + 10, x + 10], dim=1)[None], torch.linspace(0.9, 0.1, HEAD + 50)[None]
        kept = survive(*apart, None, 0.5, HEAD, gpu=True)
        assert kept[0].tolist() == [number < HEAD for number in range(HEAD + 50)]
        boxes, scores = dense(2, HEAD + 500, spread=3000)
        scores[:, 1500:] = -torch.inf  # candidates that do not count are not waited for
        expected = one_by_one(boxes, scores, torch.zeros_like(scores), 0.5)
        assert torch.equal(survive(boxes, scores, None, 0.5, 10_000, gpu=True), expected)
        assert not in_turn.called
        assert survive(*apart, None, 0.5, HEAD + 1, gpu=True).all()
        assert in_turn.call_count == 1
        boxes, scores = dense(2, HEAD + 700, spread=100)  # so dense that few survive
        expected = one_by_one(boxes, scores, torch.zeros_like(scores), 0.5)
        assert expected.sum(dim=1).max() < 500
        assert torch.equal(survive(boxes, scores, None, 0.5, 1000, gpu=True), expected)

    def test_groups_in_parts(self, monkeypatch) -> None:
        boxes, scores = dense(7, 60, spread=60)
        for elements in (1, 2 * 60 * 60, 100_000):
            monkeypatch.setattr(select, "MAX_ELEMENTS", elements)
            check(boxes, scores, 0.5, torch.arange(60).expand(7, -1) % 2)

    def test_little_and_nothing_and_is_a_whole_operator(self) -> None:
        boxes, scores = dense(3, 20)[0], torch.full((3, 20), -torch.inf)
        scores[1, 7] = -1e30  # a logit may be as low as it likes
        assert check(boxes, scores, 0.5).nonzero().tolist() == [[1, 7]]
        for shape in ((3, 0), (0, 5), (0, 0)):
            assert check(torch.zeros(*shape, 4), torch.zeros(shape), 0.5).shape == shape
        # Boxes without an area neither go nor send others away.
        flat = torch.tensor([[(5, 5, 5, 5), (5, 5, 5, 5), (0, 0, 10, 10), (5, 0, 5, 10)]], dtype=torch.float32)
        assert check(flat, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), 0.5).all()
        torch.library.opcheck(nms, (*dense(2, 30), torch.zeros(2, 30, dtype=torch.int64), 0.5, 30))


def test_the_best_that_count() -> None:
    none = -torch.inf
    columns, values = select_top(torch.tensor([[0.1, none, 0.5, 0.7], [none, none, 0.2, none]]), 3)
    assert (columns[0].tolist(), columns[1, 0]) == ([3, 2, 0], 2)
    torch.testing.assert_close(values, torch.tensor([[0.7, 0.5, 0.1], [0.2, none, none]]))
    assert ((columns >= 0) & (columns < 4)).all()
    scores = torch.randint(0, 3, (4, 100), generator=torch.Generator().manual_seed(0)).float()
    for count in (1, 3, 50, 200):  # ties go by place whatever the count
        columns, values = select_top(scores, count)
        expected = [sorted(range(100), key=lambda column: (-row[column], column))[:count] for row in scores.tolist()]
        assert columns.tolist() == expected
        assert torch.equal(values, scores.gather(1, columns))
    assert [part.shape for part in select_top(torch.zeros(2, 0), 3)] == [(2, 0)] * 2


@pytest.mark.parametrize("value", [0, 2**31 - 1])
def test_random_numbers_depend_on_seed_place_and_stream_alone(value) -> None:
    # At the ends of its ranges the product of a seed with its factor needs all 63 bits; this is the hash in whole
    # numbers of any size.
    def expected(seed: int, place: int) -> int:
        state = (seed * 0x9E3779B1 + place * 0x85EBCA77 + 2 * 0xC2B2AE3D) % 2**32
        state = ((state ^ state >> 16) * 0x7FEB352D) % 2**32
        state = ((state ^ state >> 15) * 0x846CA68B) % 2**32
        return state ^ state >> 16

    seeds, places = [value, 7], [0, 1, 2**24, 2**31 - 1]
    found = hash32(torch.tensor(seeds), torch.tensor(places), 2)
    assert found.tolist() == [[expected(seed, place) for place in places] for seed in seeds]


def test_rows_are_gathered_and_columns_padded_at_the_end() -> None:
    values, columns = torch.arange(48.0).view(2, 4, 3, 2), torch.tensor([[3, 0, 3], [1, 1, 2]])
    expected = torch.stack([values[0, columns[0]], values[1, columns[1]]])
    assert torch.equal(gather_rows(values, columns), expected)
    assert torch.equal(gather_rows(values[:, :, 0, 0], columns), expected[:, :, 0, 0])
    assert pad_columns(torch.tensor([[1.0, 2.0]]), 4, -torch.inf).tolist() == [[1, 2, -torch.inf, -torch.inf]]
    assert pad_columns(torch.tensor([[1, 2]]), 2, 0).tolist() == [[1, 2]]


def test_waiting_costs_nothing_on_a_cpu_alone() -> None:
    values = torch.zeros(1)
    assert not select.waiting_is_free(values.to("meta"))
    with as_on_gpu():
        assert not select.waiting_is_free(values)
    with pytest.raises(ValueError, match="x"), as_on_gpu():
        int("x")
    assert select.waiting_is_free(values)
