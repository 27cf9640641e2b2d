"""Mirrors norm.py."""

import copy
from typing import cast

import pytest
import torch
from torch import nn

from backbones.norm import FrozenBatchNorm, NormKind, frozen_kind, make_norm


def batch_norm_with_statistics(channels: int, eps: float) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=eps).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(layer, name).data.uniform_(0.5, 1.5)
    return layer


def test_known_value() -> None:
    layer = FrozenBatchNorm(1, eps=0.25)
    values = {"weight": 3.0, "bias": 1.0, "running_mean": 2.0, "running_var": 3.75}
    layer.load_state_dict({name: torch.tensor([value]) for name, value in values.items()})
    # 6 lies two standard deviations of 2 above the mean of 2
    assert layer(torch.full((1, 1, 1, 1), 6.0)).item() == pytest.approx(2 * 3 + 1)


def test_agrees_with_batch_norm_in_eval_and_never_changes() -> None:
    theirs = batch_norm_with_statistics(6, eps=1e-3)
    ours = FrozenBatchNorm(6, eps=1e-3)
    ours.load_state_dict(theirs.state_dict())  # strict, and theirs has num_batches_tracked
    before = copy.deepcopy(ours.state_dict())
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_loading_a_step_counter_leaves_the_callers_mapping_alone() -> None:
    state = nn.Sequential(nn.BatchNorm2d(2)).state_dict()
    nn.Sequential(FrozenBatchNorm(2)).load_state_dict(state)
    assert "0.num_batches_tracked" in state


def test_frozen_norm_has_the_names_of_batch_norm_and_no_parameters() -> None:
    layer = FrozenBatchNorm(4)
    assert set(layer.state_dict()) == set(nn.BatchNorm2d(4).state_dict()) - {"num_batches_tracked"}
    assert not list(layer.parameters())


def test_gradient_passes_through_to_the_input() -> None:
    layer = FrozenBatchNorm(1, eps=0.0)
    layer.running_var.fill_(4.0)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 1, 2, 2), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_that_of_batch_norm_in_eval(dtype: torch.dtype) -> None:
    theirs = batch_norm_with_statistics(6, eps=1e-3)
    ours = FrozenBatchNorm(6, eps=1e-3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    gradients = []
    for layer in (theirs, ours):
        own = x.clone().requires_grad_()
        layer(own).square().sum().backward()
        assert own.grad is not None
        assert own.grad.dtype == dtype
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)


def test_nothing_as_large_as_the_input_is_kept_for_the_way_back() -> None:
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        FrozenBatchNorm(4)(torch.randn(2, 4, 8, 8, requires_grad=True))
    assert kept
    assert max(kept) == 4


@pytest.mark.parametrize(
    ("kind", "layer_type"),
    [("bn", nn.BatchNorm2d), ("frozen_bn", FrozenBatchNorm), ("gn", nn.GroupNorm), ("sync_bn", nn.SyncBatchNorm)],
)
def test_kinds_and_their_eps(kind: NormKind, layer_type: type[nn.Module]) -> None:
    layer = make_norm(kind, 1e-3)(64)
    assert isinstance(layer, layer_type)
    assert layer.eps == 1e-3


@pytest.mark.parametrize("kind", ["bn", "frozen_bn", "gn"])
def test_every_kind_takes_no_regions(kind: NormKind) -> None:
    assert make_norm(kind, 1e-5)(64).eval()(torch.zeros(0, 64, 7, 7)).shape == (0, 64, 7, 7)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (48, 16), (20, 4), (6, 2)])
def test_group_norm_takes_32_groups_or_the_power_of_two_that_fits(channels: int, groups: int) -> None:
    layer = make_norm("gn", 1e-5)(channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


def test_group_norm_refuses_an_odd_number_of_channels() -> None:
    with pytest.raises(ValueError, match="even number of channels to split, got 7"):
        make_norm("gn", 1e-5)(7)


def test_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValueError, match="one of 'bn', 'frozen_bn', 'gn', 'sync_bn', got 'layer'"):
        make_norm(cast("NormKind", "layer"), 1e-5)


@pytest.mark.parametrize(("kind", "frozen"), [("bn", "frozen_bn"), ("sync_bn", "frozen_bn"), ("gn", "gn")])
def test_batch_statistics_are_fixed_when_frozen(kind: NormKind, frozen: NormKind) -> None:
    assert frozen_kind(kind) == frozen


@pytest.mark.parametrize("images", [1, 2])
def test_group_norm_of_one_cell_in_groups_of_one_channel_is_its_offset(images: int) -> None:
    layer = make_norm("gn", eps=1e-5)(4)
    layer.get_parameter("bias").data = torch.arange(4.0)
    x = torch.randn(images, 4, 1, 1, requires_grad=True)
    found = layer.train()(x)
    torch.testing.assert_close(found.flatten(1), torch.arange(4.0).expand(images, 4), rtol=0, atol=1e-4)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.eq(0).all()
    assert isinstance(layer, nn.GroupNorm)  # whose parameters do not decay


def test_synchronised_norm_of_one_process_on_a_cpu_is_batch_norm() -> None:
    x = torch.randn(2, 4, 3, 5)
    synchronised, plain = make_norm("sync_bn", eps=1e-5)(4).train(), make_norm("bn", eps=1e-5)(4).train()
    torch.testing.assert_close(synchronised(x), plain(x))
    torch.testing.assert_close(dict(synchronised.state_dict()), dict(plain.state_dict()))
