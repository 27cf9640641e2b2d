"""Mirrors detection/model/keypoint_stage.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.pooler import RegionPooler
from detection.padded import Found, Targets
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
def loss_of(make_sample):
    def loss(stage: KeypointStage, target: Target, boxes: Any, objects: Any, feature: Tensor = FEATURES[:1]) -> Tensor:
        targets = Targets.pad([target])
        losses = stage.losses([feature], make_sample(targets, [boxes], [objects], background=1), targets)
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


def test_nothing_to_learn_gives_zero_with_a_gradient(loss_of) -> None:
    feature = FEATURES[:1].clone().requires_grad_()
    loss = loss_of(make_stage(), TWO[:0], [], [], feature)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, feature)[0].any()


def test_other_keypoints_are_refused(loss_of) -> None:
    with pytest.raises(ValueError, match="training keypoints needs a data set with keypoints"):
        loss_of(make_stage(), replace(TWO, keypoints=None), [(0, 0, 9, 9)], [0])
    with pytest.raises(ValueError, match=r"3 keypoints, the detector 2; .*keypoint\.names"):
        loss_of(make_stage(), replace(TWO, keypoints=torch.zeros(2, 3, 3)), [(0, 0, 9, 9)], [0])


def test_detections_get_the_keypoints_of_their_own_image() -> None:
    boxes = torch.tensor([[[0.0, 0, 40, 40], [20, 20, 60, 60]], [[0.0, 0, 40, 40], [0, 0, 0, 0]]])
    valid, labels = torch.tensor([[True, True], [True, False]]), torch.zeros(2, 2, dtype=torch.int64)
    found: list[Any] = (stage := make_stage())([FEATURES], Found(boxes, valid, valid.float(), labels)).ragged()
    for row, image in enumerate(found):
        alone = Found(*(part[row, None] for part in (boxes, valid, valid.float(), labels)))
        (expected,) = stage([FEATURES[row, None]], alone).ragged()
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
