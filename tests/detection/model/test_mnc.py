"""Mirrors detection/model/mnc.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.build import build_detector
from detection.config import detection as settings
from detection.model.box_stage import ScoredBoxes
from detection.model.mnc import MNC, vote
from detection.padded import Found, Regions, Targets
from detection.structures import ImageBatch

CONFIG = settings.DetectionConfig(
    architecture="mnc",
    backbone=settings.DetectorBackboneConfig(name="resnet18", weights=None, norm="gn", roi_size=2),
    anchors=settings.AnchorConfig(sizes=(16.0, 32.0)),
    rpn=settings.RPNConfig(channels=16, allow_outside=True, post_nms_train=30, post_nms_test=20, min_size=2.0),
    box=settings.BoxConfig(pool="roi_align", samples_per_image=16),
    mnc=settings.MNCConfig(pool_size=4, mask_side=6, mask_channels=8),
)
PIXELS = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = ImageBatch.from_images(list(PIXELS), seeds=range(2))


def make_model(**mnc: Any) -> MNC:
    torch.manual_seed(0)
    model = build_detector(replace(CONFIG, mnc=replace(CONFIG.mnc, **mnc)), 3, pretrained=False)
    assert isinstance(model, MNC)
    nn.init.normal_(model.box_stage.predictor.classes.weight, std=0.5)
    nn.init.normal_(model.box_stage.layers.mask.weight, std=0.5)
    return model


@pytest.fixture
def targets(make_masked) -> Targets:
    first = make_masked((8, 8, 40, 56), (50, 10, 90, 50), labels=[1, 2], size=(64, 96))
    return Targets.pad([first, make_masked(size=(64, 96))])


def regions(boxes: Tensor, valid: Any) -> Regions:
    return Regions(boxes=boxes, valid=torch.tensor(valid), scores=torch.tensor(valid).float())


def test_each_look_has_losses_and_every_layer_learns(targets) -> None:
    model = make_model().train()
    losses = model(IMAGES, targets)
    stages = [f"{name}_{look}" for look in (1, 2) for name in ("box_class", "box_regression", "mask")]
    assert sorted(losses) == sorted(["rpn_objectness", "rpn_box", *stages])
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(p.grad is not None and p.grad.any() for p in model.box_stage.parameters())


def test_the_loss_of_masks_by_hand(targets) -> None:
    """Constant logits of 1; object 0 fills its boxes' cells, as all positives are the objects themselves."""
    model = make_model(looks=1)
    nn.init.zeros_(model.box_stage.layers.mask.weight)
    nn.init.ones_(model.box_stage.layers.mask.bias)
    losses = model(IMAGES, targets, regions(torch.zeros(2, 1, 4), [[False]] * 2))
    assert losses["mask"].item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-5)


def test_categories_see_regions_under_their_masks() -> None:
    """A region without a mask is all zeros for the masked layers; one wholly inside is what the others see."""
    stage: Any = make_model().box_stage.eval()
    pairs = zip(stage.head.parameters(), stage.mask_head.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)  # both begin with the backbone's weights
    stage.mask_head, seen, feature = stage.head, list[Tensor](), [torch.rand(1, 256, 4, 6)]
    stage.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    nn.init.zeros_(stage.layers.mask.weight)
    for bias in (40.0, -40.0):
        nn.init.constant_(stage.layers.mask.bias, bias)
        stage._look(feature, torch.tensor([[[0.0, 0, 40, 40]]]))
    torch.testing.assert_close(*seen[0][0, 0].chunk(2))
    torch.testing.assert_close(seen[1][0, 0].chunk(2)[1], stage.head(torch.zeros(1, 256, 2, 2))[0])


