"""Mirrors dropblock.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backbones.cifar_resnet import CifarResNet
from backbones.dropblock import drop_blocks
from backbones.residual import BasicBlock, Bottleneck, PreactBasicBlock, PreactBottleneck, ResidualBlock
from backbones.resnet import ResNet


def expected_kept(side: int, block: int, probability: float) -> float:
    """Share of cells that no block covers, by hand: (1 - rate) to the number of corners whose block covers the cell."""
    corners = side - block + 1
    rate = probability * side**2 / (block**2 * corners**2)
    over = [sum(corner <= cell < corner + block for corner in range(corners)) for cell in range(side)]
    return sum((1 - rate) ** (rows * columns) for rows in over for columns in over) / side**2


@pytest.mark.parametrize(("side", "block"), [(14, 7), (7, 7), (5, 7), (16, 3)])
def test_share_that_is_kept(side: int, block: int) -> None:
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
def test_drops_in_the_last_two_stages_and_in_training_alone(block: Any) -> None:
    torch.manual_seed(0)
    network = CifarResNet(11 if block is PreactBottleneck else 8, block, norm="gn", dropblock=0.3)
    assert [m.dropblock for m in network.modules() if isinstance(m, ResidualBlock)] == [0, 0.3, 0.3]
    images = torch.randn(2, 3, 32, 32)
    (first,), (second,) = network(images).values(), network(images).values()
    assert not torch.equal(first, second)
    network.eval()
    (first,), (second,) = network(images).values(), network(images).values()
    assert torch.equal(first, second)


def test_large_networks_have_it_from_conv4_on() -> None:
    with torch.device("meta"):
        blocks = [m for m in ResNet(50, dropblock=0.1).modules() if isinstance(m, Bottleneck)]
    assert [block.dropblock for block in blocks] == [0.0] * 7 + [0.1] * 9
