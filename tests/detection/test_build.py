"""Mirrors detection/build.py and its trunk and tester: every option of a config reaches the part it is for."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbones.norm import FrozenBatchNorm
from detection.build import build_detector, with_keypoints
from detection.build_tester import build_tester, slice_images
from detection.build_trunk import build_plain_backbone
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    KeypointConfig,
    MaskConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.engine.checkpoint import write_converted
from detection.keypoints import KeypointSpec
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.box_heads import FCHead
from detection.model.box_stage import BoxStage
from detection.model.cascade import CascadeBoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.mask_stage import MaskStage
from detection.model.matcher import Matcher
from detection.model.postprocess import Postprocessor
from detection.model.sampler import BalancedSampler
from detection.model.test_time.slices import Cutting
from detection.model.test_time.tester import Methods, Tester

# No value is a default.
CONFIG = DetectionConfig(
    backbone=DetectorBackboneConfig(name="resnet18", norm="gn", freeze_at=1, tail_stride=1, roi_size=5, shortcut="A"),
    anchors=AnchorConfig(sizes=(16.0, 48.0), ratios=(0.4, 0.9, 1.6), offset=0.25, rounded=True),
    rpn=RPNConfig(
        channels=24,
        convs=2,
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
        class_agnostic=True,
        loss="giou",
    ),
    test=PostprocessConfig(
        score_threshold=0.11,
        nms_iou=0.41,
        max_detections=13,
        vote_iou=0.61,
        refine=True,
        scales=(64, 96),
        flip=True,
        soft_nms_sigma=0.7,
        boundary=True,
        slice=640,
        slice_overlap=0.3,
        slice_whole=False,
        slice_merge="nms",
        compile=True,
    ),
)


def build_rcnn(config: DetectionConfig, num_classes: int, *, pretrained: bool = True) -> FasterRCNN:
    built = build_detector(config, num_classes, pretrained=pretrained)
    assert isinstance(built, FasterRCNN)
    return built


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return build_rcnn(CONFIG, 7)


OF_FC_HEADS = {"head", "pool_size", "head_convs", "head_fcs", "head_channels", "head_norm", "cascade"}


def stage_of(detector: FasterRCNN) -> BoxStage:
    assert isinstance(detector.box_stage, BoxStage)
    return detector.box_stage


def test_example_config_differs_from_every_default() -> None:
    for section in ("anchors", "rpn", "box", "test"):
        given, default = asdict(getattr(CONFIG, section)), asdict(getattr(DetectionConfig(), section))
        assert {name for name in given if given[name] == default[name]} <= OF_FC_HEADS


def test_slices_are_cut_and_merged_as_the_config_says(detector: FasterRCNN) -> None:
    sliced = slice_images(replace(CONFIG, data=DetectorDataConfig(shorter_side=32, longer_side=48)), detector)
    assert sliced.detect is detector
    assert sliced.cutting == Cutting(640, overlap=0.3, whole=False, merge="nms", nms_iou=0.41)
    assert sliced.fit((640, 640)) == (32, 32)


def test_anchors(detector: FasterRCNN) -> None:
    (anchors,) = detector.rpn.anchors
    assert isinstance(anchors, AnchorGenerator)
    assert (anchors.stride, anchors.offset, anchors.rounded, anchors.num_anchors) == (16, 0.25, True, 6)
    sides = anchors.cell_anchors[:, 2:] - anchors.cell_anchors[:, :2]
    exact = torch.tensor([[size / ratio**0.5, size * ratio**0.5] for size in (16, 48) for ratio in (0.4, 0.9, 1.6)])
    torch.testing.assert_close(sides, (exact / 2).round() * 2)


def test_rpn(detector: FasterRCNN) -> None:
    rpn = detector.rpn
    assert (rpn.head.conv.in_channels, rpn.head.conv.out_channels, rpn.head.objectness.out_channels) == (256, 24, 6)
    assert rpn.matcher == Matcher(0.61, 0.22, match_best=True, ignore_overlap=0.91)
    assert rpn.sampler == BalancedSampler(33, 0.44)
    assert rpn.coder == BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert vars(rpn.train_filter) == {"pre_nms": 111, "post_nms": 33, "nms_iou": 0.77, "min_size": 8.0}
    assert vars(rpn.test_filter) == {"pre_nms": 222, "post_nms": 44, "nms_iou": 0.77, "min_size": 8.0}
    assert (rpn.allow_outside, rpn.smooth_l1_beta, rpn.box_loss_weight) == (True, 0.55, 0.66)


def test_box_stage(detector: FasterRCNN) -> None:
    stage = stage_of(detector)
    pooler = stage.pooler
    assert (pooler.strides, pooler.size, pooler.kind, pooler.sampling_ratio) == ((16,), 5, "roi_align", 3)
    assert stage.matcher == Matcher(0.53, 0.53, negative_iou_low=0.12, ignore_overlap=0.91)
    assert stage.sampler == BalancedSampler(17, 0.31)
    assert stage.coder == BoxCoder((1.0, 2.0, 3.0, 4.0))
    assert (stage.smooth_l1_beta, stage.box_loss_weight, stage.use_giou) == (0.71, 0.81, True)
    assert (stage.num_classes, stage.predictor.classes.out_features, stage.predictor.deltas.out_features) == (7, 8, 4)
    assert stage.context
    assert stage.predictor.classes.in_features == stage.predictor.deltas.in_features == 2 * 512


def test_predictor_without_context_takes_what_the_tail_gives() -> None:
    with torch.device("meta"):
        stage = stage_of(build_rcnn(replace(CONFIG, box=replace(CONFIG.box, context=False)), 7))
    assert not stage.context
    assert stage.predictor.classes.in_features == stage.predictor.deltas.in_features == 512
    assert stage.head.out_channels == 512


def test_postprocess(detector: FasterRCNN) -> None:
    assert detector.postprocess == Postprocessor(0.11, 0.41, 13, 0.61, 0.7)


def test_tester(detector: FasterRCNN) -> None:
    tester = build_tester(CONFIG.test, [detector, detector])
    assert isinstance(tester, Tester)
    assert tester.methods == Methods(refine=True, scales=(64, 96), flip=True)
    assert tester.postprocess == Postprocessor(0.11, 0.41, 13, 0.61, 0.7)
    assert list(tester.detectors) == [detector, detector]


def test_default_tester_does_a_plain_test(detector: FasterRCNN) -> None:
    tester = build_tester(PostprocessConfig(), [detector])
    assert tester.methods == Methods()
    assert tester.postprocess == Postprocessor()


def test_backbone(detector: FasterRCNN) -> None:
    names = [name for name, _ in detector.named_modules()]
    assert "box_stage.head.layer4" in names
    assert "backbone.layer4" not in names  # its parameters have one owner
    assert not any("downsample.0" in name for name in names)  # shortcut A has no projections
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"}
    assert isinstance(detector.get_submodule("backbone.bn1"), nn.GroupNorm)


def test_default_backbone_fixes_batch_normalisation() -> None:
    with torch.device("meta"):
        detector = build_rcnn(DetectionConfig(), 20)
    assert isinstance(detector.get_submodule("backbone.bn1"), FrozenBatchNorm)
    assert stage_of(detector).pooler.size == 14
    assert detector.rpn.head.conv.in_channels == 1024


def test_vgg_hands_over_its_fully_connected_layers() -> None:
    with torch.device("meta"):
        detector = build_rcnn(replace(CONFIG, backbone=DetectorBackboneConfig(name="vgg16", dropout=0.3)), 20)
    dropout = detector.get_submodule("box_stage.head.dropout")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.3
    assert stage_of(detector).pooler.size == 7
    assert stage_of(detector).predictor.classes.in_features == 2 * 4096  # with context
    assert [anchors.stride for anchors in detector.rpn.anchors] == [16]


def test_option_that_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="vgg16 has no option 'shortcut'"):
        build_rcnn(replace(CONFIG, backbone=DetectorBackboneConfig(name="vgg16", shortcut="A")), 20)


def test_weights_are_read_unless_a_whole_detector_follows(tmp_path: Path) -> None:
    backbone = replace(CONFIG.backbone, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"absent\.pth"):
        build_rcnn(replace(CONFIG, backbone=backbone), 7)
    build_rcnn(replace(CONFIG, backbone=backbone), 7, pretrained=False)


# Plain backbones


def test_a_plain_backbone_has_every_option_but_the_pyramids() -> None:
    config = replace(CONFIG.backbone, fpn=True, fpn_channels=32, fpn_norm="gn")
    backbone = build_plain_backbone(config, pretrained=True)
    assert list(backbone.specs) == ["c4"]
    assert not any("downsample.0" in name for name, _ in backbone.named_modules())
    assert isinstance(backbone.get_submodule("bn1"), nn.GroupNorm)
    assert not backbone.get_parameter("conv1.weight").requires_grad
    assert backbone.tail().roi_size == 5
    assert list(build_plain_backbone(config, pretrained=True, out_features=("c3", "c5")).specs) == ["c3", "c5"]


def write_run(folder: Path, **options: Any) -> Path:
    """The directory of a classifier, with a ResNet-18 unless ``options`` say otherwise, whose weights are all 1."""
    config = DetectionConfig(backbone=DetectorBackboneConfig(**{"name": "resnet18", "norm": "bn", **options}))
    backbone = build_plain_backbone(config.backbone, pretrained=False)
    state = {f"network.backbone.{name}": torch.ones_like(weight) for name, weight in backbone.state_dict().items()}
    write_converted(folder, config, ["cat"], state | {"network.fc.weight": torch.ones(1, 1)})
    return folder


@pytest.mark.parametrize("file", [False, True], ids=["directory", "file"])
def test_weights_of_a_run_are_taken(tmp_path: Path, file: bool) -> None:
    run = write_run(tmp_path)
    weights = run / "checkpoints" / "0000000.safetensors" if file else run
    config = DetectorBackboneConfig(name="resnet18", norm="bn", weights=str(weights))
    assert all((weight == 1).all() for weight in build_plain_backbone(config, pretrained=True).state_dict().values())
    assert not (build_plain_backbone(config, pretrained=False).get_parameter("conv1.weight") == 1).any()


def test_weights_of_a_run_with_its_stride_and_eps_are_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path, name="resnet50", stride_in="1x1", norm_eps=1e-3)
    config = DetectorBackboneConfig(name="resnet50", norm="bn", weights=str(run), stride_in="1x1", norm_eps=1e-3)
    backbone = build_plain_backbone(config, pretrained=True)
    assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)  # not of its 3x3
    assert all((weight == 1).all() for weight in backbone.state_dict().values())
    tested = build_plain_backbone(config, pretrained=False)  # where a detector's weights follow, the run may be gone
    assert tested.get_submodule("layer2.0.conv1").stride == (2, 2)


@pytest.mark.parametrize("file", [False, True], ids=["directory", "file"])
@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        (
            {"weights_source": "msra"},
            {},
            "backbone.weights_source is 'torchvision' here, and was 'msra'",
        ),
        ({"norm_eps": 1e-3}, {}, "backbone.norm_eps is None here, and was 0.001"),
        ({"stochastic_depth": 0.5}, {}, "backbone.stochastic_depth is None here, and was 0.5"),
        ({}, {"weights_source": "caffe"}, "backbone.weights_source is 'caffe' here, and was 'torchvision'"),
    ],
)
def test_weights_of_a_run_with_options_that_no_name_shows_are_refused(
    tmp_path: Path, trained: dict[str, Any], given: dict[str, Any], message: str, file: bool
) -> None:
    run = write_run(tmp_path, **trained)
    weights = run / "checkpoints" / "0000000.safetensors" if file else run
    config = DetectorBackboneConfig(name="resnet18", norm="bn", weights=str(weights), **given)
    with pytest.raises(ValueError, match=message):
        build_plain_backbone(config, pretrained=True)
    build_plain_backbone(config, pretrained=False)


def test_a_detectors_run_is_no_backbones_weights(tmp_path: Path) -> None:
    detector = build_rcnn(CONFIG, 1)
    write_converted(tmp_path, CONFIG, ["cat"], detector.state_dict())
    config = replace(CONFIG.backbone, weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"0000000\.safetensors is no classifier; leave backbone\.weights unset and"):
        build_plain_backbone(config, pretrained=True)


def test_a_folder_called_torchvision_is_not_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str) -> dict[str, torch.Tensor]:
        return build_plain_backbone(DetectorBackboneConfig(name=name, norm="bn"), pretrained=False).state_dict()

    (tmp_path / "torchvision").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backbones.registry.download_torchvision", download)
    build_plain_backbone(DetectorBackboneConfig(name="resnet18", norm="bn", weights="torchvision"), pretrained=True)


def test_convolutions_are_channels_last(detector: FasterRCNN) -> None:
    weight = detector.get_submodule("backbone.layer1.0.conv1").weight
    assert isinstance(weight, torch.Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)


# Pyramids, fully connected heads, cascades and masks

PYRAMID = DetectionConfig(
    backbone=DetectorBackboneConfig(name="resnet18", norm="gn", fpn=True, fpn_channels=32, fpn_norm="gn"),
    anchors=AnchorConfig(sizes=(32.0, 64.0, 128.0, 256.0, 512.0), ratios=(0.5, 1.0)),
    box=BoxConfig(
        head="fc",
        pool="roi_align",
        pool_size=5,
        head_convs=2,
        head_fcs=1,
        head_channels=48,
        head_norm="gn",
        coder_weights=(10.0, 10.0, 5.0, 5.0),
        class_agnostic=True,
    ),
    architecture="mask_rcnn",
    mask=MaskConfig(pool_size=6, convs=3, channels=16, norm="gn"),
)


def test_a_pyramid_proposes_on_five_levels_and_pools_from_four() -> None:
    detector = build_rcnn(PYRAMID, 7)
    assert [(a.stride, a.num_anchors) for a in detector.rpn.anchors] == [(4, 2), (8, 2), (16, 2), (32, 2), (64, 2)]
    assert detector.rpn.head.conv.in_channels == 32
    stage = stage_of(detector)
    assert (stage.pooler.strides, stage.pooler.size) == ((4, 8, 16, 32), 5)


def test_a_head_of_its_own() -> None:
    stage = stage_of(build_rcnn(PYRAMID, 7))
    head = stage.head
    assert isinstance(head, FCHead)
    assert head.out_channels == stage.predictor.classes.in_features == 48
    convs = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels, conv.bias) for conv in convs] == [(32, 256, None), (256, 256, None)]
    assert [module.in_features for module in head.modules() if isinstance(module, nn.Linear)] == [256 * 5 * 5]
    assert len([module for module in head.modules() if isinstance(module, nn.GroupNorm)]) == 2


def test_a_mask_stage() -> None:
    stage = build_rcnn(PYRAMID, 7).mask_stage
    assert isinstance(stage, MaskStage)
    assert (stage.pooler.strides, stage.pooler.size) == ((4, 8, 16, 32), 6)
    convs = [module for module in stage.head.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [16, 16, 16, 7]
    assert build_rcnn(replace(PYRAMID, architecture="faster_rcnn"), 7).mask_stage is None


def test_masks_over_a_tail_share_it() -> None:
    config = DetectionConfig(backbone=DetectorBackboneConfig(name="resnet18"), architecture="mask_rcnn")
    with torch.device("meta"):
        stage = build_rcnn(config, 7).mask_stage
    assert isinstance(stage, MaskStage)
    assert (stage.pooler.size, stage.head.upsample.in_channels, len(stage.head.convs)) == (14, 512, 0)


def test_a_keypoint_stage() -> None:
    keypoint = KeypointConfig(names=("head", "tail"), pool_size=5, convs=3, channels=12)
    config = replace(PYRAMID, architecture="keypoint_rcnn", keypoint=keypoint)
    detector = build_rcnn(config, 7)
    stage = detector.keypoint_stage
    assert detector.mask_stage is None
    assert stage is not None
    assert (stage.pooler.strides, stage.pooler.size, stage.head.num_keypoints) == ((4, 8, 16, 32), 5, 2)
    convs = [module for module in stage.head.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [12, 12, 12]
    assert build_rcnn(PYRAMID, 7).keypoint_stage is None


def test_keypoints_are_those_of_the_data_set() -> None:
    config = replace(PYRAMID, architecture="keypoint_rcnn")
    with pytest.raises(ValueError, match=r"keypoint\.names is empty"):
        build_rcnn(config, 7)
    spec = KeypointSpec(("head", "tail"), edges=((0, 1),))
    resolved = with_keypoints(config, spec)
    assert (resolved.keypoint.names, resolved.keypoint.edges) == (("head", "tail"), ((0, 1),))
    assert with_keypoints(resolved, spec) == resolved
    with pytest.raises(ValueError, match=r"keypoint\.names is \['head', 'tail'\], the data set has \['1', '2'\]"):
        with_keypoints(resolved, KeypointSpec.numbered(2))
    assert with_keypoints(PYRAMID, spec) == PYRAMID


def test_an_ensemble_of_keypoints_is_refused() -> None:
    config = replace(PYRAMID, architecture="keypoint_rcnn", keypoint=KeypointConfig(names=("head",), convs=0))
    detector = build_rcnn(config, 7)
    with pytest.raises(ValueError, match="detectors with keypoints are no ensemble"):
        build_tester(PostprocessConfig(), [detector, detector])
    assert isinstance(build_tester(PostprocessConfig(flip=True), [detector]), Tester)


def test_a_cascade() -> None:
    detector = build_rcnn(replace(PYRAMID, architecture="cascade_mask_rcnn"), 7)
    assert isinstance(detector.box_stage, CascadeBoxStage)
    stages = [stage for stage in detector.box_stage.stages if isinstance(stage, BoxStage)]
    assert [stage.matcher.positive_iou for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.coder.weights[0] for stage in stages] == [10, 20, 30]
    assert len({id(stage.head) for stage in stages}) == 3


@pytest.mark.parametrize(
    "change", [{"head": "tail"}, {"class_agnostic": False}, {"context": True}], ids=["tail", "class boxes", "context"]
)
def test_what_a_cascade_can_not_be_is_refused(change: dict[str, Any]) -> None:
    cascade = replace(PYRAMID, architecture="cascade_rcnn")
    with pytest.raises(ValueError, match="architecture cascade_rcnn moves one box per region"):
        replace(cascade, box=replace(PYRAMID.box, **change))


def test_dilated_c5_keeps_its_stride() -> None:
    config = DetectionConfig(backbone=DetectorBackboneConfig(name="resnet18", dilate_c5=True), box=BoxConfig(head="fc"))
    with torch.device("meta"):
        detector = build_rcnn(config, 7)
    assert [(name, spec.stride, spec.channels) for name, spec in detector.backbone.specs.items()] == [("c5", 16, 512)]


def test_sizes_of_a_pyramid_are_one_per_level() -> None:
    with pytest.raises(ValueError, match=r"anchors\.sizes needs one size for each of the 5 levels, got \(32\.0,\)"):
        build_rcnn(replace(PYRAMID, anchors=AnchorConfig(sizes=(32.0,))), 7)


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn", "resnet50"])
def test_a_pyramid_stands_on_any_backbone(name: str) -> None:
    with torch.device("meta"):
        detector = build_rcnn(replace(PYRAMID, backbone=DetectorBackboneConfig(name=name, fpn=True)), 7)
    assert [spec.stride for spec in detector.backbone.specs.values()] == [4, 8, 16, 32, 64]


def test_a_tail_after_a_pyramid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set box\.head to fc"):
        build_rcnn(replace(PYRAMID, box=BoxConfig()), 7)


def test_methods_over_a_cascade_are_refused() -> None:
    detector = build_rcnn(replace(PYRAMID, architecture="cascade_rcnn"), 7)
    with pytest.raises(ValueError, match="a cascade has several"):
        build_tester(PostprocessConfig(refine=True), [detector])
