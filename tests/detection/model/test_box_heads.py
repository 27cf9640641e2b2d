"""Mirrors detection/model/box_heads.py."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from backbones.norm import make_norm
from detection.model.box_heads import PART, FCHead


def test_is_torchvisions_two_layers_also_by_parts() -> None:
    torch.manual_seed(0)
    ours, theirs = FCHead(4, 3, channels=8), TwoMLPHead(4 * 3 * 3, 8)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    regions = torch.randn(2 * PART + 3, 4, 3, 3)
    with torch.no_grad():  # regions of channels last are taken by parts
        for given in (regions, regions.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(ours(given), theirs(regions))


@pytest.mark.parametrize(("norm", "kind"), [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm), (None, nn.Identity)])
def test_convolutions_come_first_and_keep_the_size(norm, kind) -> None:
    head = FCHead(4, 3, convs=2, conv_channels=6, fcs=1, channels=8, norm=norm and make_norm(norm, 1e-5))
    modules: Any = list(head.modules())
    assert head.convs(torch.rand(5, 4, 3, 3)).shape == (5, 6, 3, 3)
    assert (head(torch.rand(5, 4, 3, 3)).shape, head(torch.zeros(0, 4, 3, 3)).shape) == ((5, 8), (0, 8))
    assert head.out_channels == 8
    assert [layer.in_features for layer in modules if isinstance(layer, nn.Linear)] == [54]
    # A norm takes the bias of its convolution.
    assert [layer.bias is None for layer in modules if isinstance(layer, nn.Conv2d)] == [norm is not None] * 2
    assert sum(isinstance(layer, kind) for layer in modules) == (2 if norm else 0)
