"""Mirrors detection/engine/operators.py: functions whose operators are counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from detection.engine.operators import count_operators

X = torch.arange(12.0).view(3, 4)
MASK = torch.tensor([True, False, True])


@torch.library.custom_op("resdet_test::three", mutates_args=())
def three(x: Tensor) -> Tensor:
    """Three operators in one of ours."""
    return (x + 1) * 2 - x


three.register_autograd(lambda ctx, gradient: gradient * 1.0)


def counted(call: Callable[[], object]) -> tuple[int, int]:
    counts = count_operators(call)
    return counts.operators, counts.waits


def test_operators_by_name() -> None:
    counts = count_operators(lambda: (X + X).relu() + 1)
    assert counts.names == {"aten.add": 2, "aten.relu": 1}
    assert (counts.operators, counts.waits) == (3, 0)


@pytest.mark.parametrize(
    "view",
    [
        lambda: X[:, 1],
        lambda: X[1:, None],
        lambda: X.T.unsqueeze(0).expand(5, 4, 3),
        lambda: X.view(-1).unflatten(0, (2, 6)).permute(1, 0),
        lambda: X.split([1, 2]),
        X.detach,
    ],
)
def test_views_do_not_count(view: Callable[[], object]) -> None:
    assert counted(view) == (0, 0)


@pytest.mark.parametrize(
    ("call", "operators"),
    [
        (MASK.nonzero, 1),
        (lambda: X[MASK], 1),
        (lambda: X[:, torch.tensor([True, False, True, True])], 1),
        (lambda: X.masked_select(X > 3), 2),
        (lambda: X.clone().index_put_((MASK,), torch.tensor(0.0)), 2),
        (lambda: X.sum().item(), 2),
        (lambda: float(X[0, 0]), 1),
        (lambda: bool(X[0, 0]), 1),
        (lambda: torch.unique(X), 1),
        (lambda: X.unique(dim=0), 1),
        (lambda: nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5), 2),
    ],
    ids=["nonzero", "rows", "columns", "select", "put", "item", "float", "bool", "unique", "unique dim", "nms"],
)
def test_each_of_these_waits_once(call: Callable[[], object], operators: int) -> None:
    found, waits = counted(call)
    assert waits == 1
    assert found >= operators


@pytest.mark.parametrize(
    "call",
    [
        lambda: X[torch.tensor([0, 2])],
        lambda: X.masked_fill(X > 3, 0),
        lambda: torch.where(X > 3, X, 0),
        lambda: X.topk(2),
        lambda: X.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
    ],
)
def test_fixed_shapes_do_not_wait(call: Callable[[], object]) -> None:
    assert counted(call)[1] == 0


def test_backward_passes_count() -> None:
    weight = torch.ones(4, requires_grad=True)

    def step() -> None:
        weight.grad = None
        (X * weight).sum().backward()

    # Forward: mul, sum. Backward: ones_like for the start, expand (a view), mul by X, sum over the rows that weight was
    # expanded along; weight.grad takes that tensor.
    counts = count_operators(step)
    assert counts.names == {"aten.mul": 2, "aten.sum": 2, "aten.ones_like": 1}


def test_a_backward_pass_that_waits_is_seen() -> None:
    leaf = torch.ones(3, requires_grad=True)
    forward = count_operators(lambda: leaf[MASK]).waits
    whole = count_operators(lambda: leaf[MASK].sum().backward()).waits
    assert (forward, whole) == (1, 2)


def test_an_operator_of_another_library_counts_as_what_is_inside() -> None:
    assert count_operators(lambda: three(X)).names == {"aten.add": 1, "aten.mul": 1, "aten.sub": 1}
    leaf = X.clone().requires_grad_()
    with_gradient = count_operators(lambda: three(leaf))
    assert (with_gradient.operators, with_gradient.waits) == (3, 0)
    assert count_operators(lambda: three(leaf).sum().backward()).names["aten.mul"] == 2


def test_a_compiled_function_counts_as_what_is_inside() -> None:
    compiled = torch.compile(lambda x: (x + 1) * 2, backend="eager")
    compiled(X)
    assert count_operators(lambda: compiled(X)).names == {"aten.add": 1, "aten.mul": 1}


def test_the_path_holds_during_the_call_only() -> None:
    seen: list[str] = []

    @contextmanager
    def path() -> Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    count_operators(lambda: seen.append("call"), path=path())
    assert seen == ["in", "call", "out"]
