"""Mirrors detection/model/keypoint_stage.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from detection.model.box_stage import RegionSample
from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.pooler import RegionPooler
from detection.padded import Found, Targets
from detection.structures import Target

FEATURES = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
POINTS = 2


def make_stage(*, flat: bool = False) -> KeypointStage:
    """Maps of 8 x 8 cells of random logits; ``flat``: each the same in all cells."""
    torch.manual_seed(0)
    head = KeypointHead(3, num_keypoints=POINTS, convs=0 if flat else 1, channels=4)
    if flat:
        nn.init.zeros_(head.maps.weight)
    return KeypointStage(RegionPooler([16], 2, kind="roi_align"), head)


def make_target(*boxes: Sequence[int], points: Sequence[Sequence[Sequence[float]]]) -> Target:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return Target(
        rows,
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, dtype=torch.bool),
        keypoints=torch.tensor(points, dtype=torch.float32).reshape(count, POINTS, 3),
    )


def make_sample(target: Target, boxes: Sequence[Sequence[float]], objects: Sequence[int]) -> RegionSample:
    """Positives, then one region of the background and one of padding, which is empty."""
    rows = torch.tensor([*objects, 0, 0])
    positive = torch.arange(len(rows)) < len(objects)
    targets = Targets.pad([target])
    return RegionSample(
        boxes=torch.tensor([*boxes, (0, 0, 9, 9), (0, 0, 0, 0)], dtype=torch.float32)[None],
        labels=torch.where(positive, targets.labels[0, rows], 1)[None],
        objects=rows[None],
        goals=targets.boxes[:, rows],
        positive=positive[None],
        valid=(torch.arange(len(rows)) <= len(objects))[None],
    )


def loss_of(
    stage: KeypointStage, sample: RegionSample, target: Target, features: Sequence[Tensor] = FEATURES
) -> Tensor:
    losses = stage.losses(features, sample, Targets.pad([target]))
    assert list(losses) == ["keypoint"]
    return losses["keypoint"]


TWO = make_target(
    (3, 5, 50, 61),
    (40, 30, 90, 77),
    points=[[(10, 20, 2), (49, 60, 1)], [(60, 40, 2), (0, 0, 0)]],
)


class TestLosses:
    """Cross-entropy over the cells."""

    def test_flat_maps_lose_the_logarithm_of_the_cells(self) -> None:
        sample = make_sample(TWO, [(1.5, 2.5, 55, 62)], [0])
        assert loss_of(make_stage(flat=True), sample, TWO).item() == pytest.approx(math.log(64), rel=1e-6)

    def test_agrees_with_torchvision(self) -> None:
        # The last region leaves one of the keypoints of its object out, and that of another object is not labelled.
        stage = make_stage()
        sample = make_sample(TWO, [(1.5, 2.5, 55, 62), (35, 20, 95, 80), (5, 10, 40, 61)], [0, 1, 0])
        positives, objects = sample.boxes[0, :3], sample.objects[0, :3]
        logits = stage.head(stage.pooler(FEATURES, positives, torch.zeros(3, dtype=torch.int64)))
        assert TWO.keypoints is not None
        wanted = keypointrcnn_loss(logits, [positives], [TWO.keypoints], [objects])
        assert wanted > 0.1
        torch.testing.assert_close(loss_of(stage, sample, TWO), wanted)

    def test_a_region_without_a_labelled_keypoint_has_no_part(self) -> None:
        stage, first = make_stage(), [(1.5, 2.5, 55, 62)]
        alone = loss_of(stage, make_sample(TWO, first, [0]), TWO)
        unlabelled = make_sample(TWO, [*first, (70, 60, 95, 80)], [0, 1])
        torch.testing.assert_close(loss_of(stage, unlabelled, TWO), alone)

    def test_nothing_to_learn_gives_zero_with_a_gradient(self) -> None:
        nothing = make_target(points=[])
        feature = FEATURES[0].clone().requires_grad_()
        loss = loss_of(make_stage(), make_sample(nothing, [], []), nothing, [feature])
        loss.backward()
        assert loss.item() == 0
        assert feature.grad is not None
        assert not feature.grad.any()

    def test_other_keypoints_are_refused(self) -> None:
        plain = Target(TWO.boxes, TWO.labels, TWO.ignore)
        with pytest.raises(ValueError, match="training keypoints needs a data set with keypoints"):
            loss_of(make_stage(), make_sample(plain, [(0, 0, 9, 9)], [0]), plain)
        assert TWO.keypoints is not None
        three = Target(TWO.boxes, TWO.labels, TWO.ignore, keypoints=TWO.keypoints[:, [0, 1, 1]])
        with pytest.raises(ValueError, match=r"3 keypoints, the detector 2; .*keypoint\.names"):
            loss_of(make_stage(), make_sample(three, [(0, 0, 9, 9)], [0]), three)


def test_detections_get_the_keypoints_of_their_own_image() -> None:
    stage, features = make_stage(), torch.rand(2, 3, 8, 8)
    boxes = torch.tensor([[[0.0, 0, 40, 40], [20, 20, 60, 60]], [[0.0, 0, 40, 40], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True], [True, False]])
    found = stage([features], Found(boxes, valid, valid.float(), torch.zeros(2, 2, dtype=torch.int64)))
    first, second = found.ragged()
    for row, image in enumerate((first, second)):
        alone = Found(
            boxes[row, None], valid[row, None], valid[row, None].float(), torch.zeros(1, 2, dtype=torch.int64)
        )
        (expected,) = stage([features[row, None]], alone).ragged()
        torch.testing.assert_close(image.keypoints, expected.keypoints)
    assert second.keypoints is not None
    assert second.keypoints.shape == (1, POINTS, 3)


def test_the_head_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours = KeypointHead(6, num_keypoints=3, convs=2, channels=5)
    theirs = nn.Sequential(KeypointRCNNHeads(6, (5, 5)), KeypointRCNNPredictor(5, 3))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    regions = torch.randn(4, 6, 14, 14)
    torch.testing.assert_close(ours(regions), theirs(regions))
    assert ours(regions).shape == (4, 3, 56, 56)
