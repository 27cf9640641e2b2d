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
from detection.padded import Found, Targets
from detection.structures import Target

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
    rows, positive = torch.tensor([*objects, 0]), torch.tensor([True] * len(objects) + [False])
    targets = Targets.pad([target])
    return RegionSample(
        boxes=torch.tensor([*boxes, (0, 0, 9, 9)], dtype=torch.float32)[None],
        labels=torch.where(positive, targets.labels[0, rows], 2)[None],
        objects=rows[None],
        goals=targets.boxes[:, rows],
        positive=positive[None],
        valid=torch.ones(1, len(rows), dtype=torch.bool),
    )


def loss_of(
    stage: MaskStage, sample: RegionSample, target: Target, features: Sequence[Tensor] = FEATURES
) -> dict[str, Tensor]:
    return stage.losses(features, sample, Targets.pad([target]))


def make_found(boxes: Tensor, labels: Sequence[int]) -> Found:
    """Detections of one image, of which some may be padding, with the score 0."""
    rows = torch.tensor([labels], dtype=torch.int64)
    valid = torch.tensor([[label >= 0 for label in labels]], dtype=torch.bool)
    return Found(boxes=boxes[None], valid=valid, scores=valid.float(), labels=rows.clamp(min=0))


def joined(*parts: RegionSample) -> RegionSample:
    """The samples of several images, padded to equally many regions."""
    most = max(part.valid.shape[1] for part in parts)
    fields = ("boxes", "labels", "objects", "goals", "positive", "valid")
    return RegionSample(*(torch.cat([pad_rows(getattr(part, name), most) for part in parts]) for name in fields))


def pad_rows(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(1, count - values.shape[1], *values.shape[2:])], dim=1)


class TestForward:
    """Masks of detections."""

    def test_each_detection_gets_the_mask_of_its_class(self) -> None:
        boxes = torch.tensor([[0.0, 0, 40, 40], [20, 20, 60, 60], [0, 0, 90, 90]])
        with_masks = make_stage()(FEATURES, make_found(boxes, [1, 0, 1]))
        assert with_masks.masks is not None
        assert with_masks.masks.shape == (1, 3, 4, 4)
        torch.testing.assert_close(with_masks.masks[0, :, 0, 0], torch.tensor([0.7, 0.2, 0.7]))
        assert torch.equal(with_masks.boxes[0], boxes)

    def test_masks_are_those_of_their_own_image(self) -> None:
        torch.manual_seed(0)
        stage, features = make_stage(MaskHead(3, num_classes=2, convs=1, channels=4)), torch.rand(2, 3, 8, 8)
        boxes = torch.tensor([[0.0, 0, 40, 40], [20, 20, 60, 60]])
        parts = [make_found(boxes, [1, 0]), make_found(boxes * torch.tensor([[1.0], [0.0]]), [0, -1])]
        both = Found(*(torch.cat([getattr(p, n) for p in parts]) for n in ("boxes", "valid", "scores", "labels")))
        first, second = stage([features], both).ragged()
        for row, (found, part) in enumerate(zip((first, second), parts, strict=True)):
            (alone,) = stage([features[row, None]], part).ragged()
            torch.testing.assert_close(found.masks, alone.masks)
        assert second.masks is not None
        assert len(second.masks) == 1

    def test_no_detections(self) -> None:
        for nothing in (make_found(torch.zeros(0, 4), []), make_found(torch.zeros(1, 4), [-1])):
            (found,) = make_stage()(FEATURES, nothing).ragged()
            assert found.masks is not None
            assert found.masks.shape == (0, 4, 4)

    def test_regions_go_through_a_shared_body_first(self) -> None:
        seen: list[Tensor] = []

        def body(regions: Tensor) -> Tensor:
            seen.append(regions)
            return 2 * regions

        torch.manual_seed(0)
        stage = make_stage(MaskHead(3, num_classes=2, convs=0, channels=4))
        found = make_found(torch.tensor([[0.0, 0, 40, 40]]), [0])
        through = stage(FEATURES, found, body)
        direct = stage([2 * FEATURES[0]], found)
        assert [regions.shape for regions in seen] == [(1, 3, 2, 2)]
        torch.testing.assert_close(through.masks, direct.masks)


