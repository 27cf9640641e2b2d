"""Mirrors residual.py; the networks made of these blocks are in test_resnet.py and test_cifar_resnet.py."""

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from backbones.norm import make_norm
from backbones.residual import (
    ActivationKind,
    BasicBlock,
    BlockDesign,
    Bottleneck,
    PaddedShortcut,
    PreactBasicBlock,
    PreactBottleneck,
    SqueezeExcitation,
    initialise,
    linear_decay,
    make_activation,
    make_stage,
)

DESIGN = BlockDesign("B", make_norm("bn", 1e-5), make_activation("relu"))
BLOCKS = [BasicBlock, Bottleneck, PreactBasicBlock, PreactBottleneck]
every_block = pytest.mark.parametrize("block", BLOCKS)
Block = BasicBlock | Bottleneck | PreactBasicBlock | PreactBottleneck


def make_block(block: type[Block], *, death: float = 0.0) -> Block:
    """One with the identity as its shortcut."""
    torch.manual_seed(0)
    return block(4 * block.expansion, 4, stride=1, design=replace(DESIGN, death=death))


def draw_input(block: type[Block], width: int = 4) -> torch.Tensor:
    """Positive, as after a ReLU, so that the last activation of a block leaves the shortcut's values alone."""
    return torch.rand(2, width * block.expansion, 5, 7, generator=torch.Generator().manual_seed(1))


def test_padded_shortcut_by_hand() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3) + 1
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 0] = torch.tensor([[1.0, 3.0], [7.0, 9.0]])
    torch.testing.assert_close(PaddedShortcut(2, stride=2)(x), expected)


