"""Mirrors detection/model/faster_rcnn.py: whole detectors, tiny and seeded."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from backbones.base import InputStats
from detection.build import build_detector
from detection.config import detection as settings
from detection.config.sections import SolverConfig
from detection.engine.optim import build_optimizer
from detection.model.faster_rcnn import FasterRCNN
from detection.model.normalize import Normalize
from detection.model.postprocess import Postprocessor
from detection.model.select import as_on_gpu
from detection.padded import Regions, Targets
from detection.structures import Detections, ImageBatch, Proposals, Target

LOSSES = ["rpn_objectness", "rpn_box", "box_class", "box_regression"]
PARTS = ("backbone", "rpn", "box_stage")
NMS: dict[str, Any] = {"pre_nms_train": 64, "pre_nms_test": 64, "post_nms_train": 16, "post_nms_test": 16}
CONFIG = settings.DetectionConfig(
    backbone=settings.DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=4),
    anchors=settings.AnchorConfig(sizes=(16.0, 32.0)),
    rpn=settings.RPNConfig(channels=32, allow_outside=True, samples_per_image=32, min_size=2.0, **NMS),
    box=settings.BoxConfig(samples_per_image=16),
    test=settings.PostprocessConfig(score_threshold=0.0),
)
PYRAMID = replace(
    CONFIG,
    backbone=settings.DetectorBackboneConfig(name="resnet18", norm="gn", fpn=True, fpn_channels=32),
    anchors=settings.AnchorConfig(sizes=(8.0, 16.0, 32.0, 64.0, 128.0)),
    box=settings.BoxConfig(head="fc", pool="roi_align", head_channels=32, samples_per_image=16),
    architecture="mask_rcnn",
    mask=settings.MaskConfig(pool_size=4, convs=1, channels=8),
)
KINDS = {
    "resnet": CONFIG,  # with a convolutional tail
    "vgg": replace(CONFIG, backbone=settings.DetectorBackboneConfig(name="vgg11", roi_size=2)),  # fully connected
    "pyramid": PYRAMID,
    "cascade": replace(PYRAMID, architecture="cascade_mask_rcnn", box=replace(PYRAMID.box, class_agnostic=True)),
    "tail": replace(CONFIG, architecture="mask_rcnn", mask=settings.MaskConfig(channels=8)),  # masks over the tail
}


def make_image(height: int, width: int) -> Tensor:
    """(3, H, W) made by arithmetic, so that it is the same everywhere."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)


def make_target(boxes: Sequence[Sequence[int]] = (), labels: Sequence[int] = (), ignore: Sequence[bool] = ()) -> Target:
    """Objects of an image of 64 x 80 whose masks fill their boxes."""
    masks = torch.zeros(len(boxes), 64, 80, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        masks[row, y1:y2, x1:x2] = True
    ignored = torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool)
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(rows, torch.tensor(labels, dtype=torch.int64), ignored, masks)


IMAGE, NOTHING = make_image(64, 80), make_target()
TARGET = make_target([[8, 8, 40, 40], [40, 20, 72, 52]], [1, 2])
SECOND = make_target([[4, 12, 30, 40], [30, 0, 64, 20]], [0, 1], ignore=[False, True])


NAMES: dict[str, list[str]] = {"resnet": LOSSES, "vgg": LOSSES, "pyramid": [*LOSSES, "mask"], "tail": [*LOSSES, "mask"]}
NAMES["cascade"] = [*LOSSES[:2], *(f"{loss}_{stage}" for stage in (1, 2, 3) for loss in LOSSES[2:]), "mask"]
BATCHES = [
    ([IMAGE, IMAGE[:, :50]], [TARGET, TARGET]),
    ([IMAGE, IMAGE], [NOTHING, TARGET]),
    ([IMAGE], [NOTHING]),
    ([IMAGE], [make_target([[0, 0, 80, 64]], [0], ignore=[True])]),  # nothing outside is left as background either
    ([IMAGE], [make_target([[8, 8, 40, 40]], [0], ignore=[True])]),
    ([IMAGE], [make_target([[48, 32, 80, 64], [0, 0, 80, 64]], [2, 0])]),  # on the far border
]
every_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(config: settings.DetectionConfig, fixed: Sequence[str] = ()) -> FasterRCNN:
    torch.manual_seed(0)
    built = build_detector(config, 3, fixed=fixed)
    assert isinstance(built, FasterRCNN)
    return built.train()


@cache
def shared(kind: str) -> FasterRCNN:
    """A detector whose weights no test changes; in training mode until it is tested."""
    return seeded(KINDS[kind])


