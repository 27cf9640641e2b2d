"""Mirrors weights/detectron2_settings.py: Detectron2's YAML files."""

from pathlib import Path
from typing import Any

import pytest

from detection.weights.detectron2_settings import apply_settings, read_settings

# As configs/LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml writes them, Python's tuples included.
LVIS = """
_BASE_: "../Base-RCNN-FPN.yaml"
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  MASK_ON: True
  RESNETS: {DEPTH: 50, STRIDE_IN_1X1: False}
  ROI_HEADS: {NUM_CLASSES: 1230, SCORE_THRESH_TEST: 0.0001}
  ROI_BOX_HEAD:
    BBOX_REG_WEIGHTS: (20.0, 20.0, 10.0, 10.0)
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
DATASETS:
  TRAIN: ("lvis_v0.5_train",)
TEST:
  DETECTIONS_PER_IMAGE: 300  # LVIS allows up to 300
SOLVER:
  STEPS: (60000, 80000)
"""
# Keys that the config.yaml of any training holds, with their values there.
DUMP = """
VERSION: 2
DATALOADER: {NUM_WORKERS: 4, SAMPLER_TRAIN: TrainingSampler}
GLOBAL: {HACK: 1.0}
INPUT: {CROP: {ENABLED: false, SIZE: [0.9, 0.9]}, FORMAT: BGR, MASK_FORMAT: polygon, MIN_SIZE_TRAIN_SAMPLING: choice}
MODEL:
  ANCHOR_GENERATOR: {ANGLES: [[-90, 0, 90]], NAME: DefaultAnchorGenerator, SIZES: [[32], [64], [128], [256], [512]]}
  BACKBONE: {FREEZE_AT: 2, NAME: build_resnet_fpn_backbone}
  FPN: {FUSE_TYPE: sum, IN_FEATURES: [res2, res3, res4, res5], NORM: "", OUT_CHANNELS: 256}
  KEYPOINT_ON: false
  PANOPTIC_FPN: {COMBINE: {ENABLED: true}}
  RESNETS: {DEFORM_ON_PER_STAGE: [false, false, false, false], DEPTH: 50, NORM: FrozenBN, RES5_DILATION: 1}
  RETINANET: {NMS_THRESH_TEST: 0.5}
  ROI_BOX_HEAD: {BBOX_REG_LOSS_TYPE: smooth_l1, NAME: FastRCNNConvFCHead, NORM: "", USE_FED_LOSS: false}
  ROI_HEADS: {IOU_LABELS: [0, 1], IOU_THRESHOLDS: [0.5], PROPOSAL_APPEND_GT: true}
  ROI_MASK_HEAD: {CLS_AGNOSTIC_MASK: false, NORM: GN, POOLER_SAMPLING_RATIO: 0}
  RPN: {BBOX_REG_LOSS_TYPE: smooth_l1, CONV_DIMS: [-1], HEAD_NAME: StandardRPNHead, LOSS_WEIGHT: 1.0}
OUTPUT_DIR: ./output
SOLVER: {AMP: {ENABLED: false}, BASE_LR: 0.02}
TEST: {AUG: {ENABLED: false, FLIP: true}, EVAL_PERIOD: 0, PRECISE_BN: {ENABLED: false}}
"""


def applied(settings: Any) -> dict[str, Any]:
    """Sections of a Mask R-CNN with a pyramid after ``settings``."""
    sections = {
        "architecture": "mask_rcnn",
        "backbone": {"weights_source": "msra", "fpn": True, "dilate_c5": None},
        "box": {"head": "fc"},
        "mask": {"pool_size": 14, "norm": None},
    }
    apply_settings(sections, settings)
    return sections


def read(path: Path, text: str) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return read_settings(path)


def test_sections_are_flattened_and_used(tmp_path) -> None:
    settings = read(tmp_path / "lvis" / "config.yaml", LVIS)
    assert settings["SOLVER.STEPS"] == (60000, 80000)
    sections = applied(settings)
    assert sections["test"] == {"score_threshold": 0.0001, "max_detections": 300}
    assert sections["backbone"]["stride_in"] == "3x3"
    assert sections["box"]["coder_weights"] == (20.0, 20.0, 10.0, 10.0)
    assert applied({"MODEL.PIXEL_STD": [57.375, 57.120, 58.395]})["backbone"]["weights_source"] == "caffe2"


def test_a_whole_config_of_a_training_is_understood(tmp_path) -> None:
    sections = applied(read(tmp_path / "config.yaml", DUMP))
    assert sections["anchors"]["sizes"] == [32, 64, 128, 256, 512]
    assert sections["mask"]["norm"] == "gn"
    assert (sections["backbone"]["norm"], sections["backbone"]["freeze_at"]) == ("frozen_bn", 2)
    assert "solver" not in sections


def test_a_base_lies_under_its_file(tmp_path) -> None:
    (tmp_path / "Base-RCNN-FPN.yaml").write_text("INPUT: {MIN_SIZE_TEST: 640, MAX_SIZE_TEST: 640}")
    assert read(tmp_path / "lvis" / "config.yaml", LVIS + "\nVERSION: 2\n")["INPUT.MIN_SIZE_TEST"] == 640
    cityscapes = "_BASE_: Base-RCNN-FPN.yaml\nINPUT: {MIN_SIZE_TEST: 1024, MAX_SIZE_TEST: 2048}"
    sections = applied(read(tmp_path / "cityscapes.yaml", cityscapes))
    assert sections["data"] == {"shorter_side": 1024, "longer_side": 2048}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: mine.yaml", r"its _BASE_ .*mine\.yaml is missing; give the config\.yaml that Detectron2 wrote"),
        ("_BASE_: config.yaml", r"config\.yaml is its own _BASE_"),
        ("- MODEL", "must be a mapping of sections, got a list"),
        ("MODEL: [", "can't be read"),
        ("X: !!python/object/apply:os.getcwd []", "can't be read"),
    ],
)
def test_a_file_that_says_nothing_or_is_missing_is_refused(tmp_path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "config.yaml", text)
    with pytest.raises(ValueError, match=r"Detectron2's settings .*none\.yaml can't be read"):
        read_settings(tmp_path / "none.yaml")
