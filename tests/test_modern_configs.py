"""The modern recipes, held for every file of configs/coco/modern and configs/voc/modern.

The values are those of Detectron2's configs of 2019; only the files with a figure of its model zoo claim one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detection.build import build_detector
from detection.config.detection import DetectionConfig, JitterConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.model.architecture import Architecture
from detection.model.cascade import CascadeBoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.mask_stage import MaskStage
from detection.model.one_stage import OneStage
from detection.model.pointrend import PointStage

ROOT = Path(__file__).parents[1]
COCO, VOC = ROOT / "configs" / "coco" / "modern", ROOT / "configs" / "voc" / "modern"
FILES = [path for folder in (COCO, VOC) for path in sorted(folder.glob("*.yaml")) if path.stem != "recipe"]
OWN = COCO / "mask_rcnn_r50_fpn_lsj_adamw.yaml"  # the one that is not Detectron2's
ONE_STAGE = [COCO / f"{name}_r50_fpn_1x.yaml" for name in ("fcos", "retinanet")]
REGIONS = [path for path in FILES if path not in ONE_STAGE]
BASELINES = [path for path in REGIONS if path != OWN]

# The figures of Detectron2's MODEL_ZOO.md and projects/PointRend; None: it has none.
FIGURES = {
    "cascade_mask_rcnn_r50_fpn_3x": ("44.3", "38.5"),
    "cascade_rcnn_r50_fpn_1x": None,
    "faster_rcnn_r101_fpn_3x": ("42.0",),
    "faster_rcnn_r50_c4_1x": ("35.7",),
    "faster_rcnn_r50_dc5_1x": ("37.3",),
    "faster_rcnn_r50_fpn_1x": ("37.9",),
    "faster_rcnn_r50_fpn_3x": ("40.2",),
    "faster_rcnn_x101_32x8d_fpn_3x": ("43.0",),
    "fcos_r50_fpn_1x": None,
    "keypoint_rcnn_r50_fpn_1x": ("53.6", "64.0"),
    "keypoint_rcnn_r50_fpn_3x": ("55.4", "65.5"),
    "mask_rcnn_r101_fpn_3x": ("42.9", "38.6"),
    "mask_rcnn_r50_fpn_1x": ("38.6", "35.2"),
    "mask_rcnn_r50_fpn_1x_dconv_c3-c5": ("41.5", "37.5"),
    "mask_rcnn_r50_fpn_3x": ("41.0", "37.2"),
    "mask_rcnn_r50_fpn_lsj_adamw": None,
    "panoptic_fpn_r101_3x": ("43.0", "42.4", "38.5"),
    "panoptic_fpn_r50_1x": ("39.4", "37.6", "34.7"),
    "panoptic_fpn_r50_3x": ("41.5", "40.0", "36.5"),
    "pointrend_rcnn_r50_fpn_1x": ("36.2",),
    "pointrend_rcnn_r50_fpn_3x": ("38.3",),
    "retinanet_r50_fpn_1x": ("37.4",),
    "faster_rcnn_r50_c4_18k": ("80.3", "51.9"),
    "faster_rcnn_r50_fpn_18k": None,
}


def load(path: Path) -> DetectionConfig:
    return load_config(DetectionConfig, path)


def build(path: Path) -> Architecture:
    """The detector of ``path``, without memory for its weights."""
    config = load(path)
    with torch.device("meta"):
        classes = load_card(config.data.train[0].partition(":")[0]).classes
        return build_detector(config, len(classes) - len(config.panoptic.stuff), pretrained=False)


def header(path: Path) -> str:
    return "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))


def test_every_recipe_has_its_file() -> None:
    assert [path.stem for path in FILES] == list(FIGURES)


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_what_all_baselines_share(path: Path) -> None:
    config = load(path)
    rpn, box, test, data, solver = config.rpn, config.box, config.test, config.data, config.solver
    assert config.anchors.sizes == (32.0, 64.0, 128.0, 256.0, 512.0)
    assert (config.anchors.ratios, config.anchors.offset, config.anchors.rounded) == ((0.5, 1.0, 2.0), 0, False)
    assert (rpn.positive_iou, rpn.negative_iou, rpn.samples_per_image, rpn.positive_fraction) == (0.7, 0.3, 256, 0.5)
    assert (rpn.nms_iou, rpn.post_nms_test, rpn.allow_outside, rpn.min_size) == (0.7, 1000, True, 0)
    assert (box.pool, box.sampling_ratio, box.samples_per_image, box.positive_fraction) == ("roi_align", 0, 512, 0.25)
    assert (box.positive_iou, box.negative_iou_low, box.coder_weights) == (0.5, 0, (10.0, 10.0, 5.0, 5.0))
    beta = 0.5 if "keypoint" in path.stem else 0
    assert (rpn.smooth_l1_beta, box.smooth_l1_beta, rpn.box_loss_weight, box.box_loss_weight) == (0, beta, 1, 1)
    assert (test.score_threshold, test.nms_iou, test.max_detections) == (0.05, 0.5, 100)
    assert (data.shorter_side, data.longer_side, data.augment) == (800, 1333, ({"HorizontalFlip": {"p": 0.5}},))
    assert (solver.optimizer, solver.images_per_step, solver.base_lr, solver.momentum) == ("sgd", 16, 0.02, 0.9)
    assert (solver.weight_decay, solver.bias_lr_factor, solver.gamma, solver.schedule) == (1e-4, 1, 0.1, "multistep")
    assert (solver.warmup_factor, solver.ema_decay, data.jitter, data.copy_paste) == (0.001, 0, None, 0)
    backbone = config.backbone
    assert (backbone.weights, backbone.weights_source) == ("torchvision", "torchvision")
    assert (backbone.norm, backbone.freeze_at) == ("frozen_bn", 2)


@pytest.mark.parametrize(
    "path", [path for path in (*BASELINES, *ONE_STAGE) if path.parent == COCO], ids=lambda path: path.stem
)
def test_schedules_on_coco(path: Path) -> None:
    config = load(path)
    times = 3 if path.stem.endswith("3x") else 1
    steps = {1: (60000, 80000), 3: (210000, 250000)}
    assert (config.solver.iterations, config.solver.steps) == (90000 * times, steps[times])
    assert config.solver.warmup_iterations == 1000
    assert config.data.train_shorter_sides == tuple(range(640, 801, 32))
    kinds = {"keypoint": "coco2017_keypoints", "panoptic": "coco2017_panoptic"}
    card = next((card for kind, card in kinds.items() if kind in path.stem), "coco2017")
    assert (config.data.train, config.data.test) == ((f"{card}:train",), (f"{card}:val",))


@pytest.mark.parametrize("path", [path for path in FILES if path.parent == VOC], ids=lambda path: path.stem)
def test_schedules_on_voc(path: Path) -> None:
    config = load(path)
    assert (config.solver.iterations, config.solver.steps, config.solver.warmup_iterations) == (
        18000,
        (12000, 16000),
        100,
    )
    assert config.data.train_shorter_sides == tuple(range(480, 801, 32))
    assert (config.data.train, config.data.test) == (("voc2007:trainval", "voc2012:trainval"), ("voc2007:test",))
    assert config.solver.best_metric == "voc.mAP"


@pytest.mark.parametrize("path", ONE_STAGE, ids=lambda path: path.stem)
def test_one_stage_detectors_are_those_of_their_papers(path: Path) -> None:
    config, detector = load(path), build(path)
    assert isinstance(detector, OneStage)
    assert [spec.stride for spec in detector.backbone.specs.values()] == [8, 16, 32, 64, 128]
    assert detector.head.class_rows["classes"].per_class == (9 if "retinanet" in path.stem else 1)
    dense, data, solver = config.dense, config.data, config.solver
    assert (dense.convs, dense.prior, dense.focal_alpha, dense.focal_gamma, dense.pre_nms) == (4, 0.01, 0.25, 2, 1000)
    assert (dense.positive_iou, dense.negative_iou, dense.center_radius, dense.smooth_l1_beta) == (0.5, 0.4, 1.5, 0)
    assert (data.shorter_side, data.longer_side, solver.images_per_step, solver.base_lr) == (800, 1333, 16, 0.01)


@pytest.mark.parametrize("path", REGIONS, ids=lambda path: path.stem)
def test_the_parts_are_those_of_the_name(path: Path) -> None:
    config, detector = load(path), build(path)
    assert isinstance(detector, FasterRCNN)
    assert all(parameter.is_meta for parameter in detector.parameters())
    networks = {"_r101_": "resnet101", "_x101_32x8d_": "resnext101_32x8d"}
    assert config.backbone.name == next((name for mark, name in networks.items() if mark in path.stem), "resnet50")
    assert config.backbone.deform == (("c3", "c4", "c5") if "_dconv_" in path.stem else None)
    panoptic, points = "panoptic" in path.stem, "pointrend" in path.stem
    assert ("mask_rcnn" in path.stem or panoptic) == isinstance(detector.mask_stage, MaskStage)
    assert points == isinstance(detector.mask_stage, PointStage)
    assert config.finds_masks == (detector.mask_stage is not None)
    assert panoptic == (detector.label_stage is not None) == (config.semantic.loss_weight == 0.5)
    if panoptic:
        things = load_card("coco2017").classes
        assert (*things, *config.panoptic.stuff) == load_card("coco2017_panoptic").classes
    assert ("keypoint_rcnn" in path.stem) == (detector.keypoint_stage is not None)
    assert detector.keypoint_stage is None or detector.keypoint_stage.head.num_keypoints == 17
    assert ("cascade" in path.stem) == isinstance(detector.box_stage, CascadeBoxStage)
    anchors = [level.num_anchors for level in detector.rpn.anchors]  # pyright: ignore[reportAttributeAccessIssue]
    strides = [spec.stride for spec in detector.backbone.specs.values()]
    counts = (config.rpn.channels, config.rpn.pre_nms_train, config.rpn.post_nms_train, config.rpn.pre_nms_test)
    if "_fpn_" in path.stem:
        assert (anchors, strides) == ([3] * 5, [4, 8, 16, 32, 64])
        most = 2000 if "cascade" in path.stem else 1500 if "keypoint" in path.stem else 1000
        assert counts == (256, 2000, most, 1000)
    else:
        assert (anchors, strides) == ([15], [16])
        assert counts == (1024 if "_c4_" in path.stem else 2048, 12000, 2000, 6000)
    assert (config.box.head == "tail") == ("_c4_" in path.stem)


def test_cascades_have_three_stages_of_one_box_per_region() -> None:
    for path in (path for path in FILES if "cascade" in path.stem):
        config = load(path)
        assert (config.cascade.ious, config.box.class_agnostic) == ((0.5, 0.6, 0.7), True)


def test_the_recipe_of_our_own() -> None:
    config, base = load(OWN), load(COCO / "mask_rcnn_r50_fpn_3x.yaml")
    for section in ("backbone", "anchors", "rpn", "box", "mask", "test"):
        assert getattr(config, section) == getattr(base, section), section
    assert (config.data.jitter, config.data.train_shorter_sides) == (JitterConfig(size=1024, low=0.1, high=2.0), ())
    assert (config.data.shorter_side, config.data.longer_side, config.data.copy_paste) == (1024, 1024, 0.5)
    solver = config.solver
    assert (solver.optimizer, solver.base_lr, solver.weight_decay) == ("adamw", 1e-4, 0.05)
    assert (solver.schedule, solver.ema_decay, solver.iterations) == ("cosine", 0.9998, 270000)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_has_the_command_and_the_published_figure(path: Path) -> None:
    text, figures = header(path), FIGURES[path.stem]
    assert f"resdet train {path.relative_to(ROOT)}\n" in text
    assert "not run" in text
    assert ("no published figure" in text) == (figures is None)
    assert all(figure in text for figure in figures or ())
    source = "projects/PointRend" if "pointrend" in path.stem else "MODEL_ZOO.md"
    assert figures is None or f"(Detectron2's {source})" in text
