"""Operations that would mix devices on a GPU, found without one: torch's fake tensors know their device and no values.

No shape in the model depends on a value, so whole steps and tests run under them; backward passes can't, since they ask
the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional

from backbones.registry import build_backbone
from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    KeypointConfig,
    MaskConfig,
    RPNConfig,
)
from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.engine.ema import EMA
from detection.engine.optim import build_optimizer, clip_gradients
from detection.model.box_stage import BoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.losses import smooth_l1
from detection.padded import Found, Regions, Targets
from detection.structures import ImageBatch, Target, present

SIZE = (64, 96)
SIZES = [SIZE, (48, 96)]
RPN = RPNConfig(channels=8, samples_per_image=16)
PYRAMID = DetectorBackboneConfig(name="resnet18", norm="gn", fpn=True, fpn_channels=8)
FC = BoxConfig(head="fc", pool="roi_align", head_channels=8, class_agnostic=True)
LEVELS = AnchorConfig(sizes=(8.0, 16.0, 32.0, 64.0, 128.0))
CONFIGS = {
    "tail": DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", roi_size=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPN,
        box=BoxConfig(context=True),
    ),
    "pyramid": DetectionConfig(
        backbone=PYRAMID, anchors=LEVELS, rpn=RPN, box=FC, architecture="mask_rcnn", mask=MaskConfig(channels=8)
    ),
    "keypoints": DetectionConfig(
        backbone=PYRAMID,
        anchors=LEVELS,
        rpn=RPN,
        box=FC,
        architecture="keypoint_rcnn",
        keypoint=KeypointConfig(names=("head", "tail"), convs=1, channels=8),
    ),
}


@pytest.fixture(autouse=True)
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


@pytest.fixture(params=list(CONFIGS))
def detector(request: pytest.FixtureRequest, fake: FakeTensorMode) -> FasterRCNN:
    return make_detector(request.param, fake)


def make_detector(name: str, fake: FakeTensorMode) -> FasterRCNN:
    with unset_fake_temporarily():
        detector = build_detector(CONFIGS[name], 3)
    assert isinstance(detector, FasterRCNN)
    move(detector, fake)
    return detector


def move(model: nn.Module, fake: FakeTensorMode) -> None:
    """From the CPU, where it was built; a tensor that is neither parameter nor buffer stays behind."""
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            moved = fake.from_tensor(parameter).to("cuda").detach()
            setattr(module, key, nn.Parameter(moved, requires_grad=parameter.requires_grad))
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, fake.from_tensor(buffer).to("cuda"))


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, device="cuda")


def make_batch() -> Batch:
    """As a loader gives it, on the CPU."""
    images = ImageBatch(
        torch.zeros(2, 3, *SIZE, dtype=torch.uint8), torch.tensor(SIZES), torch.zeros(2, dtype=torch.int64)
    )
    targets = Targets.pad([make_target(), make_target()])
    return Batch(images, targets, (0, 1), ("a.jpg", "b.jpg"), make_regions("cpu"))


def make_target() -> Target:
    return Target(
        boxes=torch.rand(2, 4),
        labels=torch.zeros(2, dtype=torch.int64),
        ignore=torch.zeros(2, dtype=torch.bool),
        masks=torch.zeros(2, *SIZE, dtype=torch.bool),
        keypoints=torch.rand(2, 2, 3),
    )


def make_regions(device: str) -> Regions:
    boxes = torch.rand(2, 5, 4, device=device)
    return Regions(boxes=boxes, valid=torch.ones_like(boxes[..., 0], dtype=torch.bool), scores=boxes[..., 0])


def test_mixed_devices_are_found() -> None:
    on_cpu, on_gpu = torch.rand(2), rand(2)
    with pytest.raises(RuntimeError, match="cuda"):
        on_gpu.add(on_cpu)


def test_a_batch_arrives_whole() -> None:
    moved = make_batch().to("cuda")
    assert moved.proposals is not None
    parts = [present(part) for part in (moved.images, moved.targets, moved.proposals)]
    tensors = [tensor for part in parts for tensor in part.values() if isinstance(tensor, Tensor)]
    assert len(tensors) == 13
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


@pytest.mark.parametrize(
    "name", ["plain18", "seresnet18", "resnet18d", "preact_resnet18", "cifar_resnet20", "all_cnn_c", "vgg11_bn"]
)
def test_features_of_a_backbone_of_every_kind(fake: FakeTensorMode, name: str) -> None:
    with unset_fake_temporarily():
        backbone = build_backbone(name)
    move(backbone, fake)
    features = backbone(rand(2, 3, *SIZE))
    assert {feature.device.type for feature in features.values()} == {"cuda"}


def test_features_and_predictions_of_the_rpn(detector: FasterRCNN) -> None:
    images = make_batch().to("cuda").images
    features = detector.features(images)
    logits, deltas = zip(*(detector.rpn.head(feature) for feature in features), strict=True)
    anchors = [make(*feature.shape[-2:], SIZE) for make, feature in zip(detector.rpn.anchors, features, strict=True)]
    assert torch.cat(logits, 1).shape == (2, len(torch.cat(anchors)))
    decoded = detector.rpn.coder.decode(torch.cat(deltas, 1), torch.cat(anchors))
    assert {tensor.device.type for tensor in (*features, *logits, decoded)} == {"cuda"}


def stage_of(detector: FasterRCNN) -> BoxStage:
    assert isinstance(detector.box_stage, BoxStage)
    return detector.box_stage


def features_of(detector: FasterRCNN) -> list[Tensor]:
    return detector.features(make_batch().to("cuda").images)


def test_pooling_head_and_boxes(detector: FasterRCNN) -> None:
    stage = stage_of(detector)
    scored = stage(features_of(detector), make_regions("cuda"), make_batch().to("cuda").images.sizes)
    assert scored.boxes.shape[:2] == (2, 5)
    assert {tensor.device.type for tensor in (scored.boxes, scored.scores, scored.valid)} == {"cuda"}


def test_masks_of_detections(fake: FakeTensorMode) -> None:
    detector = make_detector("pyramid", fake)
    labels = torch.zeros(2, 4, dtype=torch.int64, device="cuda")
    found = detector.masks(features_of(detector), Found(rand(2, 4, 4), labels.bool(), rand(2, 4), labels))
    assert found.masks is not None
    assert found.masks.device.type == "cuda"


def test_keypoints_of_detections(fake: FakeTensorMode) -> None:
    detector, labels = make_detector("keypoints", fake), torch.zeros(2, 4, dtype=torch.int64, device="cuda")
    found = detector.keypoints(features_of(detector), Found(rand(2, 4, 4), labels.bool(), rand(2, 4), labels))
    assert found.keypoints is not None
    assert found.keypoints.device.type == "cuda"


def test_loss_formulas(detector: FasterRCNN) -> None:
    stage, boxes, images = stage_of(detector), rand(5, 4), torch.tensor([0, 0, 0, 1, 1], device="cuda")
    sizes = make_batch().to("cuda").images.sizes
    logits, deltas = stage.predictor(stage.vectors(features_of(detector), boxes, images, sizes))
    labels, goals = torch.zeros(5, dtype=torch.int64, device="cuda"), rand(5, 4)
    chosen = deltas[torch.arange(5, device="cuda"), labels if deltas.shape[1] > 1 else 0]
    encoded = stage.coder.encode(goals, boxes)
    losses = [
        functional.cross_entropy(logits, labels, reduction="sum"),
        smooth_l1(chosen, encoded, stage.smooth_l1_beta, weight=rand(5)),
    ]
    assert {loss.device.type for loss in losses} == {"cuda"}


def test_a_whole_step_forward(detector: FasterRCNN) -> None:
    batch = make_batch().to("cuda")
    losses = detector(batch.images, batch.targets)
    assert len(losses) >= 4
    assert {loss.device.type for loss in losses.values()} == {"cuda"}


def test_a_whole_test(detector: FasterRCNN) -> None:
    with torch.no_grad():
        found = detector.eval().detect(make_batch().to("cuda").images)
    assert found.boxes.shape[::2] == (2, 4)
    assert {tensor.device.type for tensor in present(found).values()} == {"cuda"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_the_optimizer_and_of_the_average(fake: FakeTensorMode, optimizer: Literal["sgd", "adamw"]) -> None:
    detector, average = make_detector("tail", fake), EMA(nn.Identity(), 0.9)
    average.model = make_detector("tail", fake)  # deepcopy would copy the mode of fake tensors, too
    for parameter in detector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    descent = build_optimizer(detector, SolverConfig(optimizer=optimizer))
    norm = clip_gradients(descent, 1.0)
    descent.step()
    average.update(detector)
    assert norm.device.type == "cuda"
    assert {tensor.device.type for tensor in average.model.state_dict().values()} == {"cuda"}
