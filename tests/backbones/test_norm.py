"""Mirrors norm.py."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from backbones.norm import FrozenBatchNorm, frozen_kind, make_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_norm_agrees_with_batch_norm_in_eval_and_never_changes(dtype: torch.dtype) -> None:
    theirs, ours = nn.BatchNorm2d(6, eps=1e-3).eval(), FrozenBatchNorm(6, eps=1e-3).train()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(theirs, name).data.uniform_(0.5, 1.5)
    state = theirs.state_dict()
    ours.load_state_dict(state)  # strict, and theirs has num_batches_tracked
    before, kept, gradients = copy.deepcopy(ours.state_dict()), list[int](), list[Any]()
    x = torch.randn(2, 6, 5, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    for layer in (theirs, ours):
        own = x.clone().requires_grad_()
        layer(own).square().sum().backward()
        gradients += [layer(x), own.grad]
    torch.testing.assert_close(gradients[:2], gradients[2:])
    assert gradients[3].dtype == dtype
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.numel()) or saved, lambda x: x):
        ours(own)
    assert max(kept) == 6  # nothing as large as the input
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)
    assert (set(before), list(ours.parameters())) == (set(state) - {"num_batches_tracked"}, [])


KINDS = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm, "gn": nn.GroupNorm, "sync_bn": nn.SyncBatchNorm}


@pytest.mark.parametrize(("kind", "layer_type"), KINDS.items())
def test_kinds(kind, layer_type: type) -> None:
    layer: Any = make_norm(kind, 1e-3)(64)
    assert isinstance(layer, layer_type)
    assert (layer.eps, frozen_kind(kind)) == (1e-3, "gn" if kind == "gn" else "frozen_bn")
    assert layer.eval()(torch.zeros(0, 64, 7, 7)).shape == (0, 64, 7, 7)


def test_group_norm_takes_32_groups_or_the_power_of_two_that_fits() -> None:
    layers: Any = {channels: make_norm("gn", 1e-5)(channels) for channels in (64, 32, 48, 20, 6)}
    assert [layer.num_groups for layer in layers.values()] == [32, 32, 16, 4, 2]
    with pytest.raises(ValueError, match="got 7"):
        make_norm("gn", 1e-5)(7)
    with pytest.raises(ValueError, match=r"norm must be one of .* got 'layer'"):
        make_norm("layer", 1e-5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("images", [1, 2])
def test_group_norm_of_one_cell_in_groups_of_one_channel_is_its_offset(images: int) -> None:
    layer, x = make_norm("gn", eps=1e-5)(4).train(), torch.randn(images, 4, 1, 1, requires_grad=True)
    layer.get_parameter("bias").data = torch.arange(4.0)
    found = layer(x)
    torch.testing.assert_close(found.flatten(1), torch.arange(4.0).expand(images, 4), rtol=0, atol=1e-4)
    assert not torch.autograd.grad(found.sum(), x)[0].any()


def test_synchronised_norm_of_one_process_on_a_cpu_is_batch_norm() -> None:
    x, (synchronised, plain) = torch.randn(2, 4, 3, 5), (make_norm(kind, eps=1e-5)(4) for kind in ("sync_bn", "bn"))
    torch.testing.assert_close(synchronised(x), plain(x))
    torch.testing.assert_close(dict(synchronised.state_dict()), dict(plain.state_dict()))
