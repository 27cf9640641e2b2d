"""Mirrors detection/model/faster_rcnn.py: whole detectors, tiny and seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from backbones.base import Backbone, FeatureSpec, InputStats, Tail
from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    MaskConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.config.sections import SolverConfig
from detection.engine.optim import build_optimizer
from detection.mask_geometry import MaskGeometry
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.mask_stage import MaskStage
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN, ProposalFilter, RPNHead
from detection.model.sampler import BalancedSampler
from detection.model.select import as_on_gpu
from detection.padded import Regions, Targets
from detection.structures import Detections, ImageBatch, Proposals, Target

LOSSES = ["rpn_objectness", "rpn_box", "box_class", "box_regression"]
PLAIN = InputStats(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 55.0), channel_order="rgb")

CONFIG = DetectionConfig(
    backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=4),
    anchors=AnchorConfig(sizes=(16.0, 32.0)),
    rpn=RPNConfig(
        channels=32,
        allow_outside=True,
        samples_per_image=32,
        pre_nms_train=64,
        pre_nms_test=64,
        post_nms_train=16,
        post_nms_test=16,
        min_size=2.0,
    ),
    box=BoxConfig(samples_per_image=16),
    test=PostprocessConfig(score_threshold=0.0),
)


def make_image(height: int, width: int) -> Tensor:
    """(3, H, W) made by arithmetic, so that it is the same everywhere."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)


def make_target(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], ignore: Sequence[bool] | None = None
) -> Target:
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        ignore=torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
    )


IMAGE = make_image(64, 80)
TARGET = make_target([[8, 8, 40, 40], [40, 20, 72, 52]], [1, 2])


@pytest.fixture(scope="module")
def resnet() -> FasterRCNN:
    return seeded(CONFIG)


@pytest.fixture(scope="module")
def vgg() -> FasterRCNN:
    return seeded(replace(CONFIG, backbone=DetectorBackboneConfig(name="vgg11", roi_size=2)))


@pytest.fixture(params=["resnet", "vgg"])
def detector(request: pytest.FixtureRequest) -> FasterRCNN:
    built: FasterRCNN = request.getfixturevalue(request.param)
    built.zero_grad()
    return built.train()


def seeded(config: DetectionConfig, num_classes: int = 3, fixed: Sequence[str] = ()) -> FasterRCNN:
    torch.manual_seed(0)
    built = build_detector(config, num_classes, fixed=fixed)
    assert isinstance(built, FasterRCNN)
    return built


def check_losses(losses: dict[str, Tensor], detector: FasterRCNN) -> None:
    """Finite scalars that give every trainable parameter a finite gradient."""
    assert list(losses) == LOSSES
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def detect(detector: FasterRCNN, *images: Tensor) -> list[Detections]:
    return detector.eval()(ImageBatch.from_images(images))


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(found) == len(expected) > 0
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=1e-5)


def test_golden_losses() -> None:
    # To regenerate after an intended change: print the losses of this very test and paste them below.
    detector = seeded(CONFIG)
    images = ImageBatch.from_images([IMAGE, IMAGE[:, :48, :64].flip(2)], seeds=[1, 2])
    second = make_target([[4, 12, 30, 40], [30, 0, 64, 20]], [0, 1], ignore=[False, True])
    losses = detector(images, [TARGET, second])
    measured = {name: loss.item() for name, loss in losses.items()}
    expected = {
        "rpn_objectness": 0.6968151,
        "rpn_box": 0.00862234,
        "box_class": 1.558262,
        "box_regression": 0.02456016,
    }
    assert measured == pytest.approx(expected, rel=1e-4)


