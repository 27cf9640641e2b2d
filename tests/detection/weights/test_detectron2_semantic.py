"""Mirrors detection/weights/detectron2_semantic.py, against a head written down from Detectron2's description."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from detection.build import build_detector
from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig, SemanticConfig
from detection.model.semantic import SemanticNetwork
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_semantic import our_semantic_name, their_semantic_name
from detection.weights.to_detectron2 import to_detectron2

CLASSES = tuple(f"class {number}" for number in range(54))
CONVS = {"p2": (0,), "p3": (0,), "p4": (0, 2), "p5": (0, 2, 4)}  # an upsampling lies between two


def head_state() -> dict[str, Tensor]:
    """Random weights of SemSegFPNHead of 54 classes, 128 channels and group normalisation."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for level, places in CONVS.items():
        for place in places:
            shape = (128, 128 if place else 256, 3, 3)
            state[f"sem_seg_head.{level}.{place}.weight"] = torch.randn(shape, generator=generator) * 0.03
            state[f"sem_seg_head.{level}.{place}.norm.weight"] = 1 + 0.1 * torch.randn(128, generator=generator)
            state[f"sem_seg_head.{level}.{place}.norm.bias"] = 0.1 * torch.randn(128, generator=generator)
    state["sem_seg_head.predictor.weight"] = torch.randn(54, 128, 1, 1, generator=generator)
    state["sem_seg_head.predictor.bias"] = torch.randn(54, generator=generator)
    return state


def reference(state: dict[str, Tensor], levels: dict[str, Tensor]) -> Tensor:
    """Returns the logits of stride 4 that Detectron2's head gives."""
    total = torch.zeros(())
    for level, places in CONVS.items():
        x = levels[level]
        for place in places:
            name = f"sem_seg_head.{level}.{place}"
            x = functional.conv2d(x, state[f"{name}.weight"], padding=1)
            x = functional.group_norm(x, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]).relu()
            if level != "p2":
                x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    return functional.conv2d(total, state["sem_seg_head.predictor.weight"], state["sem_seg_head.predictor.bias"])


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    """A semantic FPN over ResNet-50 by Detectron2's names."""
    config = DetectionConfig(
        architecture="semantic_fpn",
        backbone=DetectorBackboneConfig(name="resnet50", weights_source="msra", fpn=True, freeze_at=2),
        semantic=SemanticConfig(norm="gn"),
        solver=DetectorSolverConfig(best_metric=None),
    )
    torch.manual_seed(0)
    network = build_detector(config, len(CLASSES), pretrained=False)
    state, _ = to_detectron2(config, CLASSES, network.state_dict())
    return state | head_state()


def test_names_and_shapes_are_detectron2s(theirs) -> None:
    config = DetectionConfig(
        architecture="semantic_fpn",
        backbone=DetectorBackboneConfig(name="resnet50", fpn=True),
        solver=DetectorSolverConfig(best_metric=None),
    )
    own = build_detector(config, len(CLASSES), pretrained=False).state_dict()
    head = {their_semantic_name(name): value.shape for name, value in own.items() if name.startswith("head.")}
    assert head == {name: value.shape for name, value in head_state().items()}
    assert all(their_semantic_name(our_semantic_name(name)) == name for name in theirs)
    assert {"backbone.bottom_up.res2.0.conv1.norm.running_mean", "backbone.fpn_output5.bias"} < theirs.keys()


@torch.no_grad()
def test_the_head_gives_detectron2s_logits(theirs) -> None:
    config, weights = convert_detectron2(theirs, class_names=CLASSES)
    network = build_detector(config, len(CLASSES), pretrained=False).eval()
    network.load_state_dict(weights, strict=False)
    assert isinstance(network, SemanticNetwork)
    generator = torch.Generator().manual_seed(1)
    levels = {f"p{k}": torch.randn(1, 256, 128 >> k, 192 >> k, generator=generator) for k in range(2, 7)}
    found = network.head(list(levels.values()))
    torch.testing.assert_close(found, reference(theirs, levels), rtol=1e-4, atol=1e-4)


def test_it_goes_back_with_its_settings(theirs) -> None:
    settings = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5}
    config, weights = convert_detectron2(theirs, class_names=CLASSES, settings=settings)
    assert (config.architecture, config.semantic.loss_weight, config.backbone.stride_in) == ("semantic_fpn", 0.5, "1x1")
    back, written = to_detectron2(config, CLASSES, weights)
    assert back.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in back.items())
    assert written["MODEL.META_ARCHITECTURE"] == "SemanticSegmentor"
    assert (written["MODEL.SEM_SEG_HEAD.NORM"], written["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]) == ("GN", 54)
    assert not any(name.startswith(("MODEL.RPN", "MODEL.ROI", "MODEL.ANCHOR")) for name in written)


def test_other_settings_are_refused(theirs) -> None:
    for name, value in (("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8), ("MODEL.META_ARCHITECTURE", "PanopticFPN")):
        with pytest.raises(ValueError, match=name):
            convert_detectron2(theirs, class_names=CLASSES, settings={name: value})
    with pytest.raises(ValueError, match="54 classes"):
        convert_detectron2(theirs, class_names=CLASSES[1:])
    config, weights = convert_detectron2(theirs, class_names=CLASSES)
    dilated = replace(config, architecture="fcn", backbone=replace(config.backbone, fpn=False))
    with pytest.raises(ValueError, match="architecture fcn can't go to detectron2"):
        to_detectron2(dilated, CLASSES, weights)
