"""Mirrors detection/model/mask_stage.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_loss

from detection.mask_geometry import MaskGeometry
from detection.model.box_stage import RegionSample
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.pooler import RegionPooler
from detection.structures import Detections, Target

FEATURES = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
PROBABILITIES = (0.2, 0.7)  # of class 0 and class 1, in every pixel


class FixedHead(MaskHead):
    """The same logits in every pixel of every region, one value per class."""

    def __init__(self) -> None:
        super().__init__(3, num_classes=2, convs=0, channels=4)
        nn.init.zeros_(self.masks.weight)
        assert self.masks.bias is not None
        self.masks.bias.data = torch.logit(torch.tensor(PROBABILITIES))


def make_stage(head: MaskHead | None = None, geometry: MaskGeometry = "exact") -> MaskStage:
    return MaskStage(RegionPooler([16], 2, kind="roi_align"), head or FixedHead(), geometry=geometry)


def make_target(*boxes: Sequence[int], labels: Sequence[int], empty: Sequence[int] = ()) -> Target:
    """Objects whose masks fill their boxes, but for those that have none."""
    masks = torch.zeros(len(boxes), 128, 128, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        masks[row, y1:y2, x1:x2] = row not in empty
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(rows, torch.tensor(labels, dtype=torch.int64), torch.zeros(len(boxes), dtype=torch.bool), masks)


def make_sample(target: Target, boxes: Sequence[Sequence[float]], objects: Sequence[int]) -> RegionSample:
    """Positives, then one region of the background."""
    rows = torch.tensor(objects, dtype=torch.int64)
    regions = torch.tensor([*boxes, (0, 0, 9, 9)], dtype=torch.float32)
    labels = torch.cat([target.labels[rows], torch.tensor([2])])
    return RegionSample(regions, labels, rows, target.boxes[rows])


class TestForward:
    """Masks of detections."""

    def test_each_detection_gets_the_mask_of_its_class(self) -> None:
        boxes = torch.tensor([[0.0, 0, 40, 40], [20, 20, 60, 60], [0, 0, 90, 90]])
        found = Detections(boxes, torch.ones(3), torch.tensor([1, 0, 1]))
        (with_masks,) = make_stage()(FEATURES, [found])
        assert with_masks.masks is not None
        assert with_masks.masks.shape == (3, 4, 4)
        torch.testing.assert_close(with_masks.masks[:, 0, 0], torch.tensor([0.7, 0.2, 0.7]))
        assert torch.equal(with_masks.boxes, boxes)

    def test_no_detections(self) -> None:
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        (found,) = make_stage()(FEATURES, [nothing])
        assert found.masks is not None
        assert found.masks.shape == (0, 4, 4)

    def test_regions_go_through_a_shared_body_first(self) -> None:
        seen: list[Tensor] = []

        def body(regions: Tensor) -> Tensor:
            seen.append(regions)
            return 2 * regions

        torch.manual_seed(0)
        stage = make_stage(MaskHead(3, num_classes=2, convs=0, channels=4))
        found = Detections(torch.tensor([[0.0, 0, 40, 40]]), torch.ones(1), torch.tensor([0]))
        (through,) = stage(FEATURES, [found], body)
        (direct,) = stage([2 * FEATURES[0]], [found])
        assert [regions.shape for regions in seen] == [(1, 3, 2, 2)]
        torch.testing.assert_close(through.masks, direct.masks)


class TestLosses:
    """Cross-entropy per pixel."""

    def test_by_hand(self) -> None:
        # The first region is wholly inside its object of class 1, the second wholly outside the mask of class 0.
        target = make_target((0, 0, 64, 64), (64, 64, 128, 128), labels=[1, 0])
        sample = make_sample(target, [(8, 8, 56, 56), (8, 72, 56, 120)], [0, 1])
        losses = make_stage().losses(FEATURES, [sample], [target])
        expected = -(math.log(0.7) + math.log(1 - 0.2)) / 2
        assert losses["mask"].item() == pytest.approx(expected, rel=1e-5)
        assert list(losses) == ["mask"]

    def test_agrees_with_torchvision(self) -> None:
        torch.manual_seed(0)
        stage = make_stage(MaskHead(3, num_classes=2, convs=1, channels=4), "torchvision")
        target = make_target((3, 5, 50, 61), (40, 30, 90, 77), labels=[1, 0])
        sample = make_sample(target, [(1.5, 2.5, 55, 60), (35, 20, 95, 80), (10, 10, 40, 70)], [0, 1, 0])
        positives = sample.boxes[:3]
        logits = stage.head(stage.pooler(FEATURES, [positives]))
        assert target.masks is not None
        wanted = maskrcnn_loss(logits, [positives], [target.masks.float()], [target.labels], [sample.objects])
        assert stage.losses(FEATURES, [sample], [target])["mask"].item() == pytest.approx(wanted.item(), rel=1e-5)

    def test_targets_have_the_geometry(self) -> None:
        # The mask ends at 67 = 2.79 of 4 cells of 24 pixels: less than half of the third cell's share is left out.
        target = make_target((0, 0, 67, 128), labels=[1])
        sample = make_sample(target, [(0, 8, 96, 104)], [0])
        shares: dict[MaskGeometry, float] = {"exact": 3 / 4, "detectron2": 3 / 4, "soft": 67 / 96}
        for geometry, share in shares.items():
            loss = make_stage(None, geometry).losses(FEATURES, [sample], [target])["mask"].item()
            expected = -share * math.log(0.7) - (1 - share) * math.log(1 - 0.7)
            assert loss == pytest.approx(expected, abs=0.02)

    def test_objects_without_a_mask_are_left_out(self) -> None:
        target = make_target((0, 0, 64, 64), (64, 64, 128, 128), labels=[1, 1], empty=[1])
        sample = make_sample(target, [(8, 8, 56, 56), (72, 72, 120, 120)], [0, 1])
        assert make_stage().losses(FEATURES, [sample], [target])["mask"].item() == pytest.approx(-math.log(0.7))

    def test_no_positives_give_zero_with_a_gradient(self) -> None:
        target = make_target(labels=[])
        feature = FEATURES[0].clone().requires_grad_()
        losses = make_stage().losses([feature], [make_sample(target, [], [])], [target])
        losses["mask"].backward()
        assert losses["mask"].item() == 0
        assert feature.grad is not None

    def test_a_data_set_without_masks_is_refused(self) -> None:
        target = Target(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([False]))
        with pytest.raises(ValueError, match="training masks needs a data set with masks"):
            make_stage().losses(FEATURES, [make_sample(target, [(0, 0, 9, 9)], [0])], [target])


class TestHead:
    """The layers."""

    def test_is_torchvisions(self) -> None:
        torch.manual_seed(0)
        ours = MaskHead(6, num_classes=3, convs=2, channels=5)
        theirs = nn.Sequential(MaskRCNNHeads(6, [5, 5], 1), MaskRCNNPredictor(5, 5, 3))
        theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
        regions = torch.randn(4, 6, 7, 7)
        torch.testing.assert_close(ours(regions), theirs(regions))

    def test_masks_are_twice_as_large_as_the_regions(self) -> None:
        assert MaskHead(6, num_classes=3, channels=5)(torch.rand(2, 6, 14, 14)).shape == (2, 3, 28, 28)
