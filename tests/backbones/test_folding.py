"""Mirrors backbones/folding.py; the layers one after the other are the reference."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.folding import FoldingSequential, Pair, convolve, fold_at_once, run
from backbones.norm import FrozenBatchNorm, make_norm
from backbones.registry import build_backbone
from backbones.residual import (
    BasicBlock,
    BlockDesign,
    Bottleneck,
    PreactBasicBlock,
    PreactBottleneck,
    Stage,
    make_activation,
    make_stage,
)
from detection.engine.operators import count_operators

Block = BasicBlock | Bottleneck | PreactBasicBlock | PreactBottleneck

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


def test_training_keeps_the_input_and_no_second_weights() -> None:
    convolution, norm = make_layers()
    with fold_at_once([(convolution, norm)]) as folded:
        weight = weakref.ref(folded[convolution, norm][0])
        output = convolve(convolution, norm, X.clone().requires_grad_(), folded)
    del folded
    assert weight() is None
    output.sum().backward()
    assert convolution.weight.grad is not None


def test_weights_that_change_before_the_way_back_are_refused() -> None:
    convolution, norm = make_layers()
    with fold_at_once([(convolution, norm)]) as folded:
        output = convolve(convolution, norm, X, folded)
    with torch.no_grad():
        convolution.weight.add_(1)
    with pytest.raises(RuntimeError, match="in-place"):
        output.sum().backward()


def test_a_second_pass_back_gives_the_same_gradients() -> None:
    stage = make_residual_stage()
    total = losses(stage)
    parameters = [p for p in stage.parameters() if p.requires_grad]
    first, second = (torch.autograd.grad(total, parameters, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


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


def make_residual_stage(block: type[Block] = Bottleneck, **changes: Any) -> Stage:
    """Three blocks, the first of which has a shortcut with a convolution."""
    torch.manual_seed(0)
    design = replace(BlockDesign("B", make_norm("frozen_bn", 1e-5), make_activation("relu")), **changes)
    stage = make_stage(block, 4, 2, stride=2, designs=[design] * 3)
    for norm in stage.modules():
        if isinstance(norm, FrozenBatchNorm):
            randomise(norm)
    return stage.double()


def losses(stage: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    """A sum that weighs all outputs otherwise."""
    out = stage(x)
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def gradients(stage: Stage, call: Callable[[], Tensor] | None = None) -> dict[str, Tensor | None]:
    """Those that one backward pass of ``call``, by default of ``losses``, leaves in the parameters."""
    stage.zero_grad()
    (losses(stage) if call is None else call()).backward()
    return {name: parameter.grad for name, parameter in stage.named_parameters()}


def by_layers(stage: Stage) -> Stage:
    """Returns a copy in which every layer runs for itself."""
    apart = deepcopy(stage)
    for module in apart.modules():
        if isinstance(module, FrozenBatchNorm):
            module.register_forward_hook(lambda *_: None)
    return apart


def counts(call: Callable[[], Tensor]) -> Mapping[str, int]:
    """Operators of a step; the first step makes what is kept."""
    call().backward()
    return count_operators(lambda: call().backward()).names


CHOICES: dict[str, dict[str, Any]] = {"plain": {}, "average": {"avg_down": True}, "padded": {"shortcut": "A"}}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreactBasicBlock, PreactBottleneck])
def test_a_stage_equals_its_layers_in_turn(block: type[Block], choice: dict[str, Any]) -> None:
    stage = make_residual_stage(block, **choice)
    apart = by_layers(stage)
    torch.testing.assert_close(stage(X), apart(X))
    torch.testing.assert_close(gradients(stage), gradients(apart))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreactBasicBlock, PreactBottleneck])
def test_a_stage_scales_all_weights_by_one_operator_and_all_gradients_by_another(block: type[Block]) -> None:
    stage = make_residual_stage(block)
    together, alone = counts(lambda: stage(X).sum()), counts(lambda: nn.Sequential(*stage)(X).sum())
    pairs = sum(len(cast(Bottleneck, layer).pairs()) for layer in stage)
    norms_alone = (
        4 if block.preact else 0
    )  # two for each bn1 of the second and third block, which follow no convolution
    # Weights forward and again on the way back, and gradients.
    assert (together["aten._foreach_mul"], together["aten._foreach_mul_"]) == (2, 1)
    assert together.get("aten.mul", 0) == norms_alone
    assert alone["aten.mul"] == norms_alone + 2 * pairs
    assert sum(alone.values()) - sum(together.values()) == 2 * pairs - 3


def test_weights_of_a_stage_are_those_of_each_convolution_to_the_last_bit() -> None:
    stage = make_residual_stage()

    def one_by_one() -> Tensor:
        return losses(nn.Sequential(*stage))

    torch.testing.assert_close(gradients(stage), gradients(stage, one_by_one), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [r"1\.", r".*conv2", r".*downsample", r".*"])
def test_frozen_weights_of_a_stage_get_no_gradient_and_no_scale_in_a_step(frozen: str) -> None:
    stage = make_residual_stage()
    for name, parameter in stage.named_parameters():
        parameter.requires_grad_(re.match(frozen, name) is None)
    x = X.clone().requires_grad_()
    found = gradients(stage, lambda: losses(stage, x))
    apart = by_layers(stage)
    torch.testing.assert_close(found, gradients(apart, lambda: losses(apart, x)))
    assert {name for name, gradient in found.items() if gradient is None} == {n for n in found if re.match(frozen, n)}
    assert counts(lambda: stage(x).sum()).get("aten.mul", 0) == 0


def test_weights_that_no_gradient_comes_to() -> None:
    stage = make_residual_stage()
    pairs = [pair for layer in stage for pair in cast(Bottleneck, layer).pairs()]
    with fold_at_once(pairs) as folded:
        assert len(folded) == len(pairs) == 10
        out = cast(Bottleneck, stage[0])(X, folded).sum()
    found = torch.autograd.grad(out, list(stage.parameters()), allow_unused=True)
    reached = {
        name for name, gradient in zip(dict(stage.named_parameters()), found, strict=True) if gradient is not None
    }
    assert reached == {name for name, _ in stage.named_parameters() if name.startswith("0.")}


def test_steps_of_a_stage_add_up_and_so_do_two_uses_in_one_step() -> None:
    stage = make_residual_stage()
    once = gradients(stage)
    twice = {name: 2 * gradient for name, gradient in once.items() if gradient is not None}
    losses(stage).backward()
    torch.testing.assert_close({name: p.grad for name, p in stage.named_parameters()}, twice)
    torch.testing.assert_close(gradients(stage, lambda: losses(stage) + losses(stage)), twice)


def test_a_stage_follows_an_optimizer_step_and_its_copy_does_not() -> None:
    stage = make_residual_stage()
    gradients(stage)
    average = deepcopy(stage)
    torch.optim.SGD(stage.parameters(), lr=0.1).step()
    torch.testing.assert_close(gradients(stage), gradients(by_layers(stage)))
    torch.testing.assert_close(gradients(average), gradients(make_residual_stage()), rtol=0, atol=0)


def test_a_stage_in_lower_precision_has_gradients_of_full_precision() -> None:
    stage = make_residual_stage().float()

    def lower() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses(stage, X.float())

    found, exact = gradients(stage, lower), gradients(stage, lambda: losses(stage, X.float()))
    for name, gradient in found.items():
        assert gradient is not None
        assert gradient.dtype == torch.float32
        expected = exact[name]
        assert expected is not None
        assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.98


def test_a_compiled_stage_is_one_graph_with_the_same_gradients() -> None:
    stage = make_residual_stage()
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(stage, lambda: losses(compiled)), gradients(stage))


@pytest.mark.parametrize("whole", [True, False])
def test_a_stage_that_is_computed_again_on_the_way_back(whole: bool) -> None:
    stage = make_residual_stage()

    def again() -> Tensor:
        if whole:
            return losses(lambda x: checkpoint(stage, x, use_reentrant=False))
        x = X
        with fold_at_once(pair for layer in stage for pair in cast(Bottleneck, layer).pairs()) as folded:
            for block in stage:
                x = checkpoint(block, x, folded, use_reentrant=False)
        return losses(lambda _: x)

    torch.testing.assert_close(gradients(stage, again), gradients(stage))


def test_nothing_is_folded_at_once_but_what_learns() -> None:
    def folded(*pairs: Pair) -> list[Pair]:
        with fold_at_once(pairs) as found:
            return list(found)

    pair = make_layers()
    with torch.no_grad():
        assert folded(pair) == []
    assert folded((pair[0], nn.BatchNorm2d(6)), (nn.Identity(), pair[1])) == []
    assert folded(pair) == [pair]
    pair[1].register_forward_hook(lambda *_: None)
    assert folded(pair) == []


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
