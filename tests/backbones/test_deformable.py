"""Mirrors backbones/deformable.py; the plain convolution of the same weights is the reference."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.deformable import DeformableConv

X = torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def make_layer(*places: int, move: tuple[float, float] = (0, 0), sample: Any = ..., modulated=False) -> DeformableConv:
    """One of stride, dilation and groups ``places``, which moves samples of its kernel by the same in every cell."""
    torch.manual_seed(1)
    layer = DeformableConv(4, 6, 3, *(places or (1, 1, 1)), modulated=modulated).double()
    pairs = layer.get_parameter("offset.bias")[: layer.moves].view(-1, 2)
    pairs[sample] = torch.tensor(move, dtype=pairs.dtype)
    return layer


def plain(layer: DeformableConv, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("places", [(1, 1, 1), (2, 1, 2), (1, 2, 1)])
def test_at_first_it_is_the_plain_convolution_or_half_of_it(modulated: bool, places: tuple[int, ...]) -> None:
    layer = make_layer(*places, modulated=modulated)
    torch.testing.assert_close(layer(X), plain(layer, X) * (0.5 if modulated else 1.0))
    assert layer(X[:0]).shape == (0, *layer(X).shape[1:])


def test_samples_one_cell_down_and_two_left_see_the_shifted_map() -> None:
    layer = make_layer(move=(1.0, -2.0))
    shifted = nn.functional.pad(X[:, :, 1:, :-2], (2, 0, 0, 1))
    # At the top and on the right samples still see cells that the shifted map has lost.
    torch.testing.assert_close(layer(X)[:, :, 1:, :-1], plain(layer, shifted)[:, :, 1:, :-1])


def test_half_a_cell_is_the_mean_of_two_and_only_of_the_sample_that_moves() -> None:
    layer, x = make_layer(move=(0.5, 0.0), sample=4), torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    x[0, 1, 2, 2], x[0, 1, 3, 2] = 2.0, 4.0
    others = layer.weight.detach().clone()
    others[:, :, 1, 1] = 0.0  # the middle of the kernel
    expected = nn.functional.conv2d(x, others, padding=1)[0, :, 2, 2] + 3.0 * layer.weight[:, 1, 1, 1]
    torch.testing.assert_close(layer(x)[0, :, 2, 2], expected)


@torch.no_grad()
def test_logits_weight_the_samples() -> None:
    layer = make_layer(modulated=True)
    layer.get_parameter("offset.bias")[layer.moves :].fill_(-1e3)[4] = 1e3  # only the middle of the kernel is left
    torch.testing.assert_close(layer(X), nn.functional.conv2d(X, layer.weight[:, :, 1:2, 1:2]))


@pytest.mark.parametrize("modulated", [False, True])
def test_a_step_moves_the_samples(modulated: bool) -> None:
    layer = make_layer(modulated=modulated)
    before = layer(X).square().sum()
    before.backward()
    torch.optim.SGD(layer.parameters(), lr=1e-3).step()
    assert layer(X).square().sum() < before
    assert layer.offset.weight.all()  # it was zero


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_a_cpu_gives_nearly_the_same(dtype: torch.dtype) -> None:
    layer = make_layer(modulated=True, move=(0.3, -0.4)).float()
    with torch.autocast("cpu", dtype=dtype):
        found = layer(X.float()).float()
    torch.testing.assert_close(found, layer(X.float()), rtol=0.03, atol=0.03)
    assert torch.autograd.grad(found.sum(), layer.weight)[0].any()


def test_it_compiles_in_one_graph() -> None:
    layer = make_layer(modulated=True, move=(0.3, -0.4))
    calls = layer, torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(f(X).square().sum(), list(layer.parameters())) for f in calls))
