"""Mirrors residual.py and dropblock.py; blocks against those of torchvision and timm are in test_classifier.py."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from backbones import residual
from backbones.cifar_resnet import CifarResNet
from backbones.dropblock import drop_blocks
from backbones.norm import make_norm
from backbones.residual import BasicBlock, BlockDesign, Bottleneck, PreactBasicBlock, PreactBottleneck, ResidualBlock

DESIGN = BlockDesign("B", make_norm("bn", 1e-5), residual.make_activation("relu"))
every_block = pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreactBasicBlock, PreactBottleneck])


def make_block(block, **changes) -> tuple:
    """One with the identity as its shortcut, and an input that the last activation of a block leaves alone."""
    torch.manual_seed(0)
    layer = block(4 * block.expansion, 4, stride=1, design=replace(DESIGN, **changes))
    return layer, torch.rand(2, 4 * block.expansion, 5, 7)


def test_death_probabilities_rise_linearly_to_the_last_block() -> None:
    assert residual.linear_decay(0.5, 5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    blocks = [m for m in CifarResNet(20, BasicBlock, stochastic_depth=0.5).modules() if isinstance(m, ResidualBlock)]
    assert [block.death for block in blocks] == pytest.approx([0.5 * (i + 1) / 9 for i in range(9)])
    for final in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"stochastic_depth .* got {final}"):
            residual.linear_decay(final, 3)


@every_block
def test_nothing_is_skipped_at_a_death_probability_of_zero_and_all_but_the_shortcut_at_one(block) -> None:
    layer, x = make_block(block)
    state = torch.get_rng_state()
    assert not torch.equal(layer(x), x)
    assert torch.equal(torch.get_rng_state(), state)
    layer, x = make_block(block, death=1.0)
    before = x.clone()
    layer(x).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), x)
    assert layer(x - 0.5).lt(0).any() == block.preact
    assert torch.equal(x, before)


@every_block
@torch.no_grad()
def test_a_quarter_of_the_steps_skip_the_branch_for_the_whole_batch_and_a_test_gives_the_expectation(block) -> None:
    alive, x = make_block(block)
    layer, _ = make_block(block, death=0.25)
    branch = alive.eval().branch(alive.act1(alive.bn1(x)) if block.preact else x)
    expected = x + 0.75 * branch
    torch.testing.assert_close(layer.eval()(x), expected if block.preact else expected.relu())
    skipped = []
    for _ in range(400):
        per_image = [torch.allclose(image, entered) for image, entered in zip(layer.train()(x), x, strict=True)]
        assert len(set(per_image)) == 1
        skipped.append(per_image[0])
    assert sum(skipped) / 400 == pytest.approx(0.25, abs=0.065)  # three standard deviations


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("prelu", 0.25)])
def test_initial_variance_allows_for_the_slope_of_each_channel(activation, slope: float) -> None:
    layer = residual.make_activation(activation)(3)
    assert [tuple(p.shape) for p in layer.parameters()] == ([(3,)] if slope else [])
    assert layer(torch.tensor([-4.0, 2.0, 0.0]).view(1, 3, 1, 1)).flatten().tolist() == [-4 * slope, 2, 0]
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3)
    residual.initialise(nn.Sequential(layer), activation)
    assert layer.weight.var().item() == pytest.approx(2 / ((1 + slope**2) * 64 * 9), rel=0.03)


@torch.no_grad()
def test_average_before_the_projection_takes_the_place_of_its_stride() -> None:
    block, x = BasicBlock(1, 1, stride=2, design=replace(DESIGN, avg_down=True)).eval(), torch.arange(9.0)
    block.get_parameter("bn2.weight").zero_()
    block.get_parameter("downsample.1.weight").fill_(1.0)
    # 2x2 cells; at the border of an odd size those inside
    expected = torch.tensor([[2.0, 3.5], [6.5, 8.0]]) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x.view(1, 1, 3, 3))[0, 0], expected)


def expected_kept(side: int, block: int, probability: float) -> float:
    """Share of cells that no block covers, by hand: (1 - rate) to the number of corners whose block covers the cell."""
    corners = side - block + 1
    rate = probability * side**2 / (block**2 * corners**2)
    over = [sum(corner <= cell < corner + block for corner in range(corners)) for cell in range(side)]
    return sum((1 - rate) ** (rows * columns) for rows in over for columns in over) / side**2


@pytest.mark.parametrize(("side", "block"), [(14, 7), (7, 7), (5, 7), (16, 3)])
def test_share_that_dropblock_keeps(side: int, block: int) -> None:
    torch.manual_seed(0)
    dropped = drop_blocks(torch.ones(64, 64, side, side), 0.1, size=block)
    kept = dropped.ne(0).float().mean().item()
    assert kept == pytest.approx(expected_kept(side, min(block, side), 0.1), abs=0.01)
    assert kept == pytest.approx(0.9, abs=0.02)
    assert dropped.mean().item() == pytest.approx(1)


def test_what_is_dropped_are_blocks_of_each_channel() -> None:
    torch.manual_seed(3)
    dropped = drop_blocks(torch.ones(1, 200, 12, 12), 0.05, size=5).eq(0)[0]
    single = [cells for cells in dropped if cells.sum() == 25]
    assert len(single) > 20
    for cells in single:
        rows, columns = cells.any(dim=1).nonzero(), cells.any(dim=0).nonzero()
        assert len(rows) == len(columns) == 5
        assert cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert len({tuple(cells.flatten().tolist()) for cells in single}) > 10


@pytest.mark.parametrize("block", [BasicBlock, PreactBasicBlock, PreactBottleneck])
def test_blocks_are_dropped_in_the_last_two_stages_and_in_training_alone(meta, block) -> None:
    torch.manual_seed(0)
    network = CifarResNet(11 if block is PreactBottleneck else 8, block, norm="gn", dropblock=0.3)
    assert [m.dropblock for m in network.modules() if isinstance(m, ResidualBlock)] == [0, 0.3, 0.3]
    images = torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        (first,), (second,) = (network.train(mode)(images).values() for _ in range(2))
        assert torch.equal(first, second) != mode
    blocks = [m for m in meta("resnet50", dropblock=0.1).modules() if isinstance(m, Bottleneck)]
    assert [block.dropblock for block in blocks] == [0.0] * 7 + [0.1] * 9