def batch(*images: Tensor, seeds: Sequence[int] = ()) -> ImageBatch:
    return ImageBatch.from_images(images, seeds=seeds or range(len(images)))


@torch.no_grad()
def detect(detector: FasterRCNN, *images: Tensor) -> list[Any]:
    return detector.eval()(batch(*images))


def check_losses(losses: dict[str, Tensor], detector: FasterRCNN, names: Sequence[str]) -> None:
    assert list(losses) == names
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    trained = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(trained.values()), allow_unused=True)
    found = zip(trained, gradients, strict=True)
    assert [name for name, grad in found if grad is None or not grad.isfinite().all()] == []


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(found) == len(expected) > 0
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=1e-5)


# To regenerate after an intended change: print the losses of this very test. With all anchors and regions nothing is
# left to chance: those hold however negatives are drawn.
@pytest.mark.parametrize(
    ("config", "geometry", "everything", "expected"),
    [
        (CONFIG, "exact", False, [0.6968151, 0.00862234, 1.558262, 0.02456016]),
        (CONFIG, "torchvision", True, [0.6965227, 0.002844483, 1.5632846, 0.02302515]),
        (PYRAMID, "exact", False, [0.6861624, 0.002553735, 1.387037, 0.1011036, 1.526519]),
        (PYRAMID, "torchvision", False, [0.6861624, 0.002553735, 1.387037, 0.1011036, 1.521016]),
        (PYRAMID, "torchvision", True, [0.6842779, 6.048817e-05, 1.3875191, 0.08986991, 1.5210158]),
    ],
)
def test_golden_losses(config, geometry, everything, expected) -> None:
    small = IMAGE[:, :48, :64]
    second, other = (IMAGE, TARGET) if config is PYRAMID else (small, SECOND)
    config = replace(config, mask=replace(config.mask, geometry=geometry))
    if everything:
        rpn, box = (replace(section, samples_per_image=100_000) for section in (config.rpn, config.box))
        config = replace(config, rpn=rpn, box=box)
    losses = seeded(config)(batch(IMAGE, second.flip(2), seeds=[1, 2]), [TARGET, other])
    wanted = dict(zip([*LOSSES, "mask"], expected, strict=False))
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, rel=1e-4)


@every_kind
def test_losses_are_finite_and_reach_every_parameter(kind, monkeypatch) -> None:
    for images, targets in BATCHES[:: 3 if kind == "vgg" else 1]:  # its layers are large
        losses = (detector := shared(kind).train())(batch(*images), targets)
        check_losses(losses, detector, NAMES[kind])
        learns = any((~target.ignore).any() for target in targets)
        assert (losses[NAMES[kind][3]] > 0).item() == learns
        assert "mask" not in losses or (losses["mask"] > 0).item() == learns
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = (detector := shared(kind).train())(batch(IMAGE), [TARGET])
    check_losses(losses, detector, NAMES[kind])
    monkeypatch.setattr(detector.rpn.train_filter, "min_size", 1e6)
    for target in (TARGET, NOTHING):
        check_losses(shared(kind).train()(batch(IMAGE), [target]), detector, NAMES[kind])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detections_lie_in_their_image_best_first(kind, dtype, monkeypatch) -> None:
    sizes, detector = [(64, 80), (40, 96), (37, 41)], shared(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        detections = detect(detector, *(make_image(*size) for size in sizes))
    for found, (height, width) in zip(detections, sizes, strict=True):
        assert 0 < len(found) <= 100
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert (found.masks is not None) == ("mask" in NAMES[kind])
        if found.masks is not None:
            assert found.masks.shape == (len(found), *found.masks.shape[-1:] * 2)
            assert ((found.masks >= 0) & (found.masks <= 1)).all()
    nothing = (detector, "postprocess", Postprocessor(score_threshold=1.0))
    for change in (nothing, (detector.rpn.test_filter, "min_size", 1e6)):
        monkeypatch.setattr(*change)
        for found in detect(detector, IMAGE, IMAGE):
            assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
            assert found.masks is None or len(found.masks) == 0


def test_call_decides_between_losses_and_detections() -> None:
    detector = shared("resnet")
    with torch.no_grad():
        assert list(detector.eval()(batch(IMAGE), [TARGET])) == LOSSES
        assert isinstance(detector.train()(batch(IMAGE))[0], Detections)
    for images, targets, match in ((2, [TARGET], "1 targets for 2"), (1, Targets.pad([TARGET] * 2), "2 targets for 1")):
        with pytest.raises(ValueError, match=match):
            detector(batch(*[IMAGE] * images), targets)


# (pixel - mean) / std of red 10, green 20, blue 30
@pytest.mark.parametrize(("order", "expected"), [("rgb", [4.5, 4.5, 5.4]), ("bgr", [14.5, 4.5, 1.4])])
def test_normalised_pixels_by_hand(order, expected) -> None:
    stats = InputStats(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 5.0), channel_order=order)
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 6)
    seen = Normalize(stats)(ImageBatch(pixels, torch.tensor([[2, 3]])))
    torch.testing.assert_close(seen[0, :, :2, :3], torch.tensor(expected)[:, None, None].expand(3, 2, 3))
    assert not seen[..., 2:, :].any()  # padding is zero, whatever its pixels are
    assert not seen[..., 3:].any()


