"""Mirrors backbones/folding.py; the layers one after the other are the reference."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from backbones.folding import FoldingSequential, convolve, run
from backbones.norm import FrozenBatchNorm
from backbones.registry import build_backbone

X = torch.randn(2, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def make_layers(*, bias: bool = False, groups: int = 1, stride: int = 2) -> tuple[nn.Conv2d, FrozenBatchNorm]:
    torch.manual_seed(1)
    convolution = nn.Conv2d(4, 6, 3, stride=stride, padding=2, dilation=2, groups=groups, bias=bias)
    return convolution.double(), randomise(FrozenBatchNorm(6, eps=1e-3)).double()


def randomise(norm: FrozenBatchNorm) -> FrozenBatchNorm:
    for buffer in norm.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    return norm


def assert_folded(convolution: nn.Conv2d, norm: FrozenBatchNorm, x: Tensor = X) -> None:
    """Both give the same in a test, and gradients in training."""
    with torch.no_grad():
        torch.testing.assert_close(convolve(convolution, norm, x), norm(convolution(x)))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    results = [convolve(convolution, norm, inputs[0]), norm(convolution(inputs[1]))]
    torch.testing.assert_close(*results)
    upstream = torch.randn_like(results[0])
    wanted = [parameter for parameter in convolution.parameters() if parameter.requires_grad]
    folded, apart = (
        torch.autograd.grad(result, [own, *wanted], upstream) for result, own in zip(results, inputs, strict=True)
    )
    torch.testing.assert_close(folded, apart)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_the_layers_in_turn(trained: bool, groups: int, bias: bool) -> None:
    convolution, norm = make_layers(bias=bias, groups=groups)
    assert_folded(convolution.requires_grad_(trained), norm)
    assert_folded(convolution, norm, X[:1, :, :3, :3])  # an output that is smaller than the weights


def test_one_operator_in_a_test_and_nothing_of_the_norm_on_the_way() -> None:
    convolution, norm = make_layers()
    with torch.no_grad():
        convolve(convolution, norm, X)
        with torch.profiler.profile() as profiled:
            convolve(convolution, norm, X)
    names = {event.key for event in profiled.key_averages()}
    assert "aten::conv2d" in names
    assert not names & {"aten::batch_norm", "aten::mul", "aten::rsqrt"}


def test_training_keeps_the_input_and_the_weights_alone() -> None:
    convolution, norm = make_layers()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        convolve(convolution, norm, X.clone().requires_grad_())
    assert [tensor.shape for tensor in kept] == [X.shape, convolution.weight.shape, (6,)]
    assert kept[1].data_ptr() == convolution.weight.data_ptr()


def step(layers: nn.ModuleList) -> None:
    weight = layers.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


CHANGES: dict[str, Callable[[nn.ModuleList], object]] = {
    "optimizer step": step,
    "load_state_dict": lambda layers: layers.load_state_dict({k: v + 1 for k, v in layers.state_dict().items()}),
    "load_state_dict, assigned": lambda layers: layers.load_state_dict(
        {k: v + 1 for k, v in layers.state_dict().items()}, assign=True
    ),
    "moving average": lambda layers: [v.lerp_(torch.ones_like(v), 0.3) for v in layers.state_dict().values()],
    "statistics": lambda layers: layers.get_buffer("1.running_mean").add_(1),
    "precision": lambda layers: layers.float(),
    "new data": lambda layers: setattr(layers.get_parameter("0.weight"), "data", torch.rand(6, 4, 3, 3).double()),
    "memory format": lambda layers: layers.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_follows_a_change(change: Callable[[nn.ModuleList], object]) -> None:
    convolution, norm = make_layers()
    layers = nn.ModuleList([convolution, norm])
    assert_folded(convolution, norm)
    with torch.no_grad():
        change(layers)
    assert_folded(convolution, norm, X.to(convolution.weight.dtype))


def test_a_copy_goes_its_own_way_and_holds_no_second_weights() -> None:
    layers = FoldingSequential(*make_layers())
    with torch.no_grad():
        before = layers(X)
        copied = deepcopy(layers)
        assert copied.get_submodule("1").kept == {}
        step(nn.ModuleList(copied))
        torch.testing.assert_close(layers(X), before, rtol=0, atol=0)
        assert not torch.allclose(copied(X), before)


def test_training_after_a_test_in_inference_mode() -> None:
    convolution, norm = make_layers()
    with torch.inference_mode():
        convolve(convolution.requires_grad_(False), norm, X)
    assert_folded(convolution, norm)
    assert_folded(convolution.requires_grad_(True), norm)


def test_autocast() -> None:
    convolution, norm = make_layers()
    x = X.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = convolve(convolution.float(), norm.float(), x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm(convolution(x)), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert convolution.weight.grad is not None


def test_hooks_see_both_layers() -> None:
    convolution, norm = make_layers()
    seen: list[str] = []
    convolution.register_forward_hook(lambda *_: seen.append("convolution"))
    norm.register_forward_hook(lambda *_: seen.append("norm"))
    convolve(convolution, norm, X)
    assert seen == ["convolution", "norm"]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.Identity()])
def test_other_norms_stay_layers(norm: nn.Module) -> None:
    convolution, _ = make_layers()
    norm = norm.double()
    torch.testing.assert_close(convolve(convolution, norm, X), norm(convolution(X)))


def test_a_sequence_equals_its_layers_in_turn() -> None:
    layers = [*make_layers(), nn.ReLU(), nn.Conv2d(6, 6, 1).double(), nn.BatchNorm2d(6).double()]
    expected = X
    for layer in layers:
        expected = layer(expected)
    torch.testing.assert_close(FoldingSequential(*layers)(X), expected)
    assert [index for index, _ in run(layers, X)] == [1, 2, 3, 4]
    assert FoldingSequential()(X) is X


def test_a_compiled_step_is_one_graph_with_the_same_gradients() -> None:
    convolution, norm = make_layers()
    compiled = torch.compile(lambda x: convolve(convolution, norm, x).sum(), fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad(call(X), [convolution.weight])[0]
        for call in (compiled, lambda x: convolve(convolution, norm, x).sum())
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d", "preact_resnet18", "vgg16_bn", "cifar_resnet20"])
def test_backbones_keep_their_features_and_names(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, norm="frozen_bn").double()
    for norm in backbone.modules():
        if isinstance(norm, FrozenBatchNorm):
            randomise(norm)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    folded = backbone(images)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm):
            module.register_forward_hook(lambda *_: None)  # layers with hooks run one after the other
    apart = backbone(images)
    torch.testing.assert_close(folded, apart, rtol=1e-9, atol=1e-12)
    assert any(key.endswith("running_var") for key in backbone.state_dict())
