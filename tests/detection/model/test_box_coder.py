"""Mirrors detection/model/box_coder.py and precision.py."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder

from detection.model.box_coder import MAX_LOG_SCALE, BoxCoder
from detection.model.losses import smooth_l1
from detection.model.precision import at_least_single


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_agrees_with_torchvision_and_decoding_inverts_encoding(weights, random_boxes) -> None:
    boxes, anchors = random_boxes(50), random_boxes(50, seed=1)
    ours, theirs = BoxCoder(weights), TorchvisionBoxCoder(weights)
    deltas = ours.encode(boxes, anchors)
    torch.testing.assert_close(deltas, theirs.encode_single(boxes, anchors))
    torch.testing.assert_close(ours.decode(deltas, anchors), theirs.decode_single(deltas, anchors))
    torch.testing.assert_close(ours.decode(deltas, anchors), boxes)
    # One anchor decodes to one box per class.
    of_classes, none = anchors[:, None].expand(50, 20, 4), torch.zeros(0, 4)
    torch.testing.assert_close(ours.decode(torch.zeros(50, 20, 4), anchors[:, None]), of_classes)
    assert ours.decode(none, none).shape == ours.encode(none, none).shape == (0, 4)


def test_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[1.0, -2.0, 21.0, 18.0]])  # six pixels right, two up, twice as wide
    expected = torch.tensor([[0.6, -0.1, 0.6931472, 0.0]])
    torch.testing.assert_close(BoxCoder().encode(box, anchor), expected)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    torch.testing.assert_close(BoxCoder((10.0, 10.0, 5.0, 5.0)).encode(box, anchor), expected * weights)
    deltas = torch.tensor([[0.1, -0.1, 0.0, 0.0]])  # one pixel right, two up
    torch.testing.assert_close(BoxCoder().decode(deltas, anchor), torch.tensor([[1.0, -2.0, 11.0, 18.0]]))
    grown = BoxCoder().decode(torch.full((1, 4), 2 * MAX_LOG_SCALE), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    torch.testing.assert_close(grown[:, 2] - grown[:, 0], torch.tensor([1000.0]))  # growth is capped
    with pytest.raises(ValueError, match="four weights"):
        BoxCoder((1.0, 1.0, 1.0))


@pytest.mark.parametrize(("given", "kept"), [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")])
def test_half_precision_rises_and_nothing_falls(given, kept) -> None:
    given, kept = getattr(torch, given), getattr(torch, kept)
    assert at_least_single(torch.ones(2, dtype=given)).dtype == kept
    deltas, anchors = torch.zeros(1, 4, dtype=given), torch.tensor([[0.0, 0, 1000 + 1e-9, 1]], dtype=torch.float64)
    decoded = BoxCoder().decode(deltas, anchors)
    assert decoded.dtype == smooth_l1(deltas, anchors, 1.0, torch.ones(1)).dtype == kept
    assert (decoded[0, 2] == 1000) == (kept == torch.float32)
