"""Mirrors detection/model/keypoint_stage.py and heat_maps.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss, keypoints_to_heatmap

from detection.model.heat_maps import cells_of, find_peaks
from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.pooler import RegionPooler
from detection.structures import Target

FEATURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TWO = Target(
    torch.tensor([[3.0, 5, 50, 61], [40, 30, 90, 77]]),
    torch.zeros(2, dtype=torch.int64),
    torch.zeros(2, dtype=torch.bool),
    keypoints=torch.tensor([[[10.0, 20, 2], [49, 60, 1]], [[60, 40, 2], [0, 0, 0]]]),
)
FIRST = (1.5, 2.5, 55, 62)


def make_stage(*, flat: bool = False) -> KeypointStage:
    """Maps of 8 x 8 cells of random logits; ``flat``: each the same in all cells."""
    torch.manual_seed(0)
    head = KeypointHead(3, num_keypoints=2, convs=0 if flat else 1, channels=4)
    if flat:
        nn.init.zeros_(head.maps.weight)
    return KeypointStage(RegionPooler([16], 2, kind="roi_align"), head)


@pytest.fixture
def loss_of(losses_of):
    def loss(stage: KeypointStage, target: Target, boxes: Any, objects: Any, feature: Tensor = FEATURES[:1]) -> Tensor:
        losses = losses_of(stage, feature, [target], [boxes], [objects])
        assert list(losses) == ["keypoint"]
        return losses["keypoint"]

    return loss


def test_the_loss_is_that_of_torchvision_over_cells(loss_of) -> None:
    assert loss_of(make_stage(flat=True), TWO, [FIRST], [0]).item() == pytest.approx(math.log(64), rel=1e-6)
    # The last region leaves one of the keypoints of its object out, and that of another object is not labelled.
    stage, regions, objects = make_stage(), [FIRST, (35, 20, 95, 80), (5, 10, 40, 61)], [0, 1, 0]
    boxes, points = torch.tensor(regions), torch.zeros(2, 2, 3) if TWO.keypoints is None else TWO.keypoints
    logits = stage.head(stage.pooler([FEATURES[:1]], boxes, torch.zeros(3, dtype=torch.int64)))
    wanted = keypointrcnn_loss(logits, [boxes], [points], [torch.tensor(objects)])
    assert wanted > 0.1
    torch.testing.assert_close(loss_of(stage, TWO, regions, objects), wanted)
    # A region without a labelled keypoint has no part.
    unlabelled = loss_of(stage, TWO, [FIRST, (70, 60, 95, 80)], [0, 1])
    torch.testing.assert_close(unlabelled, loss_of(stage, TWO, [FIRST], [0]))


def test_nothing_to_learn_gives_zero_with_a_gradient_and_other_keypoints_are_refused(loss_of) -> None:
    feature = FEATURES[:1].clone().requires_grad_()
    loss = loss_of(make_stage(), TWO[:0], [], [], feature)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, feature)[0].any()
    with pytest.raises(ValueError, match="training keypoints needs a data set with keypoints"):
        loss_of(make_stage(), replace(TWO, keypoints=None), [(0, 0, 9, 9)], [0])
    with pytest.raises(ValueError, match=r"3 keypoints, the detector 2; .*keypoint\.names"):
        loss_of(make_stage(), replace(TWO, keypoints=torch.zeros(2, 3, 3)), [(0, 0, 9, 9)], [0])


def test_detections_get_the_keypoints_of_their_own_image(make_found) -> None:
    boxes = [[[0.0, 0, 40, 40], [20, 20, 60, 60]], [[0.0, 0, 40, 40], [0, 0, 0, 0]]]
    found: list[Any] = (stage := make_stage())([FEATURES], make_found(boxes, labels := [[0, 0], [0, -1]])).ragged()
    for row, image in enumerate(found):
        (expected,) = stage([FEATURES[row, None]], make_found([boxes[row]], [labels[row]])).ragged()
        torch.testing.assert_close(image.keypoints, expected.keypoints)
    assert [image.keypoints.shape for image in found] == [(2, 2, 3), (1, 2, 3)]


def test_the_head_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours = KeypointHead(6, num_keypoints=3, convs=2, channels=5)
    theirs = nn.Sequential(KeypointRCNNHeads(6, (5, 5)), KeypointRCNNPredictor(5, 3))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    regions = torch.randn(4, 6, 14, 14)
    torch.testing.assert_close(ours(regions), theirs(regions))
    assert ours(regions).shape == (4, 3, 56, 56)


# Heat maps

SIDE = 56


def smooth_maps(regions: int, keypoints: int, *, seed: int) -> Tensor:
    """Random logits, bilinear between every second cell, as the head gives them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 3 * torch.randn(regions, keypoints, SIDE // 2, SIDE // 2, generator=generator, dtype=torch.float64)
    return F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)


def test_cells_are_torchvisions(random_boxes) -> None:
    boxes = random_boxes(40, least=5, most=200, seed=1)
    shares = 1.4 * torch.rand(40, 9, 2, generator=torch.Generator().manual_seed(0)) - 0.2
    places = boxes[:, None, :2] + shares * (boxes[:, 2:] - boxes[:, :2]).unsqueeze(1)
    places[:, 0], places[:, 1] = boxes[:, :2], boxes[:, 2:]  # on both borders
    keypoints = torch.cat([places, torch.arange(9).remainder(3).expand(40, 9)[..., None].float()], dim=2)
    expected, valid = keypoints_to_heatmap(keypoints, boxes, SIDE)
    cells, learnt = cells_of(keypoints, boxes, SIDE)
    assert learnt.equal(valid.bool())
    assert cells[learnt].equal(expected[learnt])
    assert 0 < int(learnt.sum()) < 40 * 6
    assert cells_of(keypoints[:, 1:2, :] + torch.tensor([0, 0, 2]), boxes, SIDE)[0].eq(SIDE**2 - 1).all()


@pytest.mark.parametrize(("least", "most"), [(0.3, 30), (30, 112), (112, 300), (300, 1333)])
def test_peaks_are_torchvisions(least, most, random_boxes) -> None:
    maps, boxes = smooth_maps(8, 6, seed=0), random_boxes(8, least=least, most=most, seed=1).double()
    points, logits = heatmaps_to_keypoints(maps, boxes)
    found = find_peaks(maps, boxes, longest=1344)
    torch.testing.assert_close(found[..., :2], points[..., :2].double(), rtol=0, atol=1e-3)  # theirs are in float32
    expected = (logits.double() - maps.flatten(2).logsumexp(dim=2)).exp()
    torch.testing.assert_close(found[..., 2], expected, rtol=1e-4, atol=0)


def test_peaks_of_float32_are_within_a_pixel_and_of_a_single_cell_in_its_middle(random_boxes) -> None:
    maps, boxes = smooth_maps(20, 5, seed=2).float(), random_boxes(20, least=20, most=500, seed=3)
    points, _ = heatmaps_to_keypoints(maps, boxes)
    assert (find_peaks(maps, boxes, longest=512)[..., :2] - points[..., :2]).abs().max() <= 1
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 2] = 5.0
    x, y, score = find_peaks(maps, torch.tensor([[10.0, 20.0, 14.0, 24.0]]), longest=4)[0, 0].tolist()
    assert (x, y) == (10 + 2.5, 20 + 1.5)  # the middle of the cell
    assert score == pytest.approx(math.exp(5) / (math.exp(5) + 15), rel=1e-6)
    assert find_peaks(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4), longest=100).shape == (0, 3, 3)
