"""Mirrors detection/model/pointrend.py and points.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.engine.operators import count_operators
from detection.model.pointrend import CoarseHead, PointHead, PointSettings, PointStage
from detection.model.points import drawn_points, grid_points, on_image, sample_features, sample_masks, sample_regions
from detection.model.select import as_on_gpu
from detection.padded import Found

CLASSES, CHANNELS = 3, 4
SMALL = PointSettings(train_points=16, steps=3, test_points=40)
SEEDS = torch.tensor([5, 6])
BOXES = [[[4.0, 4, 20, 20]] * 3, [[12.0, 12, 28, 28]]]  # of each image
OBJECTS = [[0, 1, 2], [0]]


def make_stage(settings: PointSettings = SMALL, *, side: int = 3) -> PointStage:
    torch.manual_seed(0)
    coarse = CoarseHead(CHANNELS, num_classes=CLASSES, pool_size=6, side=side, channels=5, fc_channels=12)
    points = PointHead(CHANNELS, num_classes=CLASSES, channels=8)
    for layer in (coarse.masks, points.masks):
        nn.init.normal_(layer.weight, std=0.5)
    return PointStage(coarse, points, stride=4, settings=settings)


def features(images: int = 2) -> Tensor:
    return torch.randn(images, CHANNELS, 10, 12, generator=torch.Generator().manual_seed(1))


def found(images: int = 2, count: int = 3) -> Found:
    boxes = torch.tensor([[[4.0, 2, 30, 33], [0, 0, 48, 40], [10, 10, 13, 30]]]).repeat(images, 1, 1)
    labels, valid = torch.tensor([[0, 2, 1]]).repeat(images, 1), torch.ones(images, 3, dtype=torch.bool)
    boxes = boxes + torch.arange(images)[:, None, None]
    return Found(*(part[:, :count] for part in (boxes, valid, valid.float(), labels)))


@torch.no_grad()
def masks_of(stage: PointStage, images: int = 2, count: int = 3) -> Any:
    return stage([features(images)], found(images, count)).masks


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
    logits = coarse = stage.coarse(at(centres(size)).view(1, CHANNELS, size, size))
    for _ in range(stage.settings.steps):
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        order = logits[0, label].flatten().abs().argsort()[: stage.settings.test_points]
        points = centres(logits.shape[-1])[order]
        known = F.grid_sample(coarse, 2 * points[None, None] - 1, align_corners=False)[:, :, 0]
        flat = logits.flatten(2).clone()
        flat[0, :, order] = stage.points(at(points), known)[0]
        logits = flat.view_as(logits)
    return logits[0, label].sigmoid()


@torch.no_grad()
def test_masks_are_those_of_the_definition() -> None:
    masks, given = masks_of(stage := make_stage()), found()
    assert masks.shape == (2, 3, 24, 24)
    assert masks.std() > 0.05
    for image in range(2):
        for row in range(3):
            expected = by_definition(stage, features()[image], given.boxes[image, row], int(given.labels[image, row]))
            torch.testing.assert_close(masks[image, row], expected, rtol=0, atol=1e-5)
    assert masks_of(make_stage(replace(SMALL, steps=0))).shape == (2, 3, 3, 3)  # points at the coarse cells
    assert masks_of(stage, 1, 0).shape == (1, 0, 24, 24)


def test_the_paper_s_five_steps_begin_where_all_cells_are_looked_at() -> None:
    stage, seen = make_stage(PointSettings(), side=7), list[int]()
    assert stage.side == 224
    stage.points.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    assert masks_of(stage, 1).shape == (1, 3, 224, 224)
    assert seen == [784] * 4  # 28 x 28, then the most uncertain of 56, 112 and 224


@pytest.fixture
def targets(make_masked) -> list[Any]:
    """The first image has a region wholly inside its mask, one outside and one without; the second one inside."""
    rows = ((0, 0, 24, 40), (24, 0, 48, 40), (0, 0, 9, 9))
    first = make_masked(*rows, labels=(1, 0, 2), empty=(2,), size=(40, 48))
    return [first, make_masked((10, 10, 30, 30), labels=(2,), size=(40, 48))]


def test_losses_of_constant_logits_by_hand(losses_of, targets) -> None:
    stage: Any = make_stage()
    for layer in (stage.coarse.masks, stage.points.masks):
        nn.init.zeros_(layer.weight)
    stage.coarse.masks.bias.data = torch.tensor([0.5, -1.0, 2.0]).repeat_interleave(9)
    stage.points.masks.bias.data = torch.tensor([1.0, 3.0, -2.0])
    losses = losses_of(stage, features(), targets, BOXES, OBJECTS, SEEDS)

    def mean(inside_1: float, outside_0: float, inside_2: float) -> float:
        return (math.log1p(math.exp(-inside_1)) + math.log1p(math.exp(outside_0)) + math.log1p(math.exp(-inside_2))) / 3

    expected = {"mask": mean(-1.0, 0.5, 2.0), "mask_point": mean(3.0, 1.0, -2.0)}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_points_are_the_most_uncertain_of_many_and_uniform_ones() -> None:
    stage = make_stage(PointSettings(train_points=40, oversample=10))
    ramp = torch.linspace(-1, 1, 9).view(1, 1, 1, 9).expand(2, CLASSES, 9, 9)  # of no class in the middle column
    points = stage._training_points(ramp, torch.tensor([0, 1]), torch.tensor(BOXES[:1])[:, :2], SEEDS[:1])
    assert points.shape == (1, 2, 40, 2)
    apart = (points[..., 0] - 0.5).abs()
    assert (apart[..., :30] < 0.08).all()  # 30 of 400 lie within 0.0375 of it
    assert (apart[..., 30:] > 0.2).any(dim=2).all()


def test_gradients_reach_all_layers_and_are_finite_without_positives(losses_of, targets, make_target) -> None:
    stage, maps = make_stage(), features().requires_grad_()
    for objects in (OBJECTS, [[], []]):
        boxes = [own[: len(rows)] for own, rows in zip(BOXES, objects, strict=True)]
        losses = losses_of(stage, maps, targets, boxes, objects, SEEDS)
        gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), [maps, *stage.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(gradient.any() for gradient in gradients) == bool(objects[0])
    assert [loss.item() for loss in losses.values()] == [0, 0]
    with pytest.raises(ValueError, match="training masks needs a data set with masks"):
        losses_of(stage, maps, [make_target([[0.0, 0, 9, 9]])] * 2, BOXES, OBJECTS, SEEDS)


def test_operators_do_not_grow_with_the_images_and_nothing_waits() -> None:
    stage = make_stage()
    with as_on_gpu(), torch.no_grad():
        two, eight = (count_operators(lambda n=n: stage([features(n)], found(n))) for n in (2, 8))
    assert two.names == eight.names
    assert (two.waits, two.operators < 250) == (0, True)


def test_points_and_what_lies_under_them_by_hand() -> None:
    # A grid holds the centres of cells row by row; points lie in their box.
    assert grid_points(2, torch.zeros(1)).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    boxes = torch.tensor([[[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 0.0, 0.0]]])
    places = on_image(torch.tensor([[0.0, 0.0], [0.5, 0.25]]), boxes)
    assert places.tolist() == [[[[10.0, 20.0], [20.0, 30.0]], [[0.0, 0.0], [0.0, 0.0]]]]
    # Cells of 4 pixels have their centres at 2, 6, 10 and 14, where a ramp is what the place is; at the border half of
    # a zero outside, and nothing beyond.
    ramp = torch.tensor([2.0, 6.0, 10.0, 14.0]).expand(1, 1, 3, 4)
    places = torch.tensor([[[[2.0, 6.0], [7.5, 6.0], [14.0, 2.0], [16.0, 6.0], [30.0, 6.0]]]])
    assert sample_features(ramp, places, 4).tolist() == [[[[2.0, 7.5, 14.0, 7.0, 0.0]]]]
    # Each region has points of its own.
    maps = torch.tensor([[[[0.0, 1.0]]], [[[5.0, 5.0]]]])
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.5]], [[0.75, 0.5], [0.5, 0.5]]])
    assert sample_regions(maps, points).tolist() == [[[0.0, 0.5]], [[5.0, 5.0]]]
    # Masks are interpolated between the centres of pixels.
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[1, :, 3:] = True
    places = torch.tensor([[[3.5, 2.0], [3.0, 2.0], [2.5, 2.0], [5.75, 0.5], [9.0, 2.0]]] * 2)
    assert sample_masks(masks, places, torch.tensor([1, 0])).tolist() == [[1.0, 0.5, 0.0, 0.75, 0.0], [0.0] * 5]
    assert sample_masks(masks[:0], places, torch.tensor([0, 0])).tolist() == [[0.0] * 5] * 2
    # Random ones depend on the image's seed and the region's place alone.
    both = drawn_points(torch.tensor([3, 4]), 5, 40, torch.zeros(1))
    assert both.shape == (2, 5, 40, 2)
    assert torch.equal(both[1:, :2], drawn_points(torch.tensor([4]), 2, 40, torch.zeros(1)))
    assert ((both >= 0) & (both < 1)).all()
    assert abs(both.mean().item() - 0.5) < 0.03
    assert len(both.flatten().unique()) > 390
