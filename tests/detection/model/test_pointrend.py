"""Mirrors detection/model/pointrend.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.engine.operators import count_operators
from detection.model.box_stage import RegionSample
from detection.model.pointrend import CoarseHead, PointHead, PointSettings, PointStage
from detection.model.select import as_on_gpu
from detection.padded import Found, Targets
from detection.structures import Target

CLASSES, CHANNELS = 3, 4
SMALL = PointSettings(train_points=16, steps=3, test_points=40)


def make_stage(settings: PointSettings = SMALL, *, side: int = 3) -> PointStage:
    torch.manual_seed(0)
    coarse = CoarseHead(CHANNELS, num_classes=CLASSES, pool_size=6, side=side, channels=5, fc_channels=12)
    points = PointHead(CHANNELS, num_classes=CLASSES, channels=8)
    for layer in (coarse.masks, points.masks):
        nn.init.normal_(layer.weight, std=0.5)
    return PointStage(coarse, points, stride=4, settings=settings)


def features(images: int = 2) -> list[Tensor]:
    return [torch.randn(images, CHANNELS, 10, 12, generator=torch.Generator().manual_seed(1))]


def found(images: int = 2) -> Found:
    boxes = torch.tensor([[[4.0, 2, 30, 33], [0, 0, 48, 40], [10, 10, 13, 30]]]).repeat(images, 1, 1)
    boxes = boxes + torch.arange(images)[:, None, None]
    labels = torch.tensor([[0, 2, 1]]).repeat(images, 1)
    valid = torch.ones(images, 3, dtype=torch.bool)
    return Found(boxes=boxes, valid=valid, scores=valid.float(), labels=labels)


def by_definition(stage: PointStage, feature: Tensor, box: Tensor, label: int) -> Tensor:
    """One mask (T, T), drawn from the coarse one on in every step, as the paper says; all classes go along."""

    def at(points: Tensor) -> Tensor:
        """Features (1, C, P) of the image at points (P, 2) of the box."""
        places = box[:2] + points * (box[2:] - box[:2])
        grid = 2 * places / torch.tensor([4.0 * feature.shape[2], 4.0 * feature.shape[1]]) - 1
        return F.grid_sample(feature[None], grid[None, None], align_corners=False)[:, :, 0]

    def centres(side: int) -> Tensor:
        return torch.tensor([[(x + 0.5) / side, (y + 0.5) / side] for y in range(side) for x in range(side)])

    size = stage.coarse.pool_size
    coarse = stage.coarse(at(centres(size)).view(1, CHANNELS, size, size))
    logits = coarse
    for _ in range(stage.settings.steps):
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        side = logits.shape[-1]
        order = logits[0, label].flatten().abs().argsort()[: stage.settings.test_points]
        points = centres(side)[order]
        known = F.grid_sample(coarse, 2 * points[None, None] - 1, align_corners=False)[:, :, 0]
        flat = logits.flatten(2).clone()
        flat[0, :, order] = stage.points(at(points), known)[0]
        logits = flat.view_as(logits)
    return logits[0, label].sigmoid()


@torch.no_grad()
def test_masks_are_those_of_the_definition() -> None:
    stage, maps, given = make_stage(), features(), found()
    masks = stage(maps, given).masks
    assert masks is not None
    assert masks.shape == (2, 3, 24, 24)
    for image in range(2):
        for row in range(3):
            expected = by_definition(stage, maps[0][image], given.boxes[image, row], int(given.labels[image, row]))
            torch.testing.assert_close(masks[image, row], expected, rtol=0, atol=1e-5)
    assert masks.std() > 0.05


@torch.no_grad()
def test_the_paper_s_five_steps_begin_where_all_cells_are_looked_at() -> None:
    stage = make_stage(PointSettings(), side=7)
    assert stage.side == 224
    seen: list[int] = []
    stage.points.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    masks = stage(features(1), found(1)).masks
    assert masks is not None
    assert masks.shape == (1, 3, 224, 224)
    assert seen == [784] * 4  # 28 x 28, then the most uncertain of 56, 112 and 224


@torch.no_grad()
def test_masks_without_steps_are_those_of_points_at_the_coarse_cells() -> None:
    masks = make_stage(replace(SMALL, steps=0))(features(), found()).masks
    assert masks is not None
    assert masks.shape == (2, 3, 3, 3)


@torch.no_grad()
def test_no_detections() -> None:
    given = found(1)
    none = Found(*(getattr(given, name)[:, :0] for name in ("boxes", "valid", "scores", "labels")))
    masks = make_stage()(features(1), none).masks
    assert masks is not None
    assert masks.shape == (1, 0, 24, 24)


def make_target(*boxes: tuple[int, int, int, int], labels: tuple[int, ...], empty: tuple[int, ...] = ()) -> Target:
    masks = torch.zeros(len(boxes), 40, 48, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        masks[row, y1:y2, x1:x2] = row not in empty
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(rows, torch.tensor(labels, dtype=torch.int64), torch.zeros(len(boxes), dtype=torch.bool), masks)


def make_sample(targets: Targets, boxes: Tensor, objects: Tensor, positive: Tensor) -> RegionSample:
    return RegionSample(
        boxes=boxes,
        labels=torch.where(positive, targets.labels.gather(1, objects), CLASSES),
        objects=objects,
        goals=targets.boxes[:, :1].expand_as(boxes),
        positive=positive,
        valid=torch.ones_like(positive),
    )


SEEDS = torch.tensor([5, 6])
TARGETS = Targets.pad(
    [
        make_target((0, 0, 24, 40), (24, 0, 48, 40), (0, 0, 9, 9), labels=(1, 0, 2), empty=(2,)),
        make_target((10, 10, 30, 30), labels=(2,)),
    ]
)
BOXES = torch.tensor(
    [[[4.0, 4, 20, 20], [4, 4, 20, 20], [4, 4, 20, 20]], [[12, 12, 28, 28], [0, 0, 0, 0], [0, 0, 0, 0]]]
)
SAMPLE = make_sample(
    TARGETS, BOXES, torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
)


def test_losses_by_hand() -> None:
    """Constant logits; one region wholly inside its mask, one outside, one without a mask, one inside, padding."""
    stage = make_stage()
    for layer in (stage.coarse.masks, stage.points.masks):
        nn.init.zeros_(layer.weight)
    stage.coarse.masks.bias.data = torch.tensor([0.5, -1.0, 2.0]).repeat_interleave(9)
    assert stage.points.masks.bias is not None
    stage.points.masks.bias.data = torch.tensor([1.0, 3.0, -2.0])
    losses = stage.losses(features(), SAMPLE, TARGETS, SEEDS)

    def mean(inside_1: float, outside_0: float, inside_2: float) -> float:
        return (math.log1p(math.exp(-inside_1)) + math.log1p(math.exp(outside_0)) + math.log1p(math.exp(-inside_2))) / 3

    assert list(losses) == ["mask", "mask_point"]
    assert losses["mask"].item() == pytest.approx(mean(-1.0, 0.5, 2.0), rel=1e-5)
    assert losses["mask_point"].item() == pytest.approx(mean(3.0, 1.0, -2.0), rel=1e-5)


def test_points_are_the_most_uncertain_of_many_and_uniform_ones() -> None:
    stage = make_stage(PointSettings(train_points=40, oversample=10))
    ramp = torch.linspace(-1, 1, 9).view(1, 1, 1, 9).expand(2, CLASSES, 9, 9)  # of no class in the middle column
    points = stage._training_points(ramp, torch.tensor([0, 1]), BOXES[:1, :2], SEEDS[:1])
    assert points.shape == (1, 2, 40, 2)
    apart = (points[..., 0] - 0.5).abs()
    assert (apart[..., :30] < 0.08).all()  # 30 of 400 lie within 0.0375 of it
    assert (apart[..., 30:] > 0.2).any(dim=2).all()


def test_images_of_a_batch_give_the_weighted_mean_of_their_own_losses() -> None:
    stage, maps = make_stage(), features()
    joint = stage.losses(maps, SAMPLE, TARGETS, SEEDS)
    parts = []
    for image, counted in ((0, 2), (1, 1)):
        of_image = slice(image, image + 1)
        part = RegionSample(
            *(getattr(SAMPLE, name)[of_image] for name in ("boxes", "labels", "objects", "goals", "positive", "valid"))
        )
        own = Targets.pad(
            [
                make_target((0, 0, 24, 40), (24, 0, 48, 40), (0, 0, 9, 9), labels=(1, 0, 2), empty=(2,))
                if image == 0
                else make_target((10, 10, 30, 30), labels=(2,))
            ]
        )
        losses = stage.losses([maps[0][of_image]], part.first(3 if image == 0 else 1), own, SEEDS[of_image])
        parts.append((counted, losses))
    for name, loss in joint.items():
        expected = sum(counted * losses[name].item() for counted, losses in parts) / 3
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_all_layers_and_are_finite_without_positives() -> None:
    stage, maps = make_stage(), [features()[0].requires_grad_()]
    torch.stack(list(stage.losses(maps, SAMPLE, TARGETS, SEEDS).values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in stage.parameters())
    assert maps[0].grad is not None
    assert maps[0].grad.any()
    none = replace(SAMPLE, positive=torch.zeros_like(SAMPLE.positive))
    losses = stage.losses(maps, none, TARGETS, SEEDS)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    torch.stack(list(losses.values())).sum().backward()
    assert maps[0].grad.isfinite().all()


def test_a_data_set_without_masks_is_refused() -> None:
    targets = Targets.pad([Target(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([False]))] * 2)
    with pytest.raises(ValueError, match="training masks needs a data set with masks"):
        make_stage().losses(features(), SAMPLE, targets, SEEDS)


def test_operators_do_not_grow_with_the_images_and_nothing_waits() -> None:
    stage, counts = make_stage(), []
    with as_on_gpu(), torch.no_grad():
        for images in (2, 8):
            maps, given = features(images), found(images)
            counts.append(count_operators(lambda maps=maps, given=given: stage(maps, given)))
    assert counts[0].names == counts[1].names
    assert counts[0].waits == 0
    assert counts[0].operators < 250