def test_caffe_weights_mean_bgr() -> None:
    backbone = replace(CONFIG.backbone, weights="absent.pth", weights_source="caffe")
    normalize = build_detector(replace(CONFIG, backbone=backbone), 3, pretrained=False).normalize
    assert normalize.bgr
    assert normalize.mean.flatten().tolist() == pytest.approx([102.9801, 115.9465, 122.7717])


@pytest.mark.slow
def test_overfits_two_rectangles() -> None:
    box = replace(CONFIG.box, pool="roi_align")
    anchors, test = settings.AnchorConfig(sizes=(24.0, 40.0)), settings.PostprocessConfig(score_threshold=0.5)
    detector = seeded(replace(CONFIG, anchors=anchors, box=box, test=test))
    image = torch.full((3, 64, 96), 100, dtype=torch.uint8)
    image[:, 8:40, 8:32] = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
    image[:, 24:56, 48:88] = torch.tensor([30, 60, 220], dtype=torch.uint8)[:, None, None]
    target = replace(make_target([[8, 8, 32, 40], [48, 24, 88, 56]], [0, 2]), masks=None)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer, totals = torch.optim.SGD(parameters, lr=0.01, momentum=0.9), []
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 0.01 if step < 60 else 0.001
        total = torch.stack(list(detector(ImageBatch.from_images([image]), [target]).values())).sum()
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


AT_ONCE = (IMAGE, make_image(64, 80).flip(1), IMAGE.flip(2))
OBJECTS = (TARGET, NOTHING, make_target([[4, 4, 30, 60]] * 9, [0] * 9, [False, True] + [False] * 7))


@pytest.mark.parametrize("kind", ["pyramid", "cascade", "tail"])
def test_images_at_once_are_as_each_alone_on_both_paths(kind) -> None:
    """The largest ones: convolutions see zeros in the padding of others instead of their own border."""
    detector, losses = shared(kind), []
    alone = [detect(detector, image)[0] for image in AT_ONCE]
    for path in (nullcontext, as_on_gpu):
        with path():
            joint = detect(detector, *AT_ONCE, make_image(48, 33))
            losses.append(shared(kind).train()(batch(*AT_ONCE, seeds=[3, 4, 5]), OBJECTS))
        for found, expected in zip(joint[:3], alone, strict=True):
            assert_same(found, expected)
            torch.testing.assert_close(found.masks, expected.masks, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    weight = detector.rpn.head.conv.weight
    gradients = [torch.autograd.grad(sum(own.values(), torch.zeros(())), weight) for own in losses]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_a_cpu_trains_masks_of_as_many_regions_as_an_image_has_positive_ones() -> None:
    detector, rows = seeded(replace(PYRAMID, box=replace(PYRAMID.box, samples_per_image=256))), list[int]()
    assert detector.mask_stage is not None
    detector.mask_stage.get_submodule("head").register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for path, first in ((nullcontext, TARGET), (as_on_gpu, TARGET), (nullcontext, NOTHING)):
        with path():
            detector(batch(IMAGE, IMAGE), [first, NOTHING])
    # Of two images, of which one has four; all regions, fewer than could be positive; one of padding each, so that a
    # graph is there for the gradient of nothing.
    assert rows == [8, 48, 2]


def test_a_pyramid_sees_a_batch_of_even_halves(monkeypatch) -> None:
    detector = shared("pyramid")
    monkeypatch.setattr(detector.backbone, "forward", forward := Mock(wraps=detector.backbone.forward))
    (found,) = detect(detector, make_image(37, 65))
    assert forward.call_args.args[0].shape == (1, 3, 64, 96)
    assert (found.boxes <= torch.tensor([65, 37, 65, 37])).all()


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match="VGGTail ends in vectors, not in maps"):
        seeded(replace(KINDS["tail"], backbone=KINDS["vgg"].backbone))(batch(IMAGE), [TARGET])
    with pytest.raises(ValueError, match=r"mask_rcnn has no parts \['neck'\]; it has .*'rpn'"):
        build_detector(PYRAMID, 3, fixed=("backbone", "neck"))
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(with_fixed(*PARTS), SolverConfig())