def test_squeeze_and_excitation_by_hand() -> None:
    layer = SqueezeExcitation(32)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        layer.fc1.weight[0, 0] = 2.0  # hidden 0 is twice the average of channel 0, hidden 1 is 0
        layer.fc2.weight[1, 0] = 0.5
        assert layer.fc2.bias is not None
        layer.fc2.bias[2] = -1.0
    x = torch.ones(1, 32, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # average 3
    scale = layer(x)[0, :, 1, 1] / x[0, :, 1, 1]
    expected = torch.full((32,), 0.5)
    expected[1], expected[2] = 1 / (1 + math.exp(-3)), 1 / (1 + math.e)
    torch.testing.assert_close(scale, expected)
    torch.testing.assert_close(layer(-x)[0, 1, 0, 0], torch.tensor(-0.5))  # ReLU between the two layers


def test_squeeze_and_excitation_has_a_sixteenth_of_the_channels_inside() -> None:
    assert SqueezeExcitation(64).fc1.weight.shape == (4, 64, 1, 1)
    assert SqueezeExcitation(64)(torch.zeros(0, 64, 3, 5)).shape == (0, 64, 3, 5)


@every_block
def test_squeeze_and_excitation_scales_the_branch_alone(block: type[Block]) -> None:
    torch.manual_seed(0)
    layer = block(16 * block.expansion, 16, stride=1, design=replace(DESIGN, se=True)).eval()
    x = draw_input(block, 16)
    for name, parameter in layer.get_submodule("se").named_parameters():
        nn.init.constant_(parameter, -100.0 if name == "fc2.bias" else 0.0)  # a factor of about e^-100
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_post_activation_block_activates_the_sum(block: type[Block]) -> None:
    layer = make_block(block).eval()
    x = draw_input(block) - 0.5
    torch.testing.assert_close(layer(x), (layer.branch(x) + x).relu())


@pytest.mark.parametrize("block", [PreactBasicBlock, PreactBottleneck])
def test_pre_activation_block_adds_the_branch_of_the_activated_input(block: type[Block]) -> None:
    layer = make_block(block).eval()
    x = draw_input(block) - 0.5
    out = layer(x)
    torch.testing.assert_close(out, layer.branch(layer.bn1(x).relu()) + x)
    assert out.lt(0).any()


@pytest.mark.parametrize("block", [PreactBasicBlock, PreactBottleneck])
def test_projection_of_a_pre_activation_block_is_a_bare_convolution_of_the_activated_input(block: type[Block]) -> None:
    layer = block(6, 4, stride=2, design=DESIGN).eval()
    assert isinstance(layer.downsample, nn.Sequential)
    assert [type(part) for part in layer.downsample] == [nn.Conv2d]
    x = torch.randn(1, 6, 5, 7)
    entering = layer.bn1(x).relu()
    torch.testing.assert_close(layer(x), layer.branch(entering) + layer.downsample(entering))


@pytest.mark.parametrize("block", [PreactBasicBlock, PreactBottleneck])
def test_input_that_is_activated_enters_a_pre_activation_block_as_it_is(block: type[Block]) -> None:
    layer = block(4 * block.expansion, 4, stride=1, design=replace(DESIGN, activated=True)).eval()
    x = draw_input(block) - 0.5
    torch.testing.assert_close(layer(x), layer.branch(x) + x)
    assert not any(name.startswith("bn1") for name in layer.state_dict())


def test_death_probabilities_rise_linearly_to_the_last_block() -> None:
    assert linear_decay(0.5, 5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert linear_decay(0.0, 2) == [0.0, 0.0]


@pytest.mark.parametrize("final", [-0.1, 1.0])
def test_death_probability_that_is_none(final: float) -> None:
    with pytest.raises(ValueError, match=f"stochastic_depth must be a probability from 0 to below 1, got {final}"):
        linear_decay(final, 3)


@every_block
def test_nothing_is_skipped_at_a_death_probability_of_zero(block: type[Block]) -> None:
    x = draw_input(block)
    layer = make_block(block)
    state = torch.get_rng_state()
    out = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(out, x)


@every_block
def test_only_the_shortcut_is_left_at_a_death_probability_of_one(block: type[Block]) -> None:
    x = draw_input(block)
    layer = make_block(block, death=1.0)
    torch.testing.assert_close(layer(x), x)
    torch.testing.assert_close(layer.eval()(x), x)


@every_block
def test_eval_mode_gives_the_expectation_of_the_sum(block: type[Block]) -> None:
    x = draw_input(block)
    alive = make_block(block).eval()
    layer = make_block(block, death=0.25).eval()
    branch = alive.branch(alive.act1(alive.bn1(x)) if block.preact else x)
    expected = x + 0.75 * branch
    torch.testing.assert_close(layer(x), expected if block.preact else expected.relu())


@every_block
def test_a_quarter_of_the_steps_skip_the_branch_for_the_whole_batch(block: type[Block]) -> None:
    x = draw_input(block)
    layer = make_block(block, death=0.25)
    skipped = []
    with torch.no_grad():
        for _ in range(400):
            per_image = [torch.allclose(image, entered) for image, entered in zip(layer(x), x, strict=True)]
            assert len(set(per_image)) == 1
            skipped.append(per_image[0])
    assert sum(skipped) / 400 == pytest.approx(0.25, abs=0.065)  # three standard deviations


@every_block
def test_skipped_branch_gets_gradients_of_zero(block: type[Block]) -> None:
    layer = make_block(block, death=1.0)
    layer(draw_input(block)).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


def test_skipped_block_does_not_change_its_input() -> None:
    x = draw_input(BasicBlock) - 0.5
    before = x.clone()
    assert make_block(BasicBlock, death=1.0)(x).ge(0).all()
    assert torch.equal(x, before)


def test_stage_has_a_block_for_every_design_and_the_stride_in_the_first() -> None:
    stage = make_stage(Bottleneck, 8, 4, stride=2, designs=[DESIGN, DESIGN, replace(DESIGN, death=0.5)])
    assert [block.death for block in stage if isinstance(block, Bottleneck)] == [0, 0, 0.5]
    assert stage(torch.zeros(1, 8, 7, 9)).shape == (1, 16, 4, 5)


def test_prelu_starts_at_a_quarter_for_every_channel() -> None:
    layer = make_activation("prelu")(3)
    assert [tuple(p.shape) for p in layer.parameters()] == [(3,)]
    torch.testing.assert_close(
        layer(torch.tensor([[[[-4.0]], [[2.0]], [[0.0]]]])).flatten(), torch.tensor([-1.0, 2, 0])
    )


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation must be one of 'relu', 'prelu', got 'gelu'"):
        make_activation(cast("ActivationKind", "gelu"))


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("prelu", 0.25)])
def test_initial_variance_allows_for_the_slope(activation: ActivationKind, slope: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3)
    initialise(nn.Sequential(layer), activation)
    assert layer.weight.var().item() == pytest.approx(2 / ((1 + slope**2) * 64 * 9), rel=0.03)


def test_average_before_the_projection_takes_the_place_of_its_stride() -> None:
    block = BasicBlock(2, 2, stride=2, design=replace(DESIGN, avg_down=True)).eval()
    nn.init.zeros_(block.get_parameter("bn2.weight"))
    weight = block.get_parameter("downsample.1.weight")
    nn.init.zeros_(weight)
    with torch.no_grad():
        weight[0, 1] = 1.0  # the second channel becomes the first
    x = torch.zeros(1, 2, 3, 3)
    x[0, 1] = torch.arange(9.0).reshape(3, 3)
    # 2x2 cells; at the border of an odd size those inside
    expected = torch.tensor([[2.0, 3.5], [6.5, 8.0]]) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x)[0, 0], expected)
