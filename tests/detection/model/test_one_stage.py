"""Mirrors detection/model/one_stage.py and fcos.py: whole detectors, tiny and seeded, of both kinds."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from detection.build import build_detector
from detection.build_tester import build_tester
from detection.config import detection as settings
from detection.model import fcos
from detection.model.architecture import class_rows
from detection.model.fcos import FCOSHead, PointMatcher, Points
from detection.model.one_stage import Dense, LossScale, OneStage, pick
from detection.padded import Regions, Targets
from detection.structures import ImageBatch, Proposals

CONFIG = settings.DetectionConfig(
    architecture="retinanet",
    backbone=settings.DetectorBackboneConfig(name="resnet18", norm="gn", fpn=True, fpn_channels=16, fpn_coarse="c5"),
    anchors=settings.AnchorConfig(sizes=(16.0, 20.0, 32.0, 40.0, 64.0, 80.0, 128.0, 160.0, 256.0, 320.0)),
    dense=settings.DenseConfig(convs=1),
    test=settings.PostprocessConfig(score_threshold=0.0),
)
IMAGES = ImageBatch.from_images([torch.arange(3 * 64 * 96).view(3, 64, 96).remainder(251).to(torch.uint8)])


def build(architecture: Any, num_classes: int = 3, *, normalizer: Any = "image") -> OneStage:
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture, dense=replace(CONFIG.dense, normalizer=normalizer))
    detector = build_detector(config, num_classes, pretrained=False)
    assert isinstance(detector, OneStage)
    return detector


both_kinds = pytest.mark.parametrize("architecture", ["retinanet", "fcos"])


@both_kinds
def test_every_kind(architecture, make_target) -> None:
    detector = build(architecture)
    losses = detector(IMAGES, [make_target()])  # images without objects have no loss of boxes
    assert [name for name, loss in losses.items() if loss.item()] == ["class"]
    trained = [p for p in detector.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), trained)
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Anchors and points in the image are neither positive nor negative if all of it is a crowd.
    crowd = detector(IMAGES, [make_target([[-999, -999, 999, 999]], ignore=[True])])
    assert not torch.stack(list(crowd.values())).any()
    detector.fix(["backbone"])
    torch.stack(list(detector.train()(IMAGES, [make_target([[8, 8, 40, 40]])]).values())).sum().backward()
    assert {n.partition(".")[0] for n, p in detector.named_parameters() if p.grad is not None} == {"head"}
    assert not detector.backbone.training
    with pytest.raises(ValueError, match="no parts"):
        detector.fix(["rpn"])


@both_kinds
@torch.no_grad()
def test_another_set_of_classes_keeps_the_rows_that_it_knows(architecture) -> None:
    three, two = build(architecture), build(architecture, num_classes=2)
    rows, state = class_rows(three), three.state_dict()
    assert set(rows) == {"head.classes.weight", "head.classes.bias"}
    for name, row in rows.items():
        torch.nn.init.normal_(state[name])
        assert len(state[name]) == row.count(3)
        of_class = state[name].view(3, row.per_class, *state[name].shape[1:])
        state[name] = of_class[[2, 0]].flatten(0, 1)
    two.load_state_dict(state)
    for feature in three.features(IMAGES):
        assert two.head.logits(feature).equal(three.head.logits(feature)[..., [2, 0]])


def test_what_stands_on_regions_or_without_a_pyramid_is_refused(make_target) -> None:
    detector = build("fcos")
    with pytest.raises(ValueError, match=r"test\.refine, test\.scales, test\.flip.* which fcos lacks"):
        build_tester(settings.PostprocessConfig(flip=True), [detector])
    with pytest.raises(ValueError, match="proposals"):
        detector(IMAGES, [make_target()], Regions.pad([Proposals(torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(1))]))
    assert build_tester(settings.PostprocessConfig(), [detector]) is detector
    with pytest.raises(ValueError, match=r"set backbone\.fpn to true"):
        settings.DetectionConfig(architecture="fcos")


def test_the_best_of_a_level_come_in_the_order_of_their_places() -> None:
    picked = pick(torch.tensor([[[0.1, 0.9], [0.5, 0.2], [0.9, 0.3]]]), 3)
    assert (picked.rows.tolist(), picked.labels.tolist()) == ([[0, 1, 2]], [[1, 0, 0]])
    assert picked.scores.tolist() == [pytest.approx([0.9, 0.5, 0.9])]
    assert pick(torch.zeros(2, 3, 2), 1000).rows.shape == (2, 6)


def test_losses_are_divided_by_positives_of_each_image_or_all_or_a_mean_that_only_training_moves(make_target) -> None:
    positive = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    assert LossScale("image")(positive)[:, 0].tolist() == pytest.approx([1 / 9, 1 / 3, 1 / 3])
    assert LossScale("batch")(positive)[:, 0].tolist() == pytest.approx([1 / 4] * 3)
    # From 100, with a tenth of each step's positives, at least 1; a resumed one goes on; a step moves it once.
    scale, positive = LossScale("running"), torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert scale(positive)[:, 0].tolist() == pytest.approx([1 / 90.7] * 2)
    assert scale(positive[:1, :1])[:, 0].tolist() == pytest.approx([1 / 81.73])
    resumed = LossScale("running")
    resumed.load_state_dict(scale.state_dict())
    assert resumed(torch.zeros(3, 4, dtype=torch.bool))[:, 0].tolist() == pytest.approx([1 / 73.657] * 3)
    assert scale.eval()(positive)[:, 0].tolist() == pytest.approx([1 / 81.73] * 2)
    assert LossScale("batch").state_dict() == {}
    targets, detector = [make_target([[8, 8, 40, 40]])], build("retinanet", normalizer="running").train()
    before, found = build("retinanet", normalizer="batch").train()(IMAGES, targets), detector(IMAGES, targets)
    mean = detector.head.scale.positives.item()
    positives = round((mean - 90) / 0.1)
    assert positives > 1
    scaled = {name: loss.item() * mean / positives for name, loss in found.items()}
    assert scaled == pytest.approx({name: loss.item() for name, loss in before.items()})


# FCOS

ALL, LARGE = (0, math.inf), [0, 0, 40, 40]


@pytest.mark.parametrize(
    ("centers", "levels", "boxes", "ignore", "objects", "negative"),
    [
        # Centre (50, 10), radius 12 along both axes: at it, at the bound, beyond it, and near it but outside.
        ([(50, 10), (61, 10), (62, 10), (50, 21)], ALL, [[0, 0, 100, 20]], [], [0, 0, None, None], [0, 0, 1, 1]),
        # The farthest side of a point at the centre is 50 pixels away.
        ([(50, 50)], (0, 64), [[0, 0, 100, 100]], [], [0], [0]),
        ([(50, 50)], (0, 50), [[0, 0, 100, 100]], [], [None], [1]),
        ([(50, 50)], (50, 99), [[0, 0, 100, 100]], [], [None], [1]),
        ([(50, 50)], (49, 51), [[0, 0, 100, 100]], [], [0], [0]),
        # The smallest object wins.
        ([(20, 20), (25, 20), (50, 50)], ALL, [LARGE, [10, 10, 30, 30], [5, 5, 35, 35]], [], [1, 1, None], [0, 0, 1]),
        # Points in an ignored object are no negatives.
        ([(20, 20), (40, 40), (70, 70)], ALL, [LARGE, [20, 20, 60, 60]], [True, False], [None, 1, None], [0, 0, 1]),
        ([(20, 20)], ALL, [], [], [None], [1]),
    ],
)
def test_points_by_hand(centers, levels, boxes, ignore, objects, negative, make_target, monkeypatch) -> None:
    sides = (torch.full((len(centers),), float(value)) for value in (8, *levels))
    where, targets = Points(torch.tensor(centers).float(), *sides), Targets.pad([make_target(boxes, ignore=ignore)])
    for elements in (fcos.MAX_ELEMENTS, 1):  # however many objects are compared at a time
        monkeypatch.setattr(fcos, "MAX_ELEMENTS", elements)
        found = PointMatcher(1.5)(where, targets, torch.ones(1, len(centers), dtype=torch.bool))
        pairs = zip(found.positive[0].tolist(), found.indices[0].tolist(), strict=True)
        assert [index if positive else None for positive, index in pairs] == objects
        assert found.negative[0].tolist() == list(map(bool, negative))


@pytest.fixture
def head() -> FCOSHead:
    torch.manual_seed(0)
    dense = Dense(convs=1, normalizer="batch")
    return FCOSHead(8, (8, 16, 32), num_classes=2, settings=dense, matcher=PointMatcher(), offset=0.5)


FEATURES = [torch.zeros(1, 8, *size) for size in ((4, 8), (2, 4), (1, 2))]


@torch.no_grad()
def test_distances_are_cells_from_the_point(head) -> None:
    head.deltas.bias.copy_(torch.tensor([1.0, 0.5, 2.0, -3.0]))  # what is below 0 is cut
    found = head(FEATURES, (32, 64))
    assert found.boxes.shape == (1, 2 * (32 + 8 + 2), 4)
    # The first point of each level, at half its stride: left, top, right and bottom.
    expected = [[side - 2 * side, side - side, side + 4 * side, side] for side in (4, 8, 16)]
    assert found.boxes[0, [0, 64, 80]].tolist() == expected
    # Probability of a class 0.01, centerness 0.5
    assert found.scores.unique().item() == pytest.approx((0.01 * 0.5) ** 0.5)


def test_losses_by_hand(head, make_target) -> None:
    """An object of 16 x 8 around the point (28, 20) of the finest level, which alone is near enough and inside."""
    target = make_target([[20, 16, 36, 24]], labels=[1])
    losses = head.losses(FEATURES, torch.tensor([[32, 64]]), (32, 64), Targets.pad([target]))
    assert losses["centerness"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["box"].item() == pytest.approx(1, rel=1e-3)  # a box without an area inside the object: IoU 0
    background, own = 0.75 * 0.01**2 * -math.log(0.99), 0.25 * 0.99**2 * -math.log(0.01)
    assert losses["class"].item() == pytest.approx((2 * 42 - 1) * background + own, rel=1e-4)
