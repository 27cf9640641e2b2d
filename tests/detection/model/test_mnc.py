"""Mirrors detection/model/mnc.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    MNCConfig,
    RPNConfig,
)
from detection.model.box_stage import ScoredBoxes
from detection.model.mnc import MNC, MaskedStage, vote
from detection.padded import Found, Regions, Targets
from detection.structures import ImageBatch, Target

CLASSES = 3
CONFIG = DetectionConfig(
    architecture="mnc",
    backbone=DetectorBackboneConfig(name="resnet18", weights=None, norm="gn", roi_size=2),
    anchors=AnchorConfig(sizes=(16.0, 32.0)),
    rpn=RPNConfig(channels=16, allow_outside=True, post_nms_train=30, post_nms_test=20, min_size=2.0),
    box=BoxConfig(pool="roi_align", samples_per_image=16),
    mnc=MNCConfig(pool_size=4, mask_side=6, mask_channels=8),
)


def make_model(config: DetectionConfig = CONFIG) -> MNC:
    torch.manual_seed(0)
    model = build_detector(config, CLASSES, pretrained=False)
    assert isinstance(model, MNC)
    nn.init.normal_(model.box_stage.predictor.classes.weight, std=0.5)
    nn.init.normal_(model.box_stage.layers.mask.weight, std=0.5)
    return model


def images() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8)
    return ImageBatch.from_images(list(pixels), seeds=range(2))


def targets(*, masks: bool = True) -> Targets:
    boxes = torch.tensor([[8.0, 8, 40, 56], [50, 10, 90, 50]])
    drawn = torch.zeros(2, 64, 96, dtype=torch.bool)
    drawn[0, 8:56, 8:40] = True
    drawn[1, 10:50, 50:90] = True
    target = Target(boxes, torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool), drawn if masks else None)
    empty = torch.zeros(0, 64, 96, dtype=torch.bool)
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    return Targets.pad([target, replace(none, masks=empty) if masks else none])


def regions(boxes: Tensor, valid: Tensor) -> Regions:
    return Regions(boxes=boxes, valid=valid, scores=valid.float())


def test_each_look_has_losses_and_every_layer_learns() -> None:
    model = make_model().train()
    losses = model(images(), targets())
    stages = [f"{name}_{look}" for look in (1, 2) for name in ("box_class", "box_regression", "mask")]
    assert sorted(losses) == sorted(["rpn_objectness", "rpn_box", *stages])
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(p.grad is not None and p.grad.any() for p in model.box_stage.parameters())
    three = make_model(replace(CONFIG, mnc=replace(CONFIG.mnc, looks=1)))
    assert {"box_class", "box_regression", "mask"} <= three(images(), targets()).keys()


def test_the_loss_of_masks_by_hand() -> None:
    """Constant logits of 1; object 0 fills its boxes' cells, as all positives are the objects themselves."""
    model = make_model(replace(CONFIG, mnc=replace(CONFIG.mnc, looks=1)))
    nn.init.zeros_(model.box_stage.layers.mask.weight)
    nn.init.ones_(model.box_stage.layers.mask.bias)
    nothing = regions(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool))
    losses = model(images(), targets(), nothing)
    assert losses["mask"].item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-5)


def test_categories_see_regions_under_their_masks() -> None:
    """A region without a mask is all zeros for the masked layers; one wholly inside is what the others see."""
    stage = make_model().box_stage.eval()
    stage.mask_head = stage.head
    seen: list[Tensor] = []
    stage.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    feature = [torch.rand(1, 256, 4, 6)]
    nn.init.zeros_(stage.layers.mask.weight)
    for bias in (40.0, -40.0):
        nn.init.constant_(stage.layers.mask.bias, bias)
        stage._look(feature, torch.tensor([[[0.0, 0, 40, 40]]]))
    whole, masked = seen[0][0, 0].chunk(2)
    torch.testing.assert_close(whole, masked)
    nothing = stage.head(torch.zeros(1, 256, 2, 2))[0]
    torch.testing.assert_close(seen[1][0, 0].chunk(2)[1], nothing)


