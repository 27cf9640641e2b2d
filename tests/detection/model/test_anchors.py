"""Mirrors detection/model/anchors.py; the order of the anchors is that of RPNHead's output."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from detection.model.anchors import AnchorGenerator, deal
from detection.model.rpn import RPNHead


def test_cell_anchors_by_hand() -> None:
    """A size is the root of the area, a ratio is height over width: here a quarter as high as wide, and so on."""
    anchors = AnchorGenerator(8, sizes=[16, 32], ratios=[0.25, 1, 4])
    halves = torch.tensor([[16.0, 4], [8, 8], [4, 16], [32, 8], [16, 16], [8, 32]])
    assert anchors.num_anchors == 6
    torch.testing.assert_close(anchors.cell_anchors, torch.cat([-halves, halves], dim=1))
    assert not anchors.state_dict()  # checkpoints do not hold them


@pytest.mark.parametrize(("offset", "first"), [(0.5, 4.0), (0.0, 0.0)])
def test_every_cell_has_all_cell_anchors_row_by_row(offset, first) -> None:
    anchors = AnchorGenerator(8, sizes=[16.0, 32.0], ratios=[0.5, 1.0, 2.0], offset=offset)
    boxes = anchors(2, 3).reshape(2, 3, 6, 4)
    for row in range(2):
        for column in range(3):
            shift = torch.tensor([first + 8 * column, first + 8 * row] * 2)
            torch.testing.assert_close(boxes[row, column], anchors.cell_anchors + shift)
    assert anchors(0, 7).shape == (0, 4)


def test_head_and_anchors_agree_on_their_order() -> None:
    anchors = AnchorGenerator(16, sizes=[32.0, 64.0], ratios=[0.5, 1.0, 2.0])
    head = RPNHead(3, channels=8, num_anchors=anchors.num_anchors)
    # Without its weights, the head says the number of the anchor, and 4 a + 0..3 as its deltas.
    for layer, outputs in ((head.objectness, 6), (head.deltas, 24)):
        nn.init.zeros_(layer.weight)
        layer.bias = nn.Parameter(torch.arange(float(outputs)))
    sizes, cell_sizes = (part[:, 2:] - part[:, :2] for part in (anchors(4, 5), anchors.cell_anchors))
    for logits, deltas in zip(*head(torch.rand(2, 3, 4, 5)), strict=True):
        torch.testing.assert_close(cell_sizes[logits.long()], sizes)
        torch.testing.assert_close(deltas, logits[:, None] * 4 + torch.arange(4.0))
    # The order of the cells: the logit is the first channel of the feature, dx too, and dy is the second.
    anchors, head = AnchorGenerator(16, sizes=[32.0], ratios=[0.5, 1.0, 2.0]), RPNHead(2, channels=2, num_anchors=3)
    for layer in (head.conv, head.objectness, head.deltas):
        nn.init.zeros_(layer.weight)
    head.conv.weight.data[[0, 1], [0, 1], 1, 1] = 1
    head.objectness.weight.data[:, 0] = head.deltas.weight.data[0::4, 0] = head.deltas.weight.data[1::4, 1] = 1
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    logits, deltas = head(torch.stack([x, y])[None])
    boxes = anchors(4, 5)
    expected = (boxes[:, :2] + boxes[:, 2:]) / 2 / 16 - 0.5  # (R, 2) the column and the row of an anchor's cell
    torch.testing.assert_close(logits[0], expected[:, 0])
    torch.testing.assert_close(deltas[0, :, :2], expected)


@pytest.mark.parametrize("size", [(64, 96), (800, 1344), (416, 608)])
def test_rounded_anchors_are_torchvisions_on_every_level(size) -> None:
    strides, ratios = (4, 8, 16, 32, 64), (0.5, 1.0, 2.0)
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    theirs = TorchvisionAnchors(tuple((8.0 * stride,) for stride in strides), (ratios,) * 5)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (wanted,) = theirs(images, [torch.zeros(1, 1, *shape) for shape in shapes])
    ours = [AnchorGenerator(s, sizes=[8.0 * s], ratios=ratios, offset=0.0, rounded=True) for s in strides]
    found = [level(*shape, size) for level, shape in zip(ours, shapes, strict=True)]
    torch.testing.assert_close(torch.cat(found), wanted)


def test_sizes_are_dealt_out_evenly_from_the_finest_level_on() -> None:
    assert deal((1, 2, 3, 4), 2) == [(1, 2), (3, 4)]
    assert deal((1, 2, 3), 1) == [(1, 2, 3)]
    for sizes in ((1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"anchors\.sizes needs equally many sizes for each of the 2 levels"):
            deal(sizes, 2)
    for sizes, ratios in (([], [1.0]), ([32.0], []), ([0.0], [1.0]), ([32.0], [-1.0])):
        with pytest.raises(ValueError, match="positive sizes and ratios"):
            AnchorGenerator(16, sizes=sizes, ratios=ratios)