class TestLosses:
    """Cross-entropy per pixel."""

    def test_by_hand(self) -> None:
        # The first region is wholly inside its object of class 1, the second wholly outside the mask of class 0.
        target = make_target((0, 0, 64, 64), (64, 64, 128, 128), labels=[1, 0])
        sample = make_sample(target, [(8, 8, 56, 56), (8, 72, 56, 120)], [0, 1])
        losses = loss_of(make_stage(), sample, target)
        expected = -(math.log(0.7) + math.log(1 - 0.2)) / 2
        assert losses["mask"].item() == pytest.approx(expected, rel=1e-5)
        assert list(losses) == ["mask"]

    def test_agrees_with_torchvision(self) -> None:
        torch.manual_seed(0)
        stage = make_stage(MaskHead(3, num_classes=2, convs=1, channels=4), "torchvision")
        target = make_target((3, 5, 50, 61), (40, 30, 90, 77), labels=[1, 0])
        sample = make_sample(target, [(1.5, 2.5, 55, 60), (35, 20, 95, 80), (10, 10, 40, 70)], [0, 1, 0])
        positives = sample.boxes[0, :3]
        logits = stage.head(stage.pooler(FEATURES, positives, torch.tensor([0, 0, 0])))
        assert target.masks is not None
        wanted = maskrcnn_loss(logits, [positives], [target.masks.float()], [target.labels], [sample.objects[0, :3]])
        assert loss_of(stage, sample, target)["mask"].item() == pytest.approx(wanted.item(), rel=1e-5)

    def test_targets_have_the_geometry(self) -> None:
        # The mask ends at 67 = 2.79 of 4 cells of 24 pixels: less than half of the third cell's share is left out.
        target = make_target((0, 0, 67, 128), labels=[1])
        sample = make_sample(target, [(0, 8, 96, 104)], [0])
        shares: dict[MaskGeometry, float] = {"exact": 3 / 4, "detectron2": 3 / 4, "torchvision": 67 / 96}
        for geometry, share in shares.items():
            loss = loss_of(make_stage(None, geometry), sample, target)["mask"].item()
            expected = -share * math.log(0.7) - (1 - share) * math.log(1 - 0.7)
            assert loss == pytest.approx(expected, abs=0.02)

    def test_objects_without_a_mask_are_left_out(self) -> None:
        target = make_target((0, 0, 64, 64), (64, 64, 128, 128), labels=[1, 1], empty=[1])
        sample = make_sample(target, [(8, 8, 56, 56), (72, 72, 120, 120)], [0, 1])
        assert loss_of(make_stage(), sample, target)["mask"].item() == pytest.approx(-math.log(0.7))

    def test_no_positives_give_zero_with_a_gradient(self) -> None:
        target = make_target(labels=[])
        feature = FEATURES[0].clone().requires_grad_()
        losses = loss_of(make_stage(), make_sample(target, [], []), target, [feature])
        losses["mask"].backward()
        assert losses["mask"].item() == 0
        assert feature.grad is not None

    def test_images_of_a_batch_give_the_weighted_mean_of_their_own_losses(self) -> None:
        torch.manual_seed(0)
        stage, features = make_stage(MaskHead(3, num_classes=2, convs=1, channels=4)), torch.rand(3, 3, 8, 8)
        targets = [
            make_target((3, 5, 50, 61), (40, 30, 90, 77), (8, 8, 99, 99), labels=[1, 0, 1], empty=[1]),
            make_target(labels=[]),
            make_target((10, 10, 60, 60), labels=[0]),
        ]
        samples = [
            make_sample(targets[0], [(35, 20, 95, 80), (1.5, 2.5, 55, 60), (9, 2, 90, 90)], [1, 0, 2]),
            make_sample(targets[1], [], []),
            make_sample(targets[2], [(12, 12, 70, 50)], [0]),
        ]
        joint = stage.losses([features], joined(*samples), Targets.pad(targets))["mask"].item()
        alone = [
            loss_of(stage, sample, target, [features[row, None]])["mask"].item()
            for row, (sample, target) in enumerate(zip(samples, targets, strict=True))
        ]
        assert joint == pytest.approx((2 * alone[0] + alone[2]) / 3, rel=1e-5)
        assert alone[0] > 0 < alone[2]

    def test_padding_has_a_finite_gradient_of_zero(self) -> None:
        feature = torch.rand(2, 3, 8, 8, requires_grad=True)
        targets = [make_target((0, 0, 64, 64), labels=[1]), make_target(labels=[])]
        samples = [make_sample(targets[0], [(8, 8, 56, 56)], [0]), make_sample(targets[1], [], [])]
        stage = make_stage(MaskHead(3, num_classes=2, convs=1, channels=4))
        stage.losses([feature], joined(*samples), Targets.pad(targets))["mask"].backward()
        assert feature.grad is not None
        assert feature.grad.isfinite().all()
        assert feature.grad[0].any()
        assert not feature.grad[1].any()

    def test_a_data_set_without_masks_is_refused(self) -> None:
        target = Target(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([False]))
        with pytest.raises(ValueError, match="training masks needs a data set with masks"):
            loss_of(make_stage(), make_sample(target, [(0, 0, 9, 9)], [0]), target)


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