@torch.no_grad()
def test_a_second_look_is_at_the_moved_boxes_of_the_best_class() -> None:
    stage = make_model().box_stage.eval()
    feature, sizes = [torch.rand(1, 256, 4, 6)], torch.tensor([[64, 96]])
    proposals = regions(torch.tensor([[[4.0, 4, 40, 40], [0, 0, 0, 0]]]), torch.tensor([[True, False]]))
    scored, masks = stage.instances(feature, proposals, sizes)
    assert (scored.boxes.shape, masks.shape) == ((1, 4, 1, 4), (1, 4, 6, 6))
    assert scored.valid.tolist() == [[True, False, True, False]]
    assert torch.equal(scored.boxes[:, :2, 0], proposals.boxes)
    logits, deltas, _ = stage._look(feature, proposals.boxes)
    best = int(logits[0, 0, :-1].argmax())
    expected = stage.coder.decode(deltas[0, 0, best], proposals.boxes[0, 0])
    torch.testing.assert_close(scored.boxes[0, 2, 0], expected)
    again, _ = stage.instances(feature, regions(scored.boxes[:, 2:3, 0], torch.tensor([[True]])), sizes)
    torch.testing.assert_close(again.scores[:, :1], scored.scores[:, 2:3])


def found_of(box: list[float]) -> Found:
    one = torch.ones(1, 1)
    return Found(boxes=torch.tensor([[box]]), valid=one.bool(), scores=one, labels=torch.ones(1, 1, dtype=torch.int64))


def test_masks_are_means_weighted_by_the_scores_of_the_class() -> None:
    """Three regions on the detection's box and one elsewhere; class 1 has the scores 0.6, 0.2, 0 and 0.9."""
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20], [30, 30, 50, 50]])
    scores = torch.tensor([[0.0, 0.6], [0.9, 0.2], [1.0, 0.0], [0.1, 0.9]])
    masks = torch.tensor([1.0, 0.5, 0.25, 0.75])[:, None, None].expand(4, 2, 2)
    scored = ScoredBoxes(scores[None], boxes[None, :, None], torch.ones(1, 4, dtype=torch.bool))
    voted = vote(found_of([0.0, 0, 20, 20]), scored, masks[None], 0.5)
    torch.testing.assert_close(voted, torch.full((1, 1, 2, 2), (0.6 * 1 + 0.2 * 0.5) / 0.8))
    scored = replace(scored, valid=torch.tensor([[True, False, True, True]]))
    torch.testing.assert_close(vote(found_of([0.0, 0, 20, 20]), scored, masks[None], 0.5), torch.ones(1, 1, 2, 2))


def test_a_voter_s_mask_lies_where_its_box_is() -> None:
    """The voter is 5 pixels, a quarter of the detection's 4 cells, to the right; its left half is set."""
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 0, 25, 20]])
    masks = torch.zeros(1, 2, 4, 4)
    masks[:, 1, :, :2] = 1.0
    scored = ScoredBoxes(torch.tensor([[[0.0, 0.5], [0.0, 0.5]]]), boxes[None, :, None], torch.ones(1, 2).bool())
    voted = vote(found_of([0.0, 0, 20, 20]), scored, masks, 0.5)
    torch.testing.assert_close(voted[0, 0, 1], torch.tensor([0.0, 0.5, 0.5, 0.0]))
    torch.testing.assert_close(vote(found_of([0.0, 0, 20, 20]), scored, masks, 1.0), torch.zeros(1, 1, 4, 4))


@torch.no_grad()
def test_without_votes_masks_are_those_of_the_regions() -> None:
    model = make_model(replace(CONFIG, mnc=replace(CONFIG.mnc, vote_iou=None))).eval()
    batch = images()
    found = model.detect(batch)
    features = model.features(batch)
    proposals = model.rpn(features, batch.sizes, model.normalize.padded(batch))
    scored, masks = model.box_stage.instances(features, proposals, batch.sizes)
    assert found.masks is not None
    assert found.valid[0].any()
    for row in range(int(found.valid[0].sum())):
        place = int((scored.boxes[0, :, 0] - found.boxes[0, row]).abs().sum(dim=1).argmin())
        torch.testing.assert_close(found.masks[0, row], masks[0, place], rtol=0, atol=1e-4)
    (first, _) = model(batch)
    assert len(first.masks) == len(first.boxes)  # type: ignore[arg-type]


def test_what_it_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="training masks needs a data set with masks"):
        make_model()(images(), targets(masks=False))
    with pytest.raises(ValueError, match=r"mnc\.pool_size is 5, .* a multiple of 2"):
        make_model(replace(CONFIG, mnc=replace(CONFIG.mnc, pool_size=5)))
    with pytest.raises(ValueError, match=r"set box\.loss to smooth_l1, box\.context to false"):
        replace(CONFIG, box=replace(CONFIG.box, context=True))


def test_both_pathways_begin_with_the_backbone_s_weights() -> None:
    stage = make_model().box_stage
    assert isinstance(stage, MaskedStage)
    assert isinstance(stage.mask_head, nn.Module)
    assert isinstance(stage.head, nn.Module)
    pairs = zip(stage.head.parameters(), stage.mask_head.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)
