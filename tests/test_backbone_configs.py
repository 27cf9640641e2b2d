"""Every file of configs/backbones: it loads, it builds a detector, and two of them take a step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.model.faster_rcnn import FasterRCNN
from detection.structures import ImageBatch, Target

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "configs" / "backbones").glob("*.yaml") if path.stem != "recipe")

# Name of the model, and channels of its map of stride 16.
NETWORKS = {
    "convnext_tiny": ("timm:convnext_tiny.fb_in1k", 384),
    "densenet121": ("timm:densenet121", 1024),
    "densenet161": ("timm:densenet161", 2112),
    "efficientnet_b0": ("timm:efficientnet_b0", 112),
    "efficientnet_lite0": ("timm:tf_efficientnet_lite0", 112),
    "googlenet": ("torchvision:googlenet", 832),
    "inception_v3": ("timm:inception_v3", 768),
    "res2net50": ("timm:res2net50_26w_4s", 1024),
    "resnest50": ("timm:resnest50d", 1024),
    "resnext50_32x4d": ("timm:resnext50_32x4d", 1024),
    "xception": ("timm:legacy_xception", 728),
}


def load(path: Path) -> DetectionConfig:
    return load_config(DetectionConfig, path)


def build(config: DetectionConfig) -> FasterRCNN:
    """The detector of ``config``, without memory for its weights."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        detector = build_detector(config, len(load_card("voc2007").classes), pretrained=False)
        assert isinstance(detector, FasterRCNN)
        return detector


def test_every_network_has_its_file() -> None:
    assert [path.stem for path in FILES] == list(NETWORKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_differ_from_the_recipe_of_resnet50_in_the_network_alone(path: Path) -> None:
    config, resnet50 = load(path), load(ROOT / "configs" / "voc" / "resnet50_c4_0712.yaml")
    assert config.backbone.name == NETWORKS[path.stem][0]
    assert (config.backbone.weights, config.backbone.freeze_at) == (config.backbone.name.partition(":")[0], 2)
    solver = resnet50.solver
    if path.stem == "convnext_tiny":
        solver = replace(solver, optimizer="adamw", base_lr=1e-4, weight_decay=0.05)
    assert replace(config, backbone=resnet50.backbone) == replace(
        resnet50, box=replace(resnet50.box, head="fc"), solver=solver
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_headers_name_their_own_command(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"resdet train configs/backbones/{path.stem}.yaml" in header
    assert all(f"# {title}:" in header for title in ("Command", "Hardware", "Expected"))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_build_a_detector_over_a_map_of_stride_16(path: Path) -> None:
    backbone = build(load(path)).backbone
    assert {spec.stride: spec.channels for spec in backbone.specs.values()} == {16: NETWORKS[path.stem][1]}
    assert any(not parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_maps_are_exact_for_odd_sizes_and_gradients_reach_what_is_trained(path: Path) -> None:
    backbone = build(load(path)).backbone
    (spec,) = backbone.specs.values()
    for height, width in ((65, 97), (33, 50)):
        (feature,) = backbone(torch.zeros(2, 3, height, width, device="meta")).values()
        assert feature.shape == (2, spec.channels, math.ceil(height / 16), math.ceil(width / 16))
    feature.sum().backward()
    parameters = list(backbone.parameters())
    assert [p.grad is not None for p in parameters] == [p.requires_grad for p in parameters]


def test_the_head_cannot_be_a_tail() -> None:
    config = load(ROOT / "configs" / "backbones" / "densenet121.yaml")
    with pytest.raises(ValueError, match=r"timm:densenet121 has no tail; set box\.head to fc"):
        build(replace(config, box=replace(config.box, head="tail")))


def test_a_pyramid_over_timm() -> None:
    config = load(ROOT / "configs" / "backbones" / "densenet121.yaml")
    anchors = replace(config.anchors, sizes=(32.0, 64.0, 128.0, 256.0, 512.0))
    detector = build(replace(config, backbone=replace(config.backbone, fpn=True, fpn_channels=8), anchors=anchors))
    assert [spec.stride for spec in detector.backbone.specs.values()] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("stem", ["efficientnet_lite0", "googlenet"])
def test_a_step_reaches_every_trainable_layer(stem: str) -> None:
    config = load(ROOT / "configs" / "backbones" / f"{stem}.yaml")
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = replace(config, backbone=replace(config.backbone, norm="bn"), rpn=replace(config.rpn, allow_outside=True))
    detector = build_detector(replace(config, box=replace(config.box, head_channels=16)), 3, pretrained=False)
    images = ImageBatch.from_images([torch.randint(0, 256, (3, 97, 130), dtype=torch.uint8) for _ in range(2)])
    boxes = torch.tensor([[10.0, 10, 90, 90], [40, 20, 120, 80]])
    targets = [Target(boxes=boxes, labels=torch.tensor([0, 2]), ignore=torch.zeros(2, dtype=torch.bool))] * 2
    losses = detector(images, targets)
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    assert loss.isfinite()
    trained = [parameter for parameter in detector.backbone.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    detections = detector.eval()(images)
    assert len(detections) == 2
