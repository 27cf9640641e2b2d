"""Mirrors backbones/folding.py; the layers one after the other are the reference."""

import re
import weakref
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones import residual
from backbones.folding import FoldingSequential, convolve, fold_at_once, run
from backbones.norm import FrozenBatchNorm, make_norm
from backbones.residual import BasicBlock, BlockDesign, Bottleneck, PreactBasicBlock, PreactBottleneck
from detection.engine.operators import count_operators

every_block = pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreactBasicBlock, PreactBottleneck])
X = torch.randn(2, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def make_layers(*, bias: bool = False, groups: int = 1) -> tuple[nn.Conv2d, FrozenBatchNorm]:
    torch.manual_seed(1)
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=groups, bias=bias)
    return convolution.double(), randomise(FrozenBatchNorm(6, eps=1e-3)).double()


def make_residual_stage(block: type = Bottleneck, **changes) -> Any:
    """Three blocks, the first of which has a shortcut with a convolution."""
    torch.manual_seed(0)
    design = replace(BlockDesign("B", make_norm("frozen_bn", 1e-5), residual.make_activation("relu")), **changes)
    return randomise(residual.make_stage(block, 4, 2, stride=2, designs=[design] * 3)).double()


def randomise(module):
    """Gives all statistics and weights of frozen normalisation layers values of their own."""
    for norm in module.modules():
        if isinstance(norm, FrozenBatchNorm):
            for buffer in norm.buffers():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return module


def by_layers(stage):
    """Returns a copy in which every layer runs for itself, as layers with hooks do."""
    apart = deepcopy(stage)
    for module in apart.modules():
        if isinstance(module, FrozenBatchNorm):
            module.register_forward_hook(lambda *_: None)
    return apart


def pairs_of(stage) -> list[Any]:
    return [pair for layer in stage for pair in layer.pairs()]


def weighed(out: Tensor) -> Tensor:
    """A sum that weighs all values otherwise."""
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def gradients(stage, loss: Tensor | None = None) -> dict[str, Any]:
    """Those that one backward pass, by default of what the stage makes of ``X``, leaves in the parameters."""
    stage.zero_grad()
    (weighed(stage(X)) if loss is None else loss).backward()
    return {name: parameter.grad for name, parameter in stage.named_parameters()}


def counts(call):
    """Operators of a step; the first step makes what is kept."""
    call().sum().backward()
    return count_operators(lambda: call().sum().backward()).names


