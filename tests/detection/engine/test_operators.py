from collections.abc import Iterator
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


def test_operators_are_counted_by_name_but_views_are_not() -> None:
    counts = count_operators(lambda: (X + X).relu() + 1)
    assert counts.names == {"aten.add": 2, "aten.relu": 1}
    assert (counts.operators, counts.waits) == (3, 0)
    for view in (
        lambda: X[:, 1],
        lambda: X[1:, None],
        lambda: X.T.unsqueeze(0).expand(5, 4, 3),
        lambda: X.view(-1).unflatten(0, (2, 6)).permute(1, 0),
        lambda: X.split([1, 2]),
        X.detach,
    ):
        counts = count_operators(view)
        assert (counts.operators, counts.waits) == (0, 0)


@pytest.mark.parametrize(
    ("call", "operators", "waits"),
    [
        (MASK.nonzero, 1, 1),
        (lambda: X[MASK], 1, 1),
        (lambda: X[:, torch.tensor([True, False, True, True])], 1, 1),
        (lambda: X.masked_select(X > 3), 2, 1),
        (lambda: X.clone().index_put_((MASK,), torch.tensor(0.0)), 2, 1),
        (lambda: X.sum().item(), 2, 1),
        (lambda: float(X[0, 0]), 1, 1),
        (lambda: bool(X[0, 0]), 1, 1),
        (lambda: torch.unique(X), 1, 1),
        (lambda: X.unique(dim=0), 1, 1),
        (lambda: nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5), 2, 1),
        # fixed shapes
        (lambda: X[torch.tensor([0, 2])], 1, 0),
        (lambda: X.masked_fill(X > 3, 0), 2, 0),
        (lambda: torch.where(X > 3, X, 0), 2, 0),
        (lambda: X.topk(2), 1, 0),
        (lambda: X.gather(1, torch.zeros(3, 1, dtype=torch.int64)), 1, 0),
    ],
)
def test_what_depends_on_values_waits_once(call, operators, waits) -> None:
    counts = count_operators(call)
    assert counts.waits == waits
    assert counts.operators >= operators


def test_backward_passes_count() -> None:
    weight = torch.ones(4, requires_grad=True)

    def step() -> None:
        weight.grad = None
        (X * weight).sum().backward()

    # Forward: mul, sum. Backward: ones_like for the start, expand (a view), mul by X, sum over the rows that weight was
    # expanded along; weight.grad takes that tensor.
    assert count_operators(step).names == {"aten.mul": 2, "aten.sum": 2, "aten.ones_like": 1}
    leaf = torch.ones(3, requires_grad=True)
    assert count_operators(lambda: leaf[MASK]).waits == 1
    assert count_operators(lambda: leaf[MASK].sum().backward()).waits == 2


def test_operators_of_other_libraries_and_compiled_functions_count_as_what_is_inside() -> None:
    assert count_operators(lambda: three(X)).names == {"aten.add": 1, "aten.mul": 1, "aten.sub": 1}
    leaf = X.clone().requires_grad_()
    with_gradient = count_operators(lambda: three(leaf))
    assert (with_gradient.operators, with_gradient.waits) == (3, 0)
    assert count_operators(lambda: three(leaf).sum().backward()).names["aten.mul"] == 2
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
