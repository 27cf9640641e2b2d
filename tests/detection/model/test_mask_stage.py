"""Mirrors detection/model/mask_stage.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_loss

from detection.mask_geometry import MaskGeometry
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.pooler import RegionPooler
from detection.padded import Found

FEATURES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make_stage(*, fixed: bool = False, geometry: MaskGeometry = "exact", convs: int = 1) -> MaskStage:
    """Random layers; or, fixed, the probability 0.2 of class 0 and 0.7 of class 1 in every pixel."""
    torch.manual_seed(0)
    head = MaskHead(3, num_classes=2, convs=0 if fixed else convs, channels=4)
    if fixed:
        nn.init.zeros_(head.masks.weight)
        head.masks.bias = nn.Parameter(torch.logit(torch.tensor([0.2, 0.7])))
    return MaskStage(RegionPooler([16], 2, kind="roi_align"), head, geometry=geometry)


def masks_of(stage: MaskStage, features: Tensor, found: Found, *body: Any) -> list[Any]:
    return [image.masks for image in stage([features], found, *body).ragged()]


FIRST, SECOND, ALL = [0.0, 0, 40, 40], [20.0, 20, 60, 60], [0.0, 0, 90, 90]


def test_each_detection_gets_the_mask_of_its_class_and_image_through_a_shared_body_too(make_found) -> None:
    (masks,) = masks_of(make_stage(fixed=True), FEATURES[:1], make_found([[FIRST, SECOND, ALL]], [[1, 0, 1]]))
    torch.testing.assert_close(masks, torch.tensor([0.7, 0.2, 0.7])[:, None, None].expand(3, 4, 4))
    images = [([[FIRST, SECOND]], [[1, 0]]), ([[SECOND, [0] * 4]], [[0, -1]])]
    both = make_found([boxes[0] for boxes, _ in images], [labels[0] for _, labels in images])
    joint = masks_of(stage := make_stage(), FEATURES[:2], both)
    for row, image in enumerate(images):
        torch.testing.assert_close(joint[row], *masks_of(stage, FEATURES[row, None], make_found(*image)))
    assert [len(masks) for masks in joint] == [2, 1]
    for nothing in (make_found([[]], [[]]), make_found([[[0] * 4]], [[-1]])):
        assert masks_of(stage, FEATURES[:1], nothing)[0].shape == (0, 4, 4)
    stage, found, seen = make_stage(convs=0), make_found([[FIRST]], [[0]]), list[Tensor]()
    (through,) = masks_of(stage, FEATURES[:1], found, lambda regions: seen.append(regions) or 2 * regions)
    assert [regions.shape for regions in seen] == [(1, 3, 2, 2)]
    torch.testing.assert_close(through, *masks_of(stage, 2 * FEATURES[:1], found))


class TestLosses:
    def test_by_hand_and_a_data_set_without_masks_is_refused(self, losses_of, make_masked, make_target) -> None:
        # The first region is wholly inside its object of class 1, the second wholly outside the mask of class 0; an
        # object without a mask is left out.
        target = make_masked((0, 0, 64, 64), (64, 64, 128, 128), (9, 9, 60, 60), labels=[1, 0, 1], empty=[2])
        regions = [(8, 8, 56, 56), (8, 72, 56, 120), (9, 9, 60, 60)]
        losses = losses_of(make_stage(fixed=True), FEATURES[:1], [target], [regions], [[0, 1, 2]])
        assert list(losses) == ["mask"]
        assert losses["mask"].item() == pytest.approx(-(math.log(0.7) + math.log(1 - 0.2)) / 2, rel=1e-5)
        with pytest.raises(ValueError, match="training masks needs a data set with masks"):
            losses_of(make_stage(), FEATURES[:1], [make_target([[0, 0, 9, 9]])], [[(0, 0, 9, 9)]], [[0]])

    def test_agrees_with_torchvision(self, losses_of, make_masked) -> None:
        stage, regions = make_stage(geometry="torchvision"), [(1.5, 2.5, 55, 60), (35, 20, 95, 80), (10, 10, 40, 70)]
        target, boxes = make_masked((3, 5, 50, 61), (40, 30, 90, 77), labels=[1, 0]), torch.tensor(regions)
        logits = stage.head(stage.pooler([FEATURES[:1]], boxes, torch.tensor([0, 0, 0])))
        wanted = maskrcnn_loss(logits, [boxes], [target.masks.float()], [target.labels], [torch.tensor([0, 1, 0])])
        losses = losses_of(stage, FEATURES[:1], [target], [regions], [[0, 1, 0]])
        assert losses["mask"].item() == pytest.approx(wanted.item(), rel=1e-5)

    # The mask ends at 67 = 2.79 of 4 cells of 24 pixels: less than half of the third cell's share is left out.
    @pytest.mark.parametrize(("geometry", "share"), [("exact", 3 / 4), ("detectron2", 3 / 4), ("torchvision", 67 / 96)])
    def test_targets_have_the_geometry(self, geometry, share, losses_of, make_masked) -> None:
        target, stage = make_masked((0, 0, 67, 128), labels=[1]), make_stage(fixed=True, geometry=geometry)
        expected = -share * math.log(0.7) - (1 - share) * math.log(1 - 0.7)
        losses = losses_of(stage, FEATURES[:1], [target], [[(0, 8, 96, 104)]], [[0]])
        assert losses["mask"].item() == pytest.approx(expected, abs=0.02)

    def test_images_of_a_batch_give_the_weighted_mean_of_their_own_losses(self, losses_of, make_masked) -> None:
        stage, feature = make_stage(), FEATURES.clone().requires_grad_()
        first = make_masked((3, 5, 50, 61), (40, 30, 90, 77), (8, 8, 99, 99), labels=[1, 0, 1], empty=[1])
        targets = [first, make_masked(), make_masked((10, 10, 60, 60), labels=[0])]
        boxes = [[(35, 20, 95, 80), (1.5, 2.5, 55, 60), (9, 2, 90, 90)], [], [(12, 12, 70, 50)]]
        objects = [[1, 0, 2], [], [0]]
        joint = losses_of(stage, feature, targets, boxes, objects)["mask"]
        each = zip(FEATURES.split(1), *([[x] for x in part] for part in (targets, boxes, objects)), strict=True)
        alone = [losses_of(stage, *own)["mask"].item() for own in each]
        assert joint.item() == pytest.approx((2 * alone[0] + alone[2]) / 3, rel=1e-5)
        assert alone[1] == 0 < min(alone[0], alone[2])
        (gradient,) = torch.autograd.grad(joint, feature)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).any(dim=1).tolist() == [True, False, True]
        nothing = losses_of(stage, feature[:1], [make_masked()], [[]], [[]])["mask"]
        assert not torch.autograd.grad(nothing, feature)[0].any()


def test_the_head_is_torchvisions_and_doubles_the_side_of_regions() -> None:
    torch.manual_seed(0)
    ours = MaskHead(6, num_classes=3, convs=2, channels=5)
    theirs = nn.Sequential(MaskRCNNHeads(6, [5, 5], 1), MaskRCNNPredictor(5, 5, 3))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    regions = torch.randn(4, 6, 7, 7)
    torch.testing.assert_close(ours(regions), theirs(regions))
    assert ours(regions).shape == (4, 3, 14, 14)
