"""Mirrors detection/build.py: every option of a config reaches the part it is for."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.norm import FrozenBatchNorm
from detection.build import build_detector, build_tester
from detection.config import AnchorConfig, BackboneConfig, BoxConfig, Config, PostprocessConfig, RPNConfig
from detection.inference.tester import Methods
from detection.model.box_coder import BoxCoder
from detection.model.detector import Detector
from detection.model.matcher import Matcher
from detection.model.postprocess import Postprocessor
from detection.model.sampler import BalancedSampler

# No value is a default.
CONFIG = Config(
    backbone=BackboneConfig(name="resnet18", norm="gn", freeze_at=1, tail_stride=1, roi_size=5, shortcut="A"),
    anchors=AnchorConfig(sizes=(16.0, 48.0), ratios=(0.4, 0.9, 1.6), offset=0.25),
    rpn=RPNConfig(
        channels=24,
        positive_iou=0.61,
        negative_iou=0.22,
        samples_per_image=33,
        positive_fraction=0.44,
        allow_outside=True,
        smooth_l1_beta=0.55,
        box_loss_weight=0.66,
        pre_nms_train=111,
        pre_nms_test=222,
        post_nms_train=33,
        post_nms_test=44,
        nms_iou=0.77,
        min_size=8.0,
    ),
    box=BoxConfig(
        pool="roi_align",
        sampling_ratio=3,
        samples_per_image=17,
        positive_fraction=0.31,
        positive_iou=0.53,
        negative_iou_low=0.12,
        smooth_l1_beta=0.71,
        coder_weights=(1.0, 2.0, 3.0, 4.0),
        box_loss_weight=0.81,
        ignore_overlap=0.91,
        context=True,
    ),
    test=PostprocessConfig(
        score_threshold=0.11, nms_iou=0.41, max_detections=13, vote_iou=0.61, refine=True, scales=(64, 96), flip=True
    ),
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build_detector(CONFIG, 7)


def test_example_config_differs_from_every_default() -> None:
    for section in ("anchors", "rpn", "box", "test"):
        given, default = asdict(getattr(CONFIG, section)), asdict(getattr(Config(), section))
        assert not [name for name in given if given[name] == default[name]]


def test_anchors(detector: Detector) -> None:
    anchors = detector.rpn.anchors
    assert (anchors.stride, anchors.offset, anchors.num_anchors) == (16, 0.25, 6)
    sides = anchors.cell_anchors[:, 2:] - anchors.cell_anchors[:, :2]
    torch.testing.assert_close(sides.prod(dim=1).sqrt(), torch.tensor([16.0, 48.0]).repeat_interleave(3))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.4, 0.9, 1.6] * 2))


def test_rpn(detector: Detector) -> None:
    rpn = detector.rpn
    assert (rpn.head.conv.in_channels, rpn.head.conv.out_channels, rpn.head.objectness.out_channels) == (256, 24, 6)
    assert rpn.matcher == Matcher(0.61, 0.22, match_best=True, ignore_overlap=0.91)
    assert rpn.sampler == BalancedSampler(33, 0.44)
    assert rpn.coder == BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert vars(rpn.train_filter) == {"pre_nms": 111, "post_nms": 33, "nms_iou": 0.77, "min_size": 8.0}
    assert vars(rpn.test_filter) == {"pre_nms": 222, "post_nms": 44, "nms_iou": 0.77, "min_size": 8.0}
    assert (rpn.allow_outside, rpn.smooth_l1_beta, rpn.box_loss_weight) == (True, 0.55, 0.66)


def test_box_stage(detector: Detector) -> None:
    stage = detector.box_stage
    pooler = stage.pooler
    assert (pooler.stride, pooler.size, pooler.kind, pooler.sampling_ratio) == (16, 5, "roi_align", 3)
    assert stage.matcher == Matcher(0.53, 0.53, negative_iou_low=0.12, ignore_overlap=0.91)
    assert stage.sampler == BalancedSampler(17, 0.31)
    assert stage.coder == BoxCoder((1.0, 2.0, 3.0, 4.0))
    assert (stage.smooth_l1_beta, stage.box_loss_weight) == (0.71, 0.81)
    assert (stage.num_classes, stage.predictor.classes.out_features, stage.predictor.deltas.out_features) == (7, 8, 28)
    assert stage.context
    assert stage.predictor.classes.in_features == stage.predictor.deltas.in_features == 2 * 512


def test_predictor_without_context_takes_what_the_tail_gives() -> None:
    with torch.device("meta"):
        stage = build_detector(replace(CONFIG, box=replace(CONFIG.box, context=False)), 7).box_stage
    assert not stage.context
    assert stage.predictor.classes.in_features == stage.predictor.deltas.in_features == stage.head.out_channels == 512


def test_postprocess(detector: Detector) -> None:
    assert detector.postprocess == Postprocessor(0.11, 0.41, 13, 0.61)


def test_tester(detector: Detector) -> None:
    tester = build_tester(CONFIG.test, [detector, detector])
    assert tester.methods == Methods(refine=True, scales=(64, 96), flip=True)
    assert tester.postprocess == Postprocessor(0.11, 0.41, 13, 0.61)
    assert list(tester.detectors) == [detector, detector]


def test_default_tester_does_a_plain_test(detector: Detector) -> None:
    tester = build_tester(PostprocessConfig(), [detector])
    assert tester.methods == Methods()
    assert tester.postprocess == Postprocessor()


def test_backbone(detector: Detector) -> None:
    names = [name for name, _ in detector.named_modules()]
    assert "box_stage.head.layer4" in names
    assert "backbone.layer4" not in names  # its parameters have one owner
    assert not any("downsample.0" in name for name in names)  # shortcut A has no projections
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"}
    assert isinstance(detector.get_submodule("backbone.bn1"), nn.GroupNorm)


def test_default_backbone_fixes_batch_normalisation() -> None:
    with torch.device("meta"):
        detector = build_detector(Config(), 20)
    assert isinstance(detector.get_submodule("backbone.bn1"), FrozenBatchNorm)
    assert detector.box_stage.pooler.size == 14
    assert detector.rpn.head.conv.in_channels == 1024


def test_vgg_hands_over_its_fully_connected_layers() -> None:
    with torch.device("meta"):
        detector = build_detector(replace(CONFIG, backbone=BackboneConfig(name="vgg16", dropout=0.3)), 20)
    dropout = detector.get_submodule("box_stage.head.dropout")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.3
    assert detector.box_stage.pooler.size == 7
    assert detector.box_stage.predictor.classes.in_features == 2 * 4096  # with context
    assert detector.rpn.anchors.stride == 16


def test_option_that_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="vgg16 has no option 'shortcut'"):
        build_detector(replace(CONFIG, backbone=BackboneConfig(name="vgg16", shortcut="A")), 20)


def test_weights_are_read_unless_a_whole_detector_follows(tmp_path: Path) -> None:
    backbone = replace(CONFIG.backbone, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"absent\.pth"):
        build_detector(replace(CONFIG, backbone=backbone), 7)
    build_detector(replace(CONFIG, backbone=backbone), 7, pretrained=False)


def test_convolutions_are_channels_last(detector: Detector) -> None:
    weight = detector.get_submodule("backbone.layer1.0.conv1").weight
    assert isinstance(weight, torch.Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
