"""Mirrors backbones/deformable.py; the plain convolution of the same weights is the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backbones.deformable import DeformableConv

X = torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def make_layer(*, modulated: bool = False, stride: int = 1, dilation: int = 1, groups: int = 1) -> DeformableConv:
    torch.manual_seed(1)
    return DeformableConv(4, 6, 3, stride, dilation, groups, modulated=modulated).double()


def plain(layer: DeformableConv, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def move(layer: DeformableConv, dy: float, dx: float, *, sample: int | None = None) -> None:
    """Moves all samples of the kernel, or one, by the same in every cell."""
    assert layer.offset.bias is not None
    with torch.no_grad():
        pairs = layer.offset.bias[: layer.moves].view(-1, 2)
        pairs[slice(None) if sample is None else sample] = torch.tensor([dy, dx], dtype=pairs.dtype)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 1)])
def test_at_first_it_is_the_plain_convolution_or_half_of_it(
    modulated: bool, stride: int, dilation: int, groups: int
) -> None:
    layer = make_layer(modulated=modulated, stride=stride, dilation=dilation, groups=groups)
    expected = plain(layer, X) * (0.5 if modulated else 1.0)
    torch.testing.assert_close(layer(X), expected)


def test_samples_one_cell_down_and_two_left_see_the_shifted_map() -> None:
    layer = make_layer()
    move(layer, 1.0, -2.0)
    shifted = torch.zeros_like(X)
    shifted[:, :, :-1, 2:] = X[:, :, 1:, :-2]
    # At the top and on the right samples still see cells that the shifted map has lost.
    inner = (slice(None), slice(None), slice(1, None), slice(None, -1))
    torch.testing.assert_close(layer(X)[inner], plain(layer, shifted)[inner])


def test_half_a_cell_is_the_mean_of_two_and_only_of_the_sample_that_moves() -> None:
    layer = make_layer()
    x = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    x[0, 1, 2, 2], x[0, 1, 3, 2] = 2.0, 4.0
    move(layer, 0.5, 0.0, sample=4)  # the middle of the kernel
    others = layer.weight.detach().clone()
    others[:, :, 1, 1] = 0.0
    expected = nn.functional.conv2d(x, others, padding=1)[0, :, 2, 2] + 3.0 * layer.weight[:, 1, 1, 1]
    torch.testing.assert_close(layer(x)[0, :, 2, 2], expected)


def test_logits_weight_the_samples() -> None:
    layer = make_layer(modulated=True)
    assert layer.offset.bias is not None
    with torch.no_grad():
        layer.offset.bias[layer.moves :] = -1e3
        layer.offset.bias[layer.moves + 4] = 1e3  # only the middle of the kernel is left
    torch.testing.assert_close(layer(X), nn.functional.conv2d(X, layer.weight[:, :, 1:2, 1:2]))


@pytest.mark.parametrize("modulated", [False, True])
def test_a_step_moves_the_samples(modulated: bool) -> None:
    layer = make_layer(modulated=modulated)
    before = layer(X)
    before.square().sum().backward()
    rows = layer.offset.weight.grad
    assert rows is not None
    assert rows.flatten(1).norm(dim=1).gt(0).all()
    torch.optim.SGD(layer.parameters(), lr=1e-3).step()
    assert layer(X).square().sum() < before.square().sum()
    assert layer.offset.weight.count_nonzero() == layer.offset.weight.numel()


def test_no_regions_make_no_maps() -> None:
    layer = make_layer(modulated=True, stride=2)
    assert layer(X[:0]).shape == (0, 6, 5, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_a_cpu_gives_nearly_the_same(dtype: torch.dtype) -> None:
    layer = make_layer(modulated=True).float()
    move(layer, 0.3, -0.4)
    with torch.autocast("cpu", dtype=dtype):
        found = layer(X.float())
    torch.testing.assert_close(found.float(), layer(X.float()), rtol=0.03, atol=0.03)
    found.float().sum().backward()
    assert layer.weight.grad is not None


def test_it_compiles_in_one_graph() -> None:
    layer = make_layer(modulated=True)
    move(layer, 0.3, -0.4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = []
    for call in (layer, compiled):
        layer.zero_grad()
        call(X).square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
    torch.testing.assert_close(*gradients)
