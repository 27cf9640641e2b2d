import pytest
import torch

from detection.engine.determinism import fixed_order


def test_several_threads_add_in_the_same_order() -> None:
    # Of rows that are taken many times each: on the CPU its threads add gradients up as they come.
    random, threads, found = torch.Generator().manual_seed(0), torch.get_num_threads(), []
    table = torch.randn(2000, 64, generator=random)
    rows, weights = torch.randint(0, 50, (40000,), generator=random), torch.randn(40000, 64, generator=random)
    try:
        torch.set_num_threads(4)
        with fixed_order(True):
            for _ in range(6):
                leaf = table.clone().requires_grad_()
                leaf[rows].backward(weights)
                found.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_the_order_holds_inside_only_and_ends_with_an_error_too() -> None:
    for enabled in (True, False):
        with fixed_order(enabled):
            assert torch.are_deterministic_algorithms_enabled() == enabled
        assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="x"), fixed_order(True):
        raise ValueError("x")
    assert not torch.are_deterministic_algorithms_enabled()