class TestEveryDetector:
    """A ResNet, whose tail is convolutional, and a VGG, whose tail is fully connected."""

    def test_losses_reach_every_parameter(self, detector: FasterRCNN) -> None:
        check_losses(detector(ImageBatch.from_images([IMAGE, IMAGE[:, :50]]), [TARGET, TARGET]), detector)

    @pytest.mark.parametrize(
        "target",
        [
            make_target([], []),
            make_target([[0, 0, 80, 64]], [0], ignore=[True]),  # nothing outside is left as background either
            make_target([[8, 8, 40, 40]], [0], ignore=[True]),
            make_target([[48, 32, 80, 64], [0, 0, 80, 64]], [2, 0]),  # on the far border
        ],
        ids=["none", "all_ignored", "one_ignored", "far_border"],
    )
    def test_unusual_targets(self, detector: FasterRCNN, target: Target) -> None:
        losses = detector(ImageBatch.from_images([IMAGE]), [target])
        check_losses(losses, detector)
        assert (losses["box_regression"] > 0).item() == bool((~target.ignore).any())

    def test_images_with_and_without_objects_share_a_batch(self, detector: FasterRCNN) -> None:
        images = ImageBatch.from_images([IMAGE, IMAGE])
        check_losses(detector(images, [make_target([], []), TARGET]), detector)

    def test_no_proposals(self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        for kept in (detector.rpn.train_filter, detector.rpn.test_filter):
            monkeypatch.setattr(kept, "min_size", 1e6)
        for target in (TARGET, make_target([], [])):
            detector.zero_grad()
            check_losses(detector(ImageBatch.from_images([IMAGE]), [target]), detector)
        assert [len(found) for found in detect(detector, IMAGE, IMAGE)] == [0, 0]

    def test_no_detections(self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(detector, "postprocess", Postprocessor(score_threshold=1.0))
        (found,) = detect(detector, IMAGE)
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == found.labels.shape == (0,)

    def test_bfloat16_stays_finite(self, detector: FasterRCNN) -> None:
        images = ImageBatch.from_images([IMAGE])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = detector(images, [TARGET])
        check_losses(losses, detector)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (found,) = detect(detector, IMAGE)
        assert len(found)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert found.boxes.isfinite().all()
        assert found.scores.isfinite().all()

    def test_detections_lie_in_their_image_best_first(self, detector: FasterRCNN) -> None:
        sizes = [(64, 80), (40, 96), (37, 41)]
        for found, (height, width) in zip(detect(detector, *(make_image(*s) for s in sizes)), sizes, strict=True):
            assert 0 < len(found) <= 100
            assert (found.scores.diff() <= 0).all()
            assert (found.boxes >= 0).all()
            assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert found.labels.min() >= 0
            assert found.labels.max() < 3

    def test_call_decides_between_losses_and_detections(self, detector: FasterRCNN) -> None:
        images = ImageBatch.from_images([IMAGE])
        with torch.no_grad():
            assert list(detector.eval()(images, [TARGET])) == LOSSES
            assert isinstance(detector.train()(images)[0], Detections)

    def test_as_many_targets_as_images(self, detector: FasterRCNN) -> None:
        with pytest.raises(ValueError, match="1 targets for 2 images"):
            detector(ImageBatch.from_images([IMAGE, IMAGE]), [TARGET])
        with pytest.raises(ValueError, match="2 targets for 1 images"):
            detector(ImageBatch.from_images([IMAGE]), Targets.pad([TARGET] * 2))


def test_verbs_compose_to_a_detection(resnet: FasterRCNN) -> None:
    images = ImageBatch.from_images([IMAGE, IMAGE[:, :48]])
    with torch.no_grad():
        features = resnet.eval().features(images)
        proposals = resnet.propose(features, images)
        scored = resnet.boxes(features, proposals, images.sizes)
    assert [feature.shape for feature in features] == [(2, 256, 4, 5)]
    for found, stepwise in zip(detect(resnet, IMAGE, IMAGE[:, :48]), resnet.postprocess(scored).ragged(), strict=True):
        assert_same(stepwise, found)


def test_training_proposals_come_from_the_training_filter(monkeypatch: pytest.MonkeyPatch, resnet: FasterRCNN) -> None:
    monkeypatch.setattr(resnet.rpn.test_filter, "min_size", 1e6)
    with torch.no_grad():
        losses = resnet(ImageBatch.from_images([IMAGE]), [make_target([], [])])
    assert losses["box_class"] > 0  # the regions of an image without objects are proposals


class TestImagesOfDifferentSizes:
    """What a batch does to the images in it.

    Padding is not free of effects: convolutions see zeros instead of their own border, group norms average over it, and
    anchors that lie in it may reach into the image.  What is exact is tested here.
    """

    def test_largest_image_is_as_if_alone(self, resnet: FasterRCNN) -> None:
        (alone,) = detect(resnet, IMAGE)
        batched, _ = detect(resnet, IMAGE, make_image(48, 33))
        assert_same(batched, alone)

    def test_equal_images_are_as_if_alone(self, resnet: FasterRCNN) -> None:
        (alone,) = detect(resnet, IMAGE)
        for found in detect(resnet, IMAGE, IMAGE, IMAGE):
            assert_same(found, alone)

    def test_order_of_the_batch_does_not_matter(self, resnet: FasterRCNN) -> None:
        small = make_image(48, 64)
        forth, back = detect(resnet, IMAGE, small), detect(resnet, small, IMAGE)
        assert_same(forth[0], back[1])
        assert_same(forth[1], back[0])

    def test_pixels_of_the_padding_do_not_matter(self, resnet: FasterRCNN) -> None:
        images = ImageBatch.from_images([IMAGE, make_image(48, 33)])
        dirty = images.pixels.clone()
        dirty[1, :, 48:] = 255
        dirty[1, :, :, 33:] = 77
        with torch.no_grad():
            clean_found, dirty_found = resnet.eval()(images), resnet(replace(images, pixels=dirty))
        for clean, other in zip(clean_found, dirty_found, strict=True):
            assert torch.equal(clean.boxes, other.boxes)
            assert torch.equal(clean.scores, other.scores)

    def test_features_beyond_the_reach_of_the_border_are_as_if_alone(self) -> None:
        detector = seeded(replace(CONFIG, backbone=DetectorBackboneConfig(name="resnet18", norm="frozen_bn"))).eval()
        narrow, wide = make_image(32, 384), make_image(32, 448)
        with torch.no_grad():
            alone = detector.features(ImageBatch.from_images([narrow]))[0][0]
            batched = detector.features(ImageBatch.from_images([narrow, wide]))[0][0]
        # Up to c4, a ResNet-18 sees 211 pixels, 105 to each side of a cell's centre: at most 8 cells.
        torch.testing.assert_close(batched[..., : 24 - 8], alone[..., : 24 - 8], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(batched[..., 23], alone[..., 23], rtol=1e-2, atol=1e-2)

    def test_all_is_exact_without_convolutions_across_the_border(self) -> None:
        detector = patch_detector(PLAIN)
        images = [make_image(64, 80), make_image(48, 96), make_image(32, 48)]
        for found, image in zip(detect(detector, *images), images, strict=True):
            assert_same(found, *detect(detector, image))


class PatchTail(Tail):
    """The mean of a region over its cells."""

    def forward(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


class PatchBackbone(Backbone):
    """One vector for every patch of 16 x 16 pixels: the padding of a batch changes nothing but adds zeros."""

    def __init__(self, stats: InputStats) -> None:
        super().__init__({"c4": FeatureSpec(8, 16)}, stats)
        self.conv = nn.Conv2d(3, 8, 16, stride=16, bias=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c4": self.conv(images)}

    def tail(self) -> PatchTail:
        return PatchTail(in_channels=8, out_channels=8, roi_size=2)


def patch_detector(stats: InputStats) -> FasterRCNN:
    """Anchors fill exactly one cell, so that none that lies in the padding reaches into an image."""
    torch.manual_seed(0)
    backbone = PatchBackbone(stats)
    anchors = AnchorGenerator(16, sizes=[16.0], ratios=[1.0])
    options: dict[str, Any] = {"pre_nms": 1000, "post_nms": 1000, "nms_iou": 0.7, "min_size": 8.0}
    kept = ProposalFilter(**options)
    rpn = RPN(
        [anchors],
        RPNHead(8, channels=8, num_anchors=1),
        matcher=Matcher(0.7, 0.3),
        sampler=BalancedSampler(8, 0.5),
        train_filter=kept,
        test_filter=kept,
    )
    predictor = BoxPredictor(8, num_classes=2)
    nn.init.normal_(predictor.classes.weight)  # scores far enough apart to have an order
    stage = BoxStage(
        RegionPooler([16], 2),
        backbone.tail(),
        predictor,
        matcher=Matcher(0.5, 0.5),
        sampler=BalancedSampler(8, 0.25),
        coder=BoxCoder(),
    )
    return FasterRCNN(backbone, rpn, stage, postprocess=Postprocessor(score_threshold=0.0))


class PixelBackbone(Backbone):
    """Returns its input."""

    def __init__(self, stats: InputStats) -> None:
        super().__init__({"c1": FeatureSpec(3, 1)}, stats)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c1": images}

    def tail(self) -> PatchTail:
        return PatchTail(in_channels=3, out_channels=3, roi_size=2)


class TestNormalisation:
    """What the backbone gets to see."""

    @pytest.mark.parametrize(
        ("order", "expected"),
        # (pixel - mean) / std of red 10, green 20, blue 30
        [("rgb", [(10 - 1) / 2, (20 - 2) / 4, (30 - 3) / 5]), ("bgr", [(30 - 1) / 2, (20 - 2) / 4, (10 - 3) / 5])],
    )
    def test_by_hand(self, order: Any, expected: list[float]) -> None:
        parts = patch_detector(PLAIN)
        stats = InputStats(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 5.0), channel_order=order)
        detector = FasterRCNN(PixelBackbone(stats), parts.rpn, parts.box_stage, postprocess=parts.postprocess)
        pixels = torch.tensor([10, 20, 30], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 6)
        (seen,) = detector.features(ImageBatch(pixels, torch.tensor([[2, 3]])))
        torch.testing.assert_close(seen[0, :, :2, :3], torch.tensor(expected)[:, None, None].expand(3, 2, 3))
        assert not seen[..., 2:, :].any()  # padding is zero, whatever its pixels are
        assert not seen[..., 3:].any()

    def test_bgr_network_with_flipped_weights_detects_the_same(self) -> None:
        rgb = patch_detector(PLAIN)
        bgr = patch_detector(InputStats(mean=(100.0, 110.0, 120.0), std=(55.0, 50.0, 60.0), channel_order="bgr"))
        weights = rgb.state_dict()
        bgr.load_state_dict({**weights, "backbone.conv.weight": weights["backbone.conv.weight"].flip(1)})
        assert_same(*detect(bgr, IMAGE), *detect(rgb, IMAGE))

    def test_caffe_weights_mean_bgr(self) -> None:
        backbone = DetectorBackboneConfig(name="resnet18", weights="absent.pth", weights_source="caffe")
        detector = build_detector(replace(CONFIG, backbone=backbone), 3, pretrained=False)
        assert isinstance(detector, FasterRCNN)
        assert detector.normalize.bgr
        assert detector.normalize.mean.flatten().tolist() == pytest.approx([102.9801, 115.9465, 122.7717])


@pytest.mark.slow
def test_learns_two_rectangles_by_heart() -> None:
    config = replace(
        CONFIG,
        anchors=AnchorConfig(sizes=(24.0, 40.0)),
        box=BoxConfig(samples_per_image=16, pool="roi_align"),
        test=PostprocessConfig(score_threshold=0.5),
    )
    detector = seeded(config)
    image = torch.full((3, 64, 96), 100, dtype=torch.uint8)
    image[:, 8:40, 8:32] = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
    image[:, 24:56, 48:88] = torch.tensor([30, 60, 220], dtype=torch.uint8)[:, None, None]
    target = make_target([[8, 8, 32, 40], [48, 24, 88, 56]], [0, 2])
    images = ImageBatch.from_images([image])
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    totals = []
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 0.01 if step < 60 else 0.001
        total = torch.stack(list(detector(images, [target]).values())).sum()
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        totals.append(total.item())
    assert math.fsum(totals[-10:]) < math.fsum(totals[:10]) / 3
    (found,) = detect(detector, image)
    assert sorted(found.labels.tolist()) == [0, 2]
    best, row = box_iou(target.boxes, found.boxes).max(dim=1)
    assert (best > 0.7).all()
    assert torch.equal(found.labels[row], target.labels)


# Pyramids and masks

# To regenerate after an intended change: print the losses of the test that names it.
GOLDEN_PYRAMID = {
    "rpn_objectness": 0.6861624,
    "rpn_box": 0.002553735,
    "box_class": 1.387037,
    "box_regression": 0.1011036,
}
GOLDEN_MASKS: dict[MaskGeometry, float] = {"exact": 1.526519, "torchvision": 1.521016}
PYRAMID = replace(
    CONFIG,
    backbone=DetectorBackboneConfig(name="resnet18", norm="gn", fpn=True, fpn_channels=32),
    anchors=AnchorConfig(sizes=(8.0, 16.0, 32.0, 64.0, 128.0)),
    box=BoxConfig(head="fc", pool="roi_align", head_channels=32, samples_per_image=16),
    architecture="mask_rcnn",
    mask=MaskConfig(pool_size=4, convs=1, channels=8),
)
CASCADE = replace(PYRAMID, architecture="cascade_mask_rcnn", box=replace(PYRAMID.box, class_agnostic=True))
OVER_TAIL = replace(CONFIG, architecture="mask_rcnn", mask=MaskConfig(channels=8))


def with_masks(target: Target) -> Target:
    """Every object fills its box."""
    masks = torch.zeros(len(target), 64, 80, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(target.boxes.int().tolist()):
        masks[row, y1:y2, x1:x2] = True
    return replace(target, masks=masks)


@pytest.mark.parametrize("config", [PYRAMID, OVER_TAIL], ids=["pyramid", "tail"])
def test_the_mask_stage_is_fixed_with_the_box_stage(config: DetectionConfig) -> None:
    detector = seeded(config, fixed=("box_stage",)).train()
    losses = detector(ImageBatch.from_images([IMAGE]), [with_masks(TARGET)])
    assert list(losses) == LOSSES[:2]
    torch.stack(list(losses.values())).sum().backward()
    trainable = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in detector.named_parameters() if parameter.grad is not None} == trainable
    assert not any("mask_stage" in name for name in trainable)


def test_a_part_that_there_is_not_cannot_be_fixed() -> None:
    with pytest.raises(ValueError, match=r"mask_rcnn has no parts \['neck'\]; it has .*'rpn'"):
        build_detector(PYRAMID, 3, fixed=("backbone", "neck"))


def test_seeds_make_the_draws_of_an_image_its_own() -> None:
    few = replace(PYRAMID, rpn=replace(PYRAMID.rpn, samples_per_image=4), box=replace(PYRAMID.box, samples_per_image=4))
    detector = seeded(replace(few, architecture="faster_rcnn")).train()

    def losses(*seeds: int) -> torch.Tensor:
        images = ImageBatch.from_images([IMAGE] * len(seeds), seeds)
        return torch.stack(list(detector(images, [TARGET] * len(seeds)).values()))

    assert torch.equal(losses(5), losses(5))
    assert not torch.equal(losses(5), losses(6))
    torch.testing.assert_close((losses(5) + losses(6)) / 2, losses(5, 6))


@pytest.mark.parametrize("config", [PYRAMID, CASCADE, OVER_TAIL], ids=["pyramid", "cascade", "tail"])
class TestMasks:
    """Detectors with a mask stage."""

    def test_losses_reach_every_parameter(self, config: DetectionConfig) -> None:
        detector = seeded(config).train()
        losses = detector(ImageBatch.from_images([IMAGE, IMAGE[:, :50]]), [with_masks(TARGET), with_masks(TARGET)])
        assert list(losses)[:2] == LOSSES[:2]
        assert list(losses)[-1] == "mask"
        assert len(losses) == (9 if config is CASCADE else 5)
        torch.stack(list(losses.values())).sum().backward()
        for name, parameter in detector.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name

    def test_images_without_objects_give_finite_losses(self, config: DetectionConfig) -> None:
        detector = seeded(config).train()
        losses = detector(ImageBatch.from_images([IMAGE]), [with_masks(make_target([], []))])
        assert all(loss.isfinite() for loss in losses.values())
        assert losses["mask"].item() == 0
        torch.stack(list(losses.values())).sum().backward()

    def test_every_detection_has_its_mask(self, config: DetectionConfig) -> None:
        for found in detect(seeded(config), IMAGE, make_image(37, 41)):
            assert len(found) > 0
            assert found.masks is not None
            assert found.masks.shape == (len(found), *found.masks.shape[-1:] * 2)
            assert (found.masks >= 0).all()
            assert (found.masks <= 1).all()

    def test_no_detections(self, config: DetectionConfig) -> None:
        detector = seeded(config)
        detector.postprocess = Postprocessor(score_threshold=1.0)
        (found,) = detect(detector, IMAGE)
        assert found.masks is not None
        assert len(found.masks) == 0

    def test_bfloat16_stays_finite(self, config: DetectionConfig) -> None:
        detector = seeded(config).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = detector(ImageBatch.from_images([IMAGE]), [with_masks(TARGET)])
            (found,) = detect(detector, IMAGE)
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
        assert found.masks is not None
        assert found.masks.isfinite().all()


@pytest.mark.parametrize("geometry", GOLDEN_MASKS)
def test_golden_losses_of_a_pyramid_with_masks(geometry: MaskGeometry) -> None:
    detector = seeded(replace(PYRAMID, mask=replace(PYRAMID.mask, geometry=geometry)))
    images = ImageBatch.from_images([IMAGE, IMAGE.flip(2)], seeds=[1, 2])
    losses = detector(images, [with_masks(TARGET), with_masks(TARGET)])
    measured = {name: loss.item() for name, loss in losses.items()}
    assert measured == pytest.approx(GOLDEN_PYRAMID | {"mask": GOLDEN_MASKS[geometry]}, rel=1e-4)


@pytest.mark.parametrize("number", [0, 1], ids=["c4", "pyramid"])
def test_golden_losses_of_all_anchors_and_regions(number: int) -> None:
    # Nothing is left to chance: these hold however negatives are drawn.
    config = (CONFIG, PYRAMID)[number]
    detector = seeded(
        replace(
            config,
            rpn=replace(config.rpn, samples_per_image=100_000),
            box=replace(config.box, samples_per_image=100_000),
            mask=replace(config.mask, geometry="torchvision"),
        )
    )
    second = make_target([[4, 12, 30, 40], [30, 0, 64, 20]], [0, 1], ignore=[False, True])
    images, targets = (
        ([IMAGE, IMAGE[:, :48, :64].flip(2)], [TARGET, second]),
        ([IMAGE, IMAGE.flip(2)], [with_masks(TARGET)] * 2),
    )[number]
    losses = detector(ImageBatch.from_images(images), targets)
    expected = (
        {
            "rpn_objectness": 0.6965227,
            "rpn_box": 0.002844483,
            "box_class": 1.5632846,
            "box_regression": 0.02302515,
        },
        {
            "rpn_objectness": 0.6842779,
            "rpn_box": 6.048817e-05,
            "box_class": 1.3875191,
            "box_regression": 0.08986991,
            "mask": 1.5210158,
        },
    )[number]
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", [PYRAMID, CASCADE, OVER_TAIL], ids=["pyramid", "cascade", "tail"])
class TestImagesAtOnce:
    """Several images of one size at once are as each alone."""

    IMAGES = (IMAGE, make_image(64, 80).flip(1), IMAGE.flip(2))
    TARGETS = (TARGET, make_target([], []), make_target([[4, 4, 30, 60]] * 9, [0] * 9, [False, True] + [False] * 7))

    @pytest.mark.parametrize("gpu", [False, True])
    def test_detections(self, config: DetectionConfig, gpu: bool) -> None:
        detector = seeded(config)
        with as_on_gpu() if gpu else nullcontext():
            joint = detect(detector, *self.IMAGES)
        for found, image in zip(joint, self.IMAGES, strict=True):
            (alone,) = detect(detector, image)
            assert_same(found, alone)
            torch.testing.assert_close(found.masks, alone.masks, rtol=1e-3, atol=1e-4)

    def test_losses(self, config: DetectionConfig) -> None:
        # Every image draws 8 anchors, of which its losses are means; so is the joint one of as many of each image.
        detector = seeded(replace(config, rpn=replace(config.rpn, samples_per_image=8))).eval()
        targets = [with_masks(target) for target in self.TARGETS]
        with torch.no_grad():
            joint = detector(ImageBatch.from_images(self.IMAGES, [3, 4, 5]), targets)
            alone = [
                detector(ImageBatch.from_images([image], [seed]), [target])
                for image, target, seed in zip(self.IMAGES, targets, (3, 4, 5), strict=True)
            ]
        for name in LOSSES[:2]:
            assert joint[name].item() == pytest.approx(sum(own[name].item() for own in alone) / 3, rel=1e-4)

    def test_losses_of_a_gpu_are_those_of_a_cpu(self, config: DetectionConfig) -> None:
        detector, images = seeded(config), ImageBatch.from_images(self.IMAGES, [3, 4, 5])
        targets, found = [with_masks(target) for target in self.TARGETS], []
        for path in (nullcontext, as_on_gpu):
            detector.zero_grad()
            with path():
                losses = detector(images, targets)
            torch.stack(list(losses.values())).sum().backward()
            weight = detector.rpn.head.conv.weight.grad
            assert weight is not None
            found.append(({name: loss.item() for name, loss in losses.items()}, weight.clone()))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_a_cpu_trains_masks_of_as_many_regions_as_an_image_has_positive_ones() -> None:
    detector = seeded(replace(PYRAMID, box=replace(PYRAMID.box, samples_per_image=256)))
    rows = list[int]()
    assert isinstance(detector.mask_stage, MaskStage)
    detector.mask_stage.head.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    images, (few, none) = ImageBatch.from_images([IMAGE, IMAGE]), (TARGET, make_target([], []))
    for path in (nullcontext, as_on_gpu):
        with path():
            detector(images, [with_masks(few), with_masks(none)])
    assert rows[0] == 8  # of two images, of which one has four
    assert rows[1] == 48  # all regions, fewer than could be positive
    detector(images, [with_masks(none), with_masks(none)])
    assert rows[2] == 2  # one of padding each, so that a graph is there for the gradient of nothing


def test_a_pyramid_sees_a_batch_of_even_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = seeded(PYRAMID), list[tuple[int, ...]]()
    forward = detector.backbone.forward
    monkeypatch.setattr(
        detector.backbone, "forward", lambda images: seen.append(tuple(images.shape)) or forward(images)
    )
    (found,) = detect(detector, make_image(37, 65))
    assert seen == [(1, 3, 64, 96)]
    assert (found.boxes <= torch.tensor([65, 37, 65, 37])).all()


def test_masks_of_a_vgg_tail_are_refused() -> None:
    config = replace(OVER_TAIL, backbone=DetectorBackboneConfig(name="vgg11", roi_size=2))
    with pytest.raises(ValueError, match="VGGTail ends in vectors, not in maps"):
        seeded(config)(ImageBatch.from_images([IMAGE]), [with_masks(TARGET)])


NORMED = replace(CONFIG, backbone=DetectorBackboneConfig(name="resnet18", norm="bn", freeze_at=0, roi_size=4))
PARTS = ("backbone", "rpn", "box_stage")
RPN_LOSSES, BOX_LOSSES = LOSSES[:2], LOSSES[2:]


def with_fixed(*fixed: str) -> FasterRCNN:
    """A detector whose norm layers learn statistics, in training."""
    return seeded(NORMED, fixed=fixed).train()


def take_steps(detector: FasterRCNN, count: int = 2) -> None:
    optimizer = build_optimizer(detector, SolverConfig(base_lr=0.01, momentum=0.9, weight_decay=0.1))
    for _ in range(count):
        losses = detector(ImageBatch.from_images([IMAGE, IMAGE.flip(2)]), [TARGET, TARGET])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()


FIXED = [("backbone",), ("rpn",), ("box_stage",), ("backbone", "rpn"), ("backbone", "box_stage")]


@pytest.mark.parametrize("fixed", FIXED, ids="+".join)
class TestFixedParts:
    """Parts that are not trained, as in 4-step training."""

    def test_stay_bit_for_bit_while_the_others_learn(self, fixed: tuple[str, ...]) -> None:
        detector = with_fixed(*fixed)
        before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
        take_steps(detector)
        changed = {
            name.partition(".")[0] for name, old in before.items() if not torch.equal(detector.state_dict()[name], old)
        }
        assert changed == set(PARTS) - set(fixed)

    def test_have_no_gradient(self, fixed: tuple[str, ...]) -> None:
        detector = with_fixed(*fixed)
        for name, parameter in detector.named_parameters():
            assert parameter.requires_grad == (name.partition(".")[0] not in fixed), name
        losses = detector(ImageBatch.from_images([IMAGE]), [TARGET])
        torch.stack(list(losses.values())).sum().backward()
        for name, parameter in detector.named_parameters():
            assert (parameter.grad is None) == (name.partition(".")[0] in fixed), name

    def test_give_no_loss(self, fixed: tuple[str, ...]) -> None:
        losses = with_fixed(*fixed)(ImageBatch.from_images([IMAGE]), [TARGET])
        wanted = (RPN_LOSSES if "rpn" not in fixed else []) + (BOX_LOSSES if "box_stage" not in fixed else [])
        assert list(losses) == wanted

    def test_stay_in_eval_mode(self, fixed: tuple[str, ...]) -> None:
        detector = with_fixed(*fixed)
        for training in (True, False, True):
            detector.train(training)
            for part in PARTS:
                modes = {module.training for module in detector.get_submodule(part).modules()}
                assert modes == {training and part not in fixed}, part
            assert detector.training == training

    def test_detect_as_ever(self, fixed: tuple[str, ...]) -> None:
        assert_same(*detect(with_fixed(*fixed), IMAGE), *detect(with_fixed(), IMAGE))


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(with_fixed(*PARTS), SolverConfig())


def test_nothing_is_fixed_unless_asked_for() -> None:
    detector = with_fixed()
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert all(module.training for module in detector.modules())


def test_a_fixed_rpn_proposes_as_in_a_test() -> None:
    # It is one that was trained before, and what it proposes is what a test will get.
    detector = with_fixed("rpn")
    detector.rpn.train_filter.min_size = 1e6
    none = make_target([], [])
    assert detector(ImageBatch.from_images([IMAGE]), [none])["box_class"] > 0


class TestGivenProposals:
    """Proposals from a file take the place of the RPN's."""

    BOXES = torch.tensor([[4.0, 4, 44, 44], [36, 16, 76, 56], [0, 40, 24, 64]])

    def proposals(self) -> Regions:
        return Regions.pad([Proposals(boxes=self.BOXES, scores=torch.zeros(3))])

    @pytest.mark.parametrize("fixed", [(), ("rpn",), ("backbone", "rpn")], ids=["all", "fast_rcnn", "head"])
    def test_are_what_the_box_stage_learns_from(self, fixed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        detector, seen = with_fixed(*fixed), []
        assert isinstance(detector.box_stage, BoxStage)
        draw = detector.box_stage.draw
        monkeypatch.setattr(
            detector.box_stage,
            "draw",
            lambda given, targets, seeds: seen.append(given) or draw(given, targets, seeds),
        )
        losses = detector(ImageBatch.from_images([IMAGE]), [TARGET], self.proposals())
        assert [torch.equal(given.boxes[0], self.BOXES) for given in seen] == [True]
        assert list(losses) == ([] if "rpn" in fixed else RPN_LOSSES) + BOX_LOSSES

    def test_change_the_losses(self, resnet: FasterRCNN) -> None:
        images, none = ImageBatch.from_images([IMAGE]), make_target([], [])
        empty = Regions.pad([Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0))])
        with torch.no_grad():
            assert resnet(images, [none], empty)["box_class"] == 0  # no region is left
            assert resnet(images, [none], self.proposals())["box_class"] > 0

    def test_are_what_is_scored(self, resnet: FasterRCNN) -> None:
        images = ImageBatch.from_images([IMAGE])
        with torch.no_grad():
            (found,) = resnet.eval()(images, None, self.proposals())
            features = resnet.features(images)
            scored = resnet.boxes(features, self.proposals(), images.sizes)
        assert_same(found, *resnet.postprocess(scored).ragged())
        assert len(found) <= 3 * 3  # proposals and classes

    def test_none_give_no_detections(self, resnet: FasterRCNN) -> None:
        empty = Regions.pad([Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0))])
        with torch.no_grad():
            (found,) = resnet.eval()(ImageBatch.from_images([IMAGE]), None, empty)
        assert len(found) == 0

    def test_an_rpn_alone_has_no_use_for_them(self) -> None:
        detector = with_fixed("box_stage")
        torch.manual_seed(3)
        without = detector(ImageBatch.from_images([IMAGE]), [TARGET])
        torch.manual_seed(3)
        given = detector(ImageBatch.from_images([IMAGE]), [TARGET], self.proposals())
        assert {name: loss.item() for name, loss in given.items()} == {n: loss.item() for n, loss in without.items()}