def assert_folded(convolution: nn.Conv2d, norm: nn.Module, x: Tensor = X) -> None:
    """Both give the same in a test, and gradients in training."""
    with torch.no_grad():
        torch.testing.assert_close(convolve(convolution, norm, x), norm(convolution(x)))
    found, wanted = [], [p for p in convolution.parameters() if p.requires_grad]
    for call in (lambda x: convolve(convolution, norm, x), lambda x: norm(convolution(x))):
        own = x.clone().requires_grad_()
        found.append(torch.autograd.grad(weighed(call(own)), [own, *wanted]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_the_layers_in_turn(trained: bool, groups: int, bias: bool) -> None:
    convolution, norm = make_layers(bias=bias, groups=groups)
    with torch.inference_mode():
        convolve(convolution.requires_grad_(False), norm, X)  # what is kept is of no harm to a training after it
    assert_folded(convolution.requires_grad_(trained), norm)
    assert_folded(convolution, norm, X[:1, :, :3, :3])  # an output that is smaller than the weights


@torch.no_grad()
def test_one_operator_in_a_test_and_nothing_of_the_norm() -> None:
    convolution, norm = make_layers()
    convolve(convolution, norm, X)
    with torch.profiler.profile() as profiled:
        convolve(convolution, norm, X)
    names = {event.key for event in profiled.key_averages()}
    assert "aten::conv2d" in names
    assert not names & {"aten::batch_norm", "aten::mul", "aten::rsqrt"}


def test_training_keeps_the_input_and_no_second_weights_and_refuses_those_that_changed() -> None:
    convolution, norm = make_layers()
    with fold_at_once([(convolution, norm)]) as folded:
        weight = weakref.ref(folded[convolution, norm][0])
        output = convolve(convolution, norm, X.clone().requires_grad_(), folded)
    del folded
    assert weight() is None
    output.sum().backward(retain_graph=True)
    with torch.no_grad():
        convolution.weight.add_(1)
    with pytest.raises(RuntimeError, match="in-place"):
        output.sum().backward()


def step(layers: nn.ModuleList) -> None:
    weight = layers.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


def load(layers: nn.ModuleList, **options) -> None:
    layers.load_state_dict({name: value + 1 for name, value in layers.state_dict().items()}, **options)


CHANGES: dict[str, Any] = {
    "optimizer step": step,
    "load_state_dict": load,
    "load_state_dict, assigned": lambda layers: load(layers, assign=True),
    "moving average": lambda layers: [v.lerp_(torch.ones_like(v), 0.3) for v in layers.state_dict().values()],
    "statistics": lambda layers: layers.get_buffer("1.running_mean").add_(1),
    "precision": lambda layers: layers.float(),
    "new data": lambda layers: setattr(layers.get_parameter("0.weight"), "data", torch.rand(6, 4, 3, 3).double()),
    "memory format": lambda layers: layers.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_follows_a_change(change) -> None:
    convolution, norm = make_layers()
    assert_folded(convolution, norm)
    with torch.no_grad():
        change(nn.ModuleList([convolution, norm]))
    assert_folded(convolution, norm, X.to(convolution.weight.dtype))


@torch.no_grad()
def test_a_sequence_equals_its_layers_in_turn_and_a_copy_goes_its_own_way() -> None:
    layers = [*make_layers(), nn.ReLU(), nn.Conv2d(6, 6, 1).double(), nn.BatchNorm2d(6).double().eval()]
    before, sequence = nn.Sequential(*layers)(X), FoldingSequential(*layers)
    torch.testing.assert_close(sequence(X), before)
    assert [index for index, _ in run(layers, X)] == [1, 2, 3, 4]
    assert FoldingSequential()(X) is X
    copied = deepcopy(sequence)
    assert copied.get_submodule("1").kept == {}  # no second weights
    step(nn.ModuleList(copied))
    torch.testing.assert_close(sequence(X), before)
    assert not torch.allclose(copied(X), before)


@pytest.mark.parametrize("choice", [{}, {"avg_down": True}, {"shortcut": "A"}], ids=str)
@every_block
def test_a_stage_equals_its_layers_in_turn(block: type, choice) -> None:
    stage = make_residual_stage(block, **choice)
    torch.testing.assert_close(stage(X), by_layers(stage)(X))
    wanted, loss = gradients(by_layers(stage)), weighed(stage(X))
    for _ in range(2):
        found = torch.autograd.grad(loss, list(stage.parameters()), retain_graph=True)
        torch.testing.assert_close(dict(zip(wanted, found, strict=True)), wanted)


@every_block
def test_a_stage_scales_all_weights_by_one_operator_and_all_gradients_by_another(block) -> None:
    stage = make_residual_stage(block)
    together, alone = counts(lambda: stage(X)), counts(lambda: nn.Sequential(*stage)(X))
    pairs = len(pairs_of(stage))
    norms_alone = 4 if block.preact else 0  # two for each bn1 of blocks two and three, which follow no convolution
    # Weights forward and again on the way back, and gradients.
    assert (together["aten._foreach_mul"], together["aten._foreach_mul_"]) == (2, 1)
    assert together.get("aten.mul", 0) == norms_alone
    assert alone["aten.mul"] == norms_alone + 2 * pairs
    assert sum(alone.values()) - sum(together.values()) == 2 * pairs - 3


def block_by_block(stage) -> Tensor:
    x = X
    with fold_at_once(pairs_of(stage)) as folded:
        for block in stage:
            x = checkpoint(block, x, folded, use_reentrant=False)
    return x


WAYS = {
    "each convolution alone": lambda stage: nn.Sequential(*stage)(X),
    "compiled": lambda stage: torch.compile(stage, fullgraph=True, backend="aot_eager")(X),
    "computed again": lambda stage: checkpoint(stage, X, use_reentrant=False),
    "blocks computed again": block_by_block,
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_a_stage_are_the_same_whatever_runs_it(way: str) -> None:
    stage, call = make_residual_stage(), WAYS[way]
    once = {name: gradient.clone() for name, gradient in gradients(stage).items()}
    exact: dict[str, Any] = {} if way == "compiled" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(gradients(stage, weighed(call(stage))), once, **exact)
    weighed(call(stage)).backward()
    twice = {name: 2 * gradient for name, gradient in once.items()}
    torch.testing.assert_close({name: p.grad for name, p in stage.named_parameters()}, twice)
    torch.testing.assert_close(gradients(stage, weighed(call(stage)) + weighed(call(stage))), twice)


def test_a_stage_in_lower_precision_has_gradients_of_full_precision() -> None:
    stage = make_residual_stage().float()
    exact = gradients(stage, weighed(stage(X.float())))
    for layers in (stage, nn.Sequential(*stage)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower = weighed(layers(X.float()))
        for name, gradient in gradients(stage, lower).items():
            assert gradient.dtype == torch.float32
            assert torch.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0) > 0.98


@pytest.mark.parametrize("frozen", [r"1\.", r".*conv2", r".*downsample", r".*"])
def test_frozen_weights_of_a_stage_get_no_gradient_and_no_scale_in_a_step(frozen: str) -> None:
    stage = make_residual_stage()
    for name, parameter in stage.named_parameters():
        parameter.requires_grad_(re.match(frozen, name) is None)
    x, apart = X.clone().requires_grad_(), by_layers(stage)
    found = gradients(stage, weighed(stage(x)))
    torch.testing.assert_close(found, gradients(apart, weighed(apart(x))))
    assert {name for name, gradient in found.items() if gradient is None} == {n for n in found if re.match(frozen, n)}
    assert counts(lambda: stage(x)).get("aten.mul", 0) == 0


def test_other_norms_and_layers_with_hooks_stay_layers() -> None:
    def folded(*pairs) -> list[Any]:
        with fold_at_once(pairs) as found:
            return list(found)

    convolution, norm = pair = make_layers()
    with torch.no_grad():
        assert folded(pair) == []
    assert folded((convolution, nn.BatchNorm2d(6)), (nn.Identity(), norm)) == []
    assert folded(pair) == [pair]
    seen = []
    convolution.register_forward_hook(lambda *_: seen.append("convolution"))
    norm.register_forward_hook(lambda *_: seen.append("norm"))
    assert folded(pair) == []
    for other in (norm, nn.BatchNorm2d(6).double(), nn.GroupNorm(2, 6).double(), nn.Identity()):
        assert_folded(convolution, other)
    assert seen[:2] == ["convolution", "norm"]


def test_nothing_learns_that_no_gradient_comes_to() -> None:
    stage = make_residual_stage()
    with fold_at_once(pairs_of(stage)) as every:
        assert len(every) == len(pairs_of(stage)) == 10
        stage[0](X, every).sum().backward()
    assert {n.split(".")[0] for n, p in stage.named_parameters() if p.grad is not None} == {"0"}