@torch.no_grad()
def test_a_second_look_is_at_the_moved_boxes_of_the_best_class() -> None:
    stage = make_model().box_stage.eval()
    feature, sizes = [torch.rand(1, 256, 4, 6)], torch.tensor([[64, 96]])
    proposals = regions(torch.tensor([[[4.0, 4, 40, 40], [0, 0, 0, 0]]]), [[True, False]])
    scored, masks = stage.instances(feature, proposals, sizes)
    assert (scored.boxes.shape, masks.shape) == ((1, 4, 1, 4), (1, 4, 6, 6))
    assert scored.valid.tolist() == [[True, False, True, False]]
    assert torch.equal(scored.boxes[:, :2, 0], proposals.boxes)
    logits, deltas, _ = stage._look(feature, proposals.boxes)
    best = int(logits[0, 0, :-1].argmax())
    torch.testing.assert_close(scored.boxes[0, 2, 0], stage.coder.decode(deltas[0, 0, best], proposals.boxes[0, 0]))
    again, _ = stage.instances(feature, regions(scored.boxes[:, 2:3, 0], [[True]]), sizes)
    torch.testing.assert_close(again.scores[:, :1], scored.scores[:, 2:3])


def voted(scores: Any, boxes: Any, masks: Tensor, iou: float = 0.5, valid: Any = True) -> Tensor:
    """The mask of a detection of class 1 at (0, 0, 20, 20), by regions with ``masks`` (R, T, T)."""
    one, rows = torch.ones(1, 1), torch.tensor([boxes])
    found = Found(torch.tensor([[[0.0, 0, 20, 20]]]), one.bool(), one, labels=one.long())
    counts = torch.tensor(valid).expand(1, len(boxes))
    return vote(found, ScoredBoxes(torch.tensor([scores]), rows[:, :, None], counts), masks[None], iou)[0, 0]


def test_masks_are_means_weighted_by_the_scores_of_the_class_that_lie_where_their_boxes_are() -> None:
    """Three regions on the detection's box and one elsewhere; class 1 has the scores 0.6, 0.2, 0 and 0.9."""
    boxes = [[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20], [30, 30, 50, 50]]
    scores = [[0.0, 0.6], [0.9, 0.2], [1.0, 0.0], [0.1, 0.9]]
    masks = torch.tensor([1.0, 0.5, 0.25, 0.75])[:, None, None].expand(4, 2, 2)
    torch.testing.assert_close(voted(scores, boxes, masks), torch.full((2, 2), (0.6 * 1 + 0.2 * 0.5) / 0.8))
    without = voted(scores, boxes, masks, valid=[True, False, True, True])
    torch.testing.assert_close(without, torch.ones(2, 2))
    # A voter 5 pixels, a quarter of the detection's 4 cells, to the right; its left half is set.
    boxes, scores, masks = [[0.0, 0, 20, 20], [5, 0, 25, 20]], [[0.0, 0.5], [0.0, 0.5]], torch.zeros(2, 4, 4)
    masks[1, :, :2] = 1.0
    torch.testing.assert_close(voted(scores, boxes, masks)[1], torch.tensor([0.0, 0.5, 0.5, 0.0]))
    torch.testing.assert_close(voted(scores, boxes, masks, 1.0), torch.zeros(4, 4))


@torch.no_grad()
def test_without_votes_masks_are_those_of_the_regions() -> None:
    model = make_model(vote_iou=None).eval()
    found: Any = model.detect(IMAGES)
    features = model.features(IMAGES)
    proposals = model.rpn(features, IMAGES.sizes, model.normalize.padded(IMAGES))
    scored, masks = model.box_stage.instances(features, proposals, IMAGES.sizes)
    assert found.valid[0].any()
    for row in range(int(found.valid[0].sum())):
        place = int((scored.boxes[0, :, 0] - found.boxes[0, row]).abs().sum(dim=1).argmin())
        torch.testing.assert_close(found.masks[0, row], masks[0, place], rtol=0, atol=1e-4)
    first: Any = model(IMAGES)[0]
    assert len(first.masks) == len(first.boxes)


def test_what_it_lacks_is_refused(targets) -> None:
    with pytest.raises(ValueError, match="training masks needs a data set with masks"):
        make_model()(IMAGES, replace(targets, masks=None))
    with pytest.raises(ValueError, match=r"mnc\.pool_size is 5, .* a multiple of 2"):
        make_model(pool_size=5)
    with pytest.raises(ValueError, match=r"set box\.loss to smooth_l1, box\.context to false"):
        replace(CONFIG, box=replace(CONFIG.box, context=True))