def with_fixed(*fixed: str) -> FasterRCNN:
    """A detector whose norm layers learn statistics, in training."""
    backbone = settings.DetectorBackboneConfig(name="resnet18", norm="bn", freeze_at=0, roi_size=4)
    return seeded(replace(CONFIG, backbone=backbone), fixed=fixed)


def wanted(*fixed: str) -> list[str]:
    return [loss for loss in LOSSES if ("rpn" if "rpn" in loss else "box_stage") not in fixed]


FIXED = [(), ("backbone",), ("rpn",), ("box_stage",), ("backbone", "rpn"), ("backbone", "box_stage")]


@pytest.mark.parametrize("fixed", FIXED, ids="+".join)
def test_fixed_parts_stay_bit_for_bit_while_the_others_learn(fixed) -> None:
    """As in 4-step training: without a loss, a gradient, or a moving statistic; they detect as ever."""
    detector = with_fixed(*fixed)
    for training in (False, True):
        detector.train(training)
        for part in PARTS:
            modes = {module.training for module in detector.get_submodule(part).modules()}
            assert modes == {training and part not in fixed}, part
        assert detector.training == training
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = build_optimizer(detector, SolverConfig(base_lr=0.01, momentum=0.9, weight_decay=0.1))
    for _ in range(2):
        losses = detector(batch(IMAGE, IMAGE.flip(2)), [TARGET, TARGET])
        assert list(losses) == wanted(*fixed)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    for name, parameter in detector.named_parameters():
        is_fixed = name.partition(".")[0] in fixed
        assert (parameter.requires_grad, parameter.grad is None) == (not is_fixed, is_fixed), name
    after = detector.state_dict()
    changed = {name.partition(".")[0] for name, old in before.items() if not torch.equal(after[name], old)}
    assert changed == set(PARTS) - set(fixed)
    detector.load_state_dict(before)
    assert_same(*detect(detector, IMAGE), *detect(with_fixed(), IMAGE))


def test_fixed_parts_take_the_mask_stage_along_and_have_filters_of_their_own(monkeypatch) -> None:
    for kind in ("pyramid", "tail"):
        detector = seeded(KINDS[kind], fixed=("box_stage",))
        check_losses(detector(batch(IMAGE), [TARGET]), detector, LOSSES[:2])
        assert not any(p.requires_grad for name, p in detector.named_parameters() if "mask_stage" in name)
    # The regions of an image without objects are proposals.  A fixed RPN was trained before, and what it proposes is
    # what a test will get.
    for fixed, idle in (((), "test_filter"), (("rpn",), "train_filter")):
        detector = with_fixed(*fixed)
        monkeypatch.setattr(getattr(detector.rpn, idle), "min_size", 1e6)
        assert detector(batch(IMAGE), [NOTHING])["box_class"] > 0


class TestGivenProposals:
    BOXES = torch.tensor([[4.0, 4, 44, 44], [36, 16, 76, 56], [0, 40, 24, 64]])
    GIVEN = Regions.pad([Proposals(boxes=BOXES, scores=torch.zeros(3))])
    EMPTY = Regions.pad([Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0))])

    def test_are_what_the_box_stage_learns_from(self, monkeypatch) -> None:
        for fixed in ((), ("rpn",), ("backbone", "rpn"), ("box_stage",)):
            stage: Any = (detector := with_fixed(*fixed)).box_stage
            monkeypatch.setattr(stage, "draw", draw := Mock(wraps=stage.draw))
            assert list(detector(batch(IMAGE), [TARGET], self.GIVEN)) == wanted(*fixed)
            drawn = [torch.equal(call.args[0].boxes[0], self.BOXES) for call in draw.call_args_list]
            assert drawn == [True] * (fixed != ("box_stage",))

    @torch.no_grad()
    def test_are_what_is_scored(self) -> None:
        detector, images = shared("resnet"), batch(IMAGE)
        assert detector(images, [NOTHING], self.EMPTY)["box_class"] == 0  # no region is left
        assert detector(images, [NOTHING], self.GIVEN)["box_class"] > 0
        (found,) = detector.eval()(images, None, self.GIVEN)
        scored = detector.boxes(detector.features(images), self.GIVEN, images.sizes)
        assert_same(found, *detector.postprocess(scored).ragged())
        assert len(found) <= 3 * 3  # proposals and classes
        assert len(detector(images, None, self.EMPTY)[0]) == 0
