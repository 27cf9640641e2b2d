"""Mirrors detection/model/box_heads.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from backbones.norm import make_norm
from detection.model.box_heads import PART, FCHead


def test_is_torchvisions_two_layers() -> None:
    torch.manual_seed(0)
    ours, theirs = FCHead(4, 3, channels=8), TwoMLPHead(4 * 3 * 3, 8)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    regions = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(ours(regions), theirs(regions))


def test_regions_of_channels_last_are_taken_by_parts() -> None:
    torch.manual_seed(0)
    head, regions = FCHead(4, 3, channels=8), torch.randn(2 * PART + 3, 4, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(head(regions.to(memory_format=torch.channels_last)), head(regions))


def test_convolutions_come_first_and_keep_the_size() -> None:
    head = FCHead(4, 3, convs=2, conv_channels=6, fcs=1, channels=8)
    assert head.out_channels == 8
    assert head.convs(torch.rand(5, 4, 3, 3)).shape == (5, 6, 3, 3)
    assert head(torch.rand(5, 4, 3, 3)).shape == (5, 8)
    assert [layer.in_features for layer in head.fcs if isinstance(layer, nn.Linear)] == [54]


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_norm_takes_the_bias_of_its_convolution(norm: str) -> None:
    head = FCHead(4, 3, convs=1, conv_channels=6, norm=make_norm(norm, 1e-5))  # pyright: ignore[reportArgumentType]
    (conv,) = (module for module in head.modules() if isinstance(module, nn.Conv2d))
    assert conv.bias is None
    assert len([m for m in head.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]) == 1


def test_no_regions() -> None:
    assert FCHead(4, 3, convs=1, channels=8)(torch.zeros(0, 4, 3, 3)).shape == (0, 8)
