"""Mirrors tools/convert_weights.py."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

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

TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"
CLASSES = ("cat", "dog")


def run_tool(*arguments: str | Path) -> tuple[str, int | str | None]:
    """What the tool prints, and what it ends with, None if all went well."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [TOOL.name, *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name="__main__")
        except SystemExit as end:
            return out.getvalue(), end.code
    return out.getvalue(), None


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
def test_torchvision(state: Mapping[str, Tensor], card: Path, tmp_path: Path, wrapped: bool) -> None:
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "model.pth")
    run = tmp_path / "run"
    out, status = run_tool(tmp_path / "model.pth", "--output", run, "--classes", card, "--norm-eps", "0")
    assert status is None
    assert "2 classes, resnet18" in out
    assert str(run / "checkpoints" / "0000000.safetensors") in out
    checkpoint = read_checkpoint(run)
    assert checkpoint.class_names == CLASSES
    assert checkpoint.config == load_config(DetectionConfig, run / "config.yaml")
    assert checkpoint.config.backbone.norm_eps == 0
    stem = "backbone.body.conv1.weight"
    assert checkpoint.weights[stem].equal(state[stem])


def test_errors_are_one_line(state: Mapping[str, Tensor], card: Path, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pth")
    _, status = run_tool(tmp_path / "model.pth", "--output", tmp_path / "run", "--classes", card)
    assert str(status).startswith("error: the names do not tell the eps")
    _, status = run_tool(tmp_path / "model.pth", "--output", tmp_path / "run", "--norm-eps", "0")
    assert str(status) == "error: the weights know 2 classes beside the background, class_names has 80: give 2 names"
    assert not (tmp_path / "run").exists()


def test_detectron2_is_told_by_its_names(card: Path, tmp_path: Path) -> None:
    torch.save({"model": {"proposal_generator.rpn_head.conv.weight": torch.zeros(1)}}, tmp_path / "model.pth")
    arguments = (tmp_path / "model.pth", "--output", tmp_path / "run", "--classes", card)
    _, status = run_tool(*arguments)
    assert "Detectron2" in str(status)
    _, status = run_tool(*arguments, "--norm-eps", "0")
    assert str(status) == "error: --norm-eps is for torchvision's weights, these are Detectron2's; leave it out"
