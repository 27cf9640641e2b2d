"""Mirrors detection/model/box_coder.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder

from detection.model.box_coder import MAX_LOG_SCALE, BoxCoder

Weights = tuple[float, float, float, float]
WEIGHTS: list[Weights] = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(count: int, seed: int) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_inverts_encode(weights: Weights) -> None:
    boxes, anchors = random_boxes(50, seed=0), random_boxes(50, seed=1)
    coder = BoxCoder(weights)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_agrees_with_torchvision(weights: Weights) -> None:
    boxes, anchors = random_boxes(50, seed=0), random_boxes(50, seed=1)
    ours, theirs = BoxCoder(weights), TorchvisionBoxCoder(weights)
    deltas = ours.encode(boxes, anchors)
    torch.testing.assert_close(deltas, theirs.encode_single(boxes, anchors))
    torch.testing.assert_close(ours.decode(deltas, anchors), theirs.decode_single(deltas, anchors))


def test_known_deltas() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[1.0, -2.0, 21.0, 18.0]])  # six pixels right, two up, twice as wide
    expected = torch.tensor([[0.6, -0.1, 0.6931472, 0.0]])
    torch.testing.assert_close(BoxCoder().encode(box, anchor), expected)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    torch.testing.assert_close(BoxCoder((10.0, 10.0, 5.0, 5.0)).encode(box, anchor), expected * weights)


def test_known_box() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    deltas = torch.tensor([[0.1, -0.1, 0.0, 0.0]])  # one pixel right, two up
    torch.testing.assert_close(BoxCoder().decode(deltas, anchor), torch.tensor([[1.0, -2.0, 11.0, 18.0]]))


def test_zero_deltas_give_the_anchor() -> None:
    anchors = random_boxes(5, seed=0)
    torch.testing.assert_close(BoxCoder().decode(torch.zeros(5, 4), anchors), anchors)


def test_one_anchor_decodes_to_one_box_per_class() -> None:
    anchors = random_boxes(3, seed=0)
    boxes = BoxCoder().decode(torch.zeros(3, 20, 4), anchors[:, None])
    torch.testing.assert_close(boxes, anchors[:, None].expand(3, 20, 4))


def test_growth_is_capped_and_half_precision_decodes_in_float32() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]], dtype=torch.float16)
    boxes = BoxCoder().decode(torch.full((1, 4), 2 * MAX_LOG_SCALE, dtype=torch.float16), anchor)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes[:, 2] - boxes[:, 0], torch.tensor([1000.0]))


def test_no_boxes() -> None:
    assert BoxCoder().decode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert BoxCoder().encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_three_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="four weights"):
        BoxCoder((1.0, 1.0, 1.0))
