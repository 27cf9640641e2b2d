from collections.abc import Mapping

import pytest
import torch
import yaml
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, parse_config
from detection.engine.checkpoint import read_checkpoint, write_converted

CLASSES = ("cat", "dog")
C4 = """
backbone: {weights_source: msra, roi_size: 14}
anchors: {sizes: [32, 64, 128, 256, 512], offset: 0}
rpn: {channels: 1024, post_nms_test: 1000, min_size: 0}
box: {pool: roi_align, sampling_ratio: 0}
test: {score_threshold: 0.0001, nms_iou: 0.5, max_detections: 300}
data: {shorter_side: 1024, longer_side: 2048}
"""


@pytest.fixture(scope="module")
def state() -> Mapping[str, Tensor]:
    stages = {f"layer{number + 1}": str(number) for number in range(4)}
    body = resnet18(norm_layer=FrozenBatchNorm2d)
    backbone = BackboneWithFPN(body, stages, [64, 128, 256, 512], out_channels=16)
    model = FasterRCNN(backbone, box_head=TwoMLPHead(16 * 7 * 7, 8), box_predictor=FastRCNNPredictor(8, 3))
    return model.state_dict()


@pytest.fixture
def card(write_card) -> str:
    return write_card("coco", card="pets", splits={})


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "training_script"])
def test_torchvision_there_and_back(state, card, tmp_path, wrapped, resdet, succeeds) -> None:
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "model.pth")
    run, back = tmp_path / "run", tmp_path / "back.pth"
    said = succeeds("convert", tmp_path / "model.pth", "--output", run, "--classes", card, "--norm-eps", "0")
    recipe = "images of 800 to 1333 px, 1000 proposals, scores from 0.05"
    for part in ("2 classes, resnet18", str(run / "checkpoints" / "0000000.safetensors"), recipe):
        assert part in said
    checkpoint = read_checkpoint(run)
    assert checkpoint.class_names == CLASSES
    assert checkpoint.config == load_config(DetectionConfig, run / "config.yaml")
    assert checkpoint.config.backbone.norm_eps == 0
    stem = "backbone.body.conv1.weight"
    assert checkpoint.weights[stem].equal(state[stem])
    said = succeeds("convert", run, "--to", "torchvision", "--output", back)
    assert f"{back}; labels 1 to 2" in said
    assert "model = fasterrcnn_resnet18_fpn(weights=None, weights_backbone=None, num_classes=3)" in said
    written = torch.load(back, weights_only=True)
    assert set(written) == set(state)
    assert all(written[name].equal(value) for name, value in state.items() if "bbox_pred" not in name)
    for kind, output, options, status, message in (
        ("detectron2", back, (), 1, "error: backbone.name resnet18"),
        ("detectron2", tmp_path / "x", (), 1, "error: --output takes a .pth file with --to detectron2"),
        ("torchvision", back, ("--classes", card), 2, ""),
    ):
        outcome = resdet("convert", run, "--to", kind, "--output", output, *options)
        assert (outcome.status, outcome.err.startswith(message)) == (status, True)


def test_settings_of_detectron2(card, tmp_path, resdet) -> None:
    """A C4 for two classes, to here with its settings, and back with the same."""
    config = parse_config(DetectionConfig, C4)
    with torch.device("meta"):
        shapes = build_detector(config, 2, pretrained=False).state_dict()
    weights = {name: torch.full(value.shape, 0.01) for name, value in shapes.items()}
    run, file = write_converted(tmp_path / "run.safetensors", config, CLASSES, weights), tmp_path / "model.pth"
    assert resdet("convert", run, "--to", "detectron2", "--output", file).status == 0
    heads = yaml.safe_load(file.with_suffix(".yaml").read_text())["MODEL"]["ROI_HEADS"]
    assert (heads["NUM_CLASSES"], heads["SCORE_THRESH_TEST"]) == (2, 0.0001)
    arguments = ("convert", file, "--classes", card, "--output", tmp_path / "again")
    outcome = resdet(*arguments, "--settings", file.with_suffix(".yaml"))
    assert outcome.out.splitlines()[-1].endswith("(--settings config.yaml says otherwise): nothing")
    again = read_checkpoint(tmp_path / "again")
    assert (again.config.test, again.config.data) == (config.test, config.data)
    assert set(again.weights) == set(weights)
    assert "INPUT.MIN_SIZE_TEST 800, INPUT.MAX_SIZE_TEST 1333" in resdet(*arguments).out


def test_errors_are_one_line(state, card, tmp_path, resdet) -> None:
    file, theirs, run = tmp_path / "model.pth", tmp_path / "theirs.pth", tmp_path / "run"
    torch.save(state, file)
    torch.save({"model": {"proposal_generator.rpn_head.conv.weight": torch.zeros(1)}}, theirs)
    counted = "the weights know 2 classes besides the background, class_names has 80: give 2 names\n"
    theirs_alone = "--norm-eps is for torchvision's weights, these are Detectron2's; leave it out\n"
    for arguments, message in (
        ((file, "--classes", card), "the names do not tell the eps"),
        ((file, "--norm-eps", "0"), counted),
        ((theirs, "--classes", card), ""),
        ((theirs, "--norm-eps", "0"), theirs_alone),
        ((file, "--settings", run), "--settings is for Detectron2's weights, these are not; leave it out\n"),
    ):
        outcome = resdet("convert", *arguments, "--output", run)
        assert outcome.err.startswith(f"error: {message}")
        assert outcome.err.count("\n") == 1
    assert "Detectron2" in resdet("convert", theirs, "--classes", card, "--output", run).err
    assert not run.exists()
