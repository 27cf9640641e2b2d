"""Mirrors detection/tasks/convert.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.checkpoint import read_checkpoint

Resdet = Callable[..., Any]
CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def state() -> Mapping[str, Tensor]:
    body = resnet18(norm_layer=FrozenBatchNorm2d)
    stages = {f"layer{number + 1}": str(number) for number in range(4)}
    backbone = BackboneWithFPN(body, stages, [64, 128, 256, 512], out_channels=16)
    model = FasterRCNN(backbone, box_head=TwoMLPHead(16 * 7 * 7, 8), box_predictor=FastRCNNPredictor(8, 3))
    return model.state_dict()


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "pets.yaml"
    path.write_text("format: coco\nclasses: [cat, dog]\nsplits: {}\n")
    return path


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "training_script"])
def test_torchvision(state: Mapping[str, Tensor], card: Path, tmp_path: Path, wrapped: bool, resdet: Resdet) -> None:
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "model.pth")
    run = tmp_path / "run"
    outcome = resdet("convert", tmp_path / "model.pth", "--output", run, "--classes", card, "--norm-eps", "0")
    assert outcome.status == 0
    assert "2 classes, resnet18" in outcome.out
    assert str(run / "checkpoints" / "0000000.safetensors") in outcome.out
    checkpoint = read_checkpoint(run)
    assert checkpoint.class_names == CLASSES
    assert checkpoint.config == load_config(DetectionConfig, run / "config.yaml")
    assert checkpoint.config.backbone.norm_eps == 0
    stem = "backbone.body.conv1.weight"
    assert checkpoint.weights[stem].equal(state[stem])


def test_errors_are_one_line(state: Mapping[str, Tensor], card: Path, tmp_path: Path, resdet: Resdet) -> None:
    torch.save(state, tmp_path / "model.pth")
    outcome = resdet("convert", tmp_path / "model.pth", "--output", tmp_path / "run", "--classes", card)
    assert outcome.err.startswith("error: the names do not tell the eps")
    outcome = resdet("convert", tmp_path / "model.pth", "--output", tmp_path / "run", "--norm-eps", "0")
    assert outcome.err == "error: the weights know 2 classes beside the background, class_names has 80: give 2 names\n"
    assert not (tmp_path / "run").exists()


def test_detectron2_is_told_by_its_names(card: Path, tmp_path: Path, resdet: Resdet) -> None:
    torch.save({"model": {"proposal_generator.rpn_head.conv.weight": torch.zeros(1)}}, tmp_path / "model.pth")
    arguments = (tmp_path / "model.pth", "--output", tmp_path / "run", "--classes", card)
    outcome = resdet("convert", *arguments)
    assert "Detectron2" in outcome.err
    outcome = resdet("convert", *arguments, "--norm-eps", "0")
    assert outcome.err == "error: --norm-eps is for torchvision's weights, these are Detectron2's; leave it out\n"
