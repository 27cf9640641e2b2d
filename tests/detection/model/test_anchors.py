"""Mirrors detection/model/anchors.py; the order of the anchors is that of RPNHead's output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from detection.model.anchors import AnchorGenerator, deal
from detection.model.rpn import RPNHead


def centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_cell_anchors_by_hand() -> None:
    anchors = AnchorGenerator(8, sizes=[16.0, 32.0], ratios=[0.25, 1.0, 4.0])
    expected = [
        [-16, -4, 16, 4],  # a quarter as high as wide
        [-8, -8, 8, 8],
        [-4, -16, 4, 16],  # four times as high as wide
        [-32, -8, 32, 8],
        [-16, -16, 16, 16],
        [-8, -32, 8, 32],
    ]
    assert anchors.num_anchors == 6
    torch.testing.assert_close(anchors.cell_anchors, torch.tensor(expected, dtype=torch.float32))


def test_size_is_the_root_of_the_area_and_ratio_is_height_over_width() -> None:
    sizes, ratios = torch.tensor([50.0, 128.0, 300.0]), torch.tensor([0.5, 0.7, 2.0, 3.0])
    boxes = AnchorGenerator(16, sizes=sizes.tolist(), ratios=ratios.tolist()).cell_anchors
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.testing.assert_close((width * height).sqrt(), sizes.repeat_interleave(4))
    torch.testing.assert_close(height / width, ratios.repeat(3))


@pytest.mark.parametrize(("offset", "first"), [(0.5, 4.0), (0.0, 0.0)])
def test_centres_go_row_by_row(offset: float, first: float) -> None:
    boxes = AnchorGenerator(8, sizes=[16.0], ratios=[1.0, 2.0], offset=offset)(2, 3)
    assert boxes.shape == (2 * 3 * 2, 4)
    x, y = centers(boxes).unbind(dim=1)
    steps = torch.tensor([0.0, 8.0, 16.0])
    torch.testing.assert_close(x, first + steps.repeat(2).repeat_interleave(2))  # both anchors of a cell together
    torch.testing.assert_close(y, first + torch.tensor([0.0, 8.0]).repeat_interleave(6))


def test_every_cell_has_all_cell_anchors() -> None:
    anchors = AnchorGenerator(16, sizes=[32.0, 64.0, 128.0], ratios=[0.5, 1.0, 2.0], offset=0)
    boxes = anchors(3, 4).reshape(3, 4, 9, 4)
    torch.testing.assert_close(boxes[0, 0], anchors.cell_anchors)
    torch.testing.assert_close(boxes[2, 1], anchors.cell_anchors + torch.tensor([16.0, 32.0, 16.0, 32.0]))


def test_head_and_anchors_agree_on_the_order_within_a_cell() -> None:
    anchors = AnchorGenerator(16, sizes=[32.0, 64.0], ratios=[0.5, 1.0, 2.0])
    head = RPNHead(3, channels=8, num_anchors=anchors.num_anchors)
    # Without its weights, the head says the number of the anchor, and 4 a + 0..3 as its deltas.
    for layer, outputs in ((head.objectness, 6), (head.deltas, 24)):
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        layer.bias.data = torch.arange(float(outputs))
    logits, deltas = head(torch.rand(2, 3, 4, 5))
    sizes = anchors(4, 5).reshape(-1, 2, 2).diff(dim=1)[:, 0]  # (R, 2) as (width, height)
    cell_sizes = anchors.cell_anchors.reshape(-1, 2, 2).diff(dim=1)[:, 0]
    for image in range(2):
        torch.testing.assert_close(cell_sizes[logits[image].long()], sizes)
        torch.testing.assert_close(deltas[image], logits[image][:, None] * 4 + torch.arange(4.0))


def test_head_and_anchors_agree_on_the_order_of_the_cells() -> None:
    anchors = AnchorGenerator(16, sizes=[32.0], ratios=[0.5, 1.0, 2.0])
    head = RPNHead(2, channels=2, num_anchors=3)
    for layer in (head.conv, head.objectness, head.deltas):
        nn.init.zeros_(layer.weight)
    head.conv.weight.data[[0, 1], [0, 1], 1, 1] = 1  # hidden = feature
    head.objectness.weight.data[:, 0] = 1  # logit = first channel
    head.deltas.weight.data[0::4, 0] = 1  # dx = first channel, dy = second
    head.deltas.weight.data[1::4, 1] = 1
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    logits, deltas = head(torch.stack([x, y])[None])
    expected = centers(anchors(4, 5)) / 16 - 0.5  # (R, 2) the column and the row of an anchor's cell
    torch.testing.assert_close(logits[0], expected[:, 0])
    torch.testing.assert_close(deltas[0, :, :2], expected)


def test_agrees_with_torchvision_but_for_its_rounding() -> None:
    sizes, ratios = (50.0, 128.0), (0.5, 1.0, 2.0)
    theirs = TorchvisionAnchors(((50, 128),), (ratios,))
    images = ImageList(torch.zeros(1, 3, 80, 112), [(80, 112)])
    expected = theirs(images, [torch.zeros(1, 1, 5, 7)])[0].reshape(35, 3, 2, 4)  # ratios outside, sizes inside
    ours = AnchorGenerator(16, sizes=sizes, ratios=ratios, offset=0)(5, 7).reshape(35, 2, 3, 4)
    torch.testing.assert_close(ours.transpose(1, 2), expected, atol=0.5 + 1e-4, rtol=0)


def test_whole_numbers_are_sizes_and_ratios_too() -> None:
    anchors = AnchorGenerator(16, sizes=[32], ratios=[1])
    torch.testing.assert_close(anchors.cell_anchors, torch.tensor([[-16.0, -16, 16, 16]]))


def test_no_cells() -> None:
    assert AnchorGenerator(16, sizes=[32.0], ratios=[1.0])(0, 7).shape == (0, 4)


def test_checkpoints_do_not_hold_anchors() -> None:
    assert not AnchorGenerator(16, sizes=[32.0], ratios=[1.0]).state_dict()


@pytest.mark.parametrize(("sizes", "ratios"), [([], [1.0]), ([32.0], []), ([0.0], [1.0]), ([32.0], [-1.0])])
def test_impossible_anchors_are_refused(sizes: list[float], ratios: list[float]) -> None:
    with pytest.raises(ValueError, match="positive sizes and ratios"):
        AnchorGenerator(16, sizes=sizes, ratios=ratios)


@pytest.mark.parametrize("size", [(64, 96), (800, 1344), (416, 608)])
def test_rounded_anchors_are_torchvisions_on_every_level(size: tuple[int, int]) -> None:
    sizes = (32.0, 64.0, 128.0, 256.0, 512.0)
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    theirs = TorchvisionAnchors(tuple((s,) for s in sizes), ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (wanted,) = theirs(images, [torch.zeros(1, 1, *shape) for shape in shapes])
    ours = [
        AnchorGenerator(stride, sizes=[side], ratios=[0.5, 1.0, 2.0], offset=0.0, rounded=True)(*shape, size)
        for stride, side, shape in zip((4, 8, 16, 32, 64), sizes, shapes, strict=True)
    ]
    torch.testing.assert_close(torch.cat(ours), wanted)


def test_sizes_are_dealt_out_evenly_from_the_finest_level_on() -> None:
    assert deal((1, 2, 3, 4), 2) == [(1, 2), (3, 4)]
    assert deal((1, 2, 3), 1) == [(1, 2, 3)]
    for sizes in ((1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"anchors\.sizes needs one size for each of the 2 levels"):
            deal(sizes, 2)
