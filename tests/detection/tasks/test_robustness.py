"""Mirrors detection/tasks/robustness.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.data.corruptions import CORRUPTIONS
from detection.data.digits import CLASSES, write_digits
from detection.engine.checkpoint import Checkpoint
from detection.report.robustness import write_robustness
from detection.tasks.robustness import corrupted_files, run_corrupted
from detection.tasks.test import run_test


@pytest.mark.slow
def test_detections_under_each_corruption_lie_beside_the_result(tmp_path) -> None:
    config = DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(channels=16, pre_nms_test=16, post_nms_test=4, min_size=2.0),
        test=PostprocessConfig(score_threshold=0.0),
        data=DetectorDataConfig(
            test=("digits:test",),
            root=str(write_digits(tmp_path / "root", num_train=1, num_test=3).parent),
            shorter_side=48,
            longer_side=64,
            workers=0,
        ),
        device="cpu",
    )
    torch.manual_seed(0)
    weights = build_detector(config, len(CLASSES)).state_dict()
    checkpoint = Checkpoint(Path("trained.safetensors"), weights, config, CLASSES, 0)
    run, said = tmp_path / "run", list[str]()
    assert corrupted_files(run) is None
    run_test(config, checkpoint, run)
    run_corrupted(config, checkpoint, run, say=said.append)
    files = corrupted_files(run)
    assert files is not None
    assert len(files) == len(said) == 12 == len(CORRUPTIONS)
    clean = json.loads((run / "detections.json").read_text())
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert all(found[name] != clean for name in ("blur_3", "noise_3", "jpeg_3", "brightness_3"))
    assert {entry["image_id"] for entry in found["blur_3"]} <= {2, 3, 4}
    table = write_robustness(run)
    numbers = json.loads((run / "robustness.json").read_text())
    assert list(numbers["corruptions"]) == [*files]
    assert numbers["clean"]["low"] <= numbers["clean"]["value"] <= numbers["clean"]["high"]
    assert "brightness_3" in table
    said.clear()
    files["noise_2"].unlink()
    run_corrupted(config, checkpoint, run, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["noise_2"]  # the others are kept
    assert json.loads(files["noise_2"].read_text()) == found["noise_2"]
