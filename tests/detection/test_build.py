"""Mirrors detection/build.py and its trunk and tester: every option of a config reaches the part it is for."""

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
from detection.config import detection as settings
from detection.config.load import parse_config
from detection.engine.checkpoint import write_converted
from detection.keypoints import KeypointSpec
from detection.model.box_coder import BoxCoder
from detection.model.box_heads import FCHead
from detection.model.cascade import CascadeBoxStage
from detection.model.matcher import Matcher
from detection.model.postprocess import Postprocessor
from detection.model.sampler import BalancedSampler
from detection.model.test_time.slices import Cutting
from detection.model.test_time.tester import Methods, Tester

Backbone = settings.DetectorBackboneConfig
WITHOUT_DEFAULTS = """
backbone: {name: resnet18, norm: gn, freeze_at: 1, tail_stride: 1, roi_size: 5, shortcut: A}
anchors: {sizes: [16, 48], ratios: [0.4, 0.9, 1.6], offset: 0.25, rounded: true}
rpn: {channels: 24, convs: 2, positive_iou: 0.61, negative_iou: 0.22, samples_per_image: 33, positive_fraction: 0.44,
      allow_outside: true, smooth_l1_beta: 0.55, box_loss_weight: 0.66, pre_nms_train: 111, pre_nms_test: 222,
      post_nms_train: 33, post_nms_test: 44, nms_iou: 0.77, min_size: 8}
box: {pool: roi_align, sampling_ratio: 3, samples_per_image: 17, positive_fraction: 0.31, positive_iou: 0.53,
      negative_iou_low: 0.12, smooth_l1_beta: 0.71, coder_weights: [1, 2, 3, 4], box_loss_weight: 0.81,
      ignore_overlap: 0.91, context: true, class_agnostic: true, loss: giou}
test: {score_threshold: 0.11, nms_iou: 0.41, max_detections: 13, vote_iou: 0.61, refine: true, scales: [64, 96],
       flip: true, soft_nms_sigma: 0.7, boundary: true, slice: 640, slice_overlap: 0.3, slice_whole: false,
       slice_merge: nms, compile: true}
"""
OF_A_PYRAMID = """
architecture: mask_rcnn
backbone: {name: resnet18, norm: gn, fpn: true, fpn_channels: 32, fpn_norm: gn}
anchors: {sizes: [32, 64, 128, 256, 512], ratios: [0.5, 1]}
box: {head: fc, pool: roi_align, pool_size: 5, head_convs: 2, head_fcs: 1, head_channels: 48, head_norm: gn,
      coder_weights: [10, 10, 5, 5], class_agnostic: true}
mask: {pool_size: 6, convs: 3, channels: 16, norm: gn}
"""
CONFIG, PYRAMID = (parse_config(settings.DetectionConfig, text) for text in (WITHOUT_DEFAULTS, OF_A_PYRAMID))
OF_FC_HEADS = {"head", "pool_size", "head_convs", "head_fcs", "head_channels", "head_norm", "cascade"}


def build(config: settings.DetectionConfig, num_classes: int = 7, **options: Any) -> Any:
    """Without memory for its weights unless they are read."""
    with torch.device("cpu" if config.backbone.weights else "meta"):
        return build_detector(config, num_classes, **options)


@pytest.fixture(scope="module")
def detector() -> Any:
    return build_detector(CONFIG, 7)


def convs_of(module: nn.Module) -> list[nn.Conv2d]:
    return [one for one in module.modules() if isinstance(one, nn.Conv2d)]


def test_the_example_differs_from_every_default() -> None:
    for section in ("anchors", "rpn", "box", "test"):
        given, default = asdict(getattr(CONFIG, section)), asdict(getattr(settings.DetectionConfig(), section))
        assert {name for name in given if given[name] == default[name]} <= OF_FC_HEADS


def test_proposals(detector) -> None:
    rpn, (anchors,) = detector.rpn, detector.rpn.anchors
    assert (anchors.stride, anchors.offset, anchors.rounded, anchors.num_anchors) == (16, 0.25, True, 6)
    sides = anchors.cell_anchors[:, 2:] - anchors.cell_anchors[:, :2]
    exact = torch.tensor([[size / ratio**0.5, size * ratio**0.5] for size in (16, 48) for ratio in (0.4, 0.9, 1.6)])
    torch.testing.assert_close(sides, (exact / 2).round() * 2)
    assert (rpn.head.conv.in_channels, rpn.head.conv.out_channels, rpn.head.objectness.out_channels) == (256, 24, 6)
    assert rpn.matcher == Matcher(0.61, 0.22, match_best=True, ignore_overlap=0.91)
    assert rpn.sampler == BalancedSampler(33, 0.44)
    assert rpn.coder == BoxCoder((1.0, 1.0, 1.0, 1.0))
    for kept, pre, post in ((rpn.train_filter, 111, 33), (rpn.test_filter, 222, 44)):
        assert vars(kept) == {"pre_nms": pre, "post_nms": post, "nms_iou": 0.77, "min_size": 8.0}
    assert (rpn.allow_outside, rpn.smooth_l1_beta, rpn.box_loss_weight) == (True, 0.55, 0.66)


def test_box_stage(detector) -> None:
    stage, pooler = detector.box_stage, detector.box_stage.pooler
    assert (pooler.strides, pooler.size, pooler.kind, pooler.sampling_ratio) == ((16,), 5, "roi_align", 3)
    assert stage.matcher == Matcher(0.53, 0.53, negative_iou_low=0.12, ignore_overlap=0.91)
    assert (stage.sampler, stage.coder) == (BalancedSampler(17, 0.31), BoxCoder((1.0, 2.0, 3.0, 4.0)))
    assert (stage.smooth_l1_beta, stage.box_loss_weight, stage.use_giou, stage.context) == (0.71, 0.81, True, True)
    assert (stage.num_classes, stage.predictor.classes.out_features, stage.predictor.deltas.out_features) == (7, 8, 4)
    alone = build(replace(CONFIG, box=replace(CONFIG.box, context=False))).box_stage
    for one, features in ((stage, 2 * 512), (alone, 512)):  # with a context, those of twice as many regions
        assert one.predictor.classes.in_features == one.predictor.deltas.in_features == features
    assert (alone.context, alone.head.out_channels) == (False, 512)


def test_what_happens_in_a_test(detector) -> None:
    tester: Any = build_tester(CONFIG.test, [detector, detector])
    default = build_tester(settings.PostprocessConfig(), [detector])
    assert tester.methods == Methods(refine=True, scales=(64, 96), flip=True)
    assert tester.postprocess == detector.postprocess == Postprocessor(0.11, 0.41, 13, 0.61, 0.7)
    assert list(tester.detectors) == [detector, detector]
    assert (default.methods, default.postprocess) == (Methods(), Postprocessor())
    sliced = slice_images(replace(CONFIG, data=settings.DetectorDataConfig(shorter_side=32, longer_side=48)), detector)
    assert sliced.detect is detector
    assert sliced.cutting == Cutting(640, overlap=0.3, whole=False, merge="nms", nms_iou=0.41)
    assert sliced.fit((640, 640)) == (32, 32)


def test_backbone(detector) -> None:
    names = [name for name, _ in detector.named_modules()]
    assert "box_stage.head.layer4" in names
    assert "backbone.layer4" not in names  # its parameters have one owner
    assert not any("downsample.0" in name for name in names)  # shortcut A has no projections
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"}
    assert isinstance(detector.backbone.bn1, nn.GroupNorm)
    assert detector.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain = build(settings.DetectionConfig())
    assert isinstance(plain.backbone.bn1, FrozenBatchNorm)
    assert (plain.box_stage.pooler.size, plain.rpn.head.conv.in_channels) == (14, 1024)
    vgg = build(replace(CONFIG, backbone=Backbone(name="vgg16", dropout=0.3)))
    assert (vgg.box_stage.head.dropout.p, vgg.box_stage.pooler.size) == (0.3, 7)  # its fully connected layers
    assert vgg.box_stage.predictor.classes.in_features == 2 * 4096  # with context
    assert [anchors.stride for anchors in vgg.rpn.anchors] == [16]


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
    config = settings.DetectionConfig(backbone=Backbone(**{"name": "resnet18", "norm": "bn", **options}))
    backbone = build_plain_backbone(config.backbone, pretrained=False)
    state = {f"network.backbone.{name}": torch.ones_like(weight) for name, weight in backbone.state_dict().items()}
    write_converted(folder, config, ["cat"], state | {"network.fc.weight": torch.ones(1, 1)})
    return folder


def test_weights_of_a_run_are_taken_unless_a_whole_detector_follows(tmp_path: Path) -> None:
    run = write_run(tmp_path, name="resnet50", stride_in="1x1", norm_eps=1e-3)
    config = Backbone(name="resnet50", norm="bn", weights=str(run), stride_in="1x1", norm_eps=1e-3)
    backbone = build_plain_backbone(config, pretrained=True)
    assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)  # not of its 3x3
    assert all((weight == 1).all() for weight in backbone.state_dict().values())
    with torch.device("meta"):  # reads no weights
        build_plain_backbone(config, pretrained=False)
    absent = replace(CONFIG, backbone=replace(CONFIG.backbone, weights=str(tmp_path / "absent.pth")))
    with pytest.raises(ValueError, match=r"absent\.pth"):
        build(absent)
    build(absent, pretrained=False)


def test_weights_of_a_run_with_options_that_no_name_shows_are_refused(tmp_path: Path) -> None:
    cases: Any = (
        ({"norm_eps": 1e-3}, {}, "backbone.norm_eps is None here, and was 0.001"),
        ({"stochastic_depth": 0.5}, {}, "backbone.stochastic_depth is None here, and was 0.5"),
        ({}, {"weights_source": "caffe"}, "backbone.weights_source is 'caffe' here, and was 'torchvision'"),
    )
    for trained, given, message in cases:
        run = write_run(tmp_path / message.partition(" ")[0], **trained)
        for weights in (run, run / "checkpoints" / "0000000.safetensors"):
            config = Backbone(name="resnet18", norm="bn", weights=str(weights), **given)
            with pytest.raises(ValueError, match=message):
                build_plain_backbone(config, pretrained=True)
            build_plain_backbone(config, pretrained=False)


def test_neither_a_detectors_run_nor_a_folder_called_torchvision_is_meant(detector, tmp_path, monkeypatch) -> None:
    write_converted(tmp_path / "run", CONFIG, ["cat"], detector.state_dict())
    config = replace(CONFIG.backbone, weights=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"0000000\.safetensors is no classifier; leave backbone\.weights unset and"):
        build_plain_backbone(config, pretrained=True)

    def download(name: str) -> dict[str, torch.Tensor]:
        return build_plain_backbone(Backbone(name=name, norm="bn"), pretrained=False).state_dict()

    (tmp_path / "torchvision").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backbones.registry.download_torchvision", download)
    build_plain_backbone(Backbone(name="resnet18", norm="bn", weights="torchvision"), pretrained=True)


def test_a_pyramid_proposes_on_five_levels_and_pools_from_four_into_a_head_of_its_own() -> None:
    detector = build(PYRAMID)
    stage, head = detector.box_stage, detector.box_stage.head
    assert [(a.stride, a.num_anchors) for a in detector.rpn.anchors] == [(4, 2), (8, 2), (16, 2), (32, 2), (64, 2)]
    assert detector.rpn.head.conv.in_channels == 32
    assert (stage.pooler.strides, stage.pooler.size) == ((4, 8, 16, 32), 5)
    assert isinstance(head, FCHead)
    assert head.out_channels == stage.predictor.classes.in_features == 48
    sizes = [(conv.in_channels, conv.out_channels, conv.bias) for conv in convs_of(head)]
    assert sizes == [(32, 256, None), (256, 256, None)]
    assert [module.in_features for module in head.modules() if isinstance(module, nn.Linear)] == [256 * 5 * 5]
    assert len([module for module in head.modules() if isinstance(module, nn.GroupNorm)]) == 2
    for name in ("vgg11", "vgg16_bn", "resnet50"):
        other = build(replace(PYRAMID, backbone=Backbone(name=name, fpn=True)))
        assert [spec.stride for spec in other.backbone.specs.values()] == [4, 8, 16, 32, 64]
    backbone = Backbone(name="resnet18", dilate_c5=True)
    dilated = build(settings.DetectionConfig(backbone=backbone, box=settings.BoxConfig(head="fc")))
    assert [(name, spec.stride, spec.channels) for name, spec in dilated.backbone.specs.items()] == [("c5", 16, 512)]


def test_a_mask_stage_of_its_own_or_over_a_tail() -> None:
    stage = build(PYRAMID).mask_stage
    assert (stage.pooler.strides, stage.pooler.size) == ((4, 8, 16, 32), 6)
    assert [conv.out_channels for conv in convs_of(stage.head)] == [16, 16, 16, 7]
    assert build(replace(PYRAMID, architecture="faster_rcnn")).mask_stage is None
    tail = settings.DetectionConfig(backbone=Backbone(name="resnet18"), architecture="mask_rcnn")
    stage = build(tail).mask_stage
    assert (stage.pooler.size, stage.head.upsample.in_channels, len(stage.head.convs)) == (14, 512, 0)


def test_a_keypoint_stage_and_its_names() -> None:
    keypoint = settings.KeypointConfig(names=("head", "tail"), pool_size=5, convs=3, channels=12)
    unnamed = replace(PYRAMID, architecture="keypoint_rcnn")
    detector = build(replace(unnamed, keypoint=keypoint))
    stage = detector.keypoint_stage
    assert (detector.mask_stage, build(PYRAMID).keypoint_stage) == (None, None)
    assert (stage.pooler.strides, stage.pooler.size, stage.head.num_keypoints) == ((4, 8, 16, 32), 5, 2)
    assert [conv.out_channels for conv in convs_of(stage.head)] == [12, 12, 12]
    assert isinstance(build_tester(settings.PostprocessConfig(flip=True), [detector]), Tester)
    with pytest.raises(ValueError, match="detectors with keypoints can't form an ensemble"):
        build_tester(settings.PostprocessConfig(), [detector, detector])
    spec = KeypointSpec(("head", "tail"), edges=((0, 1),))
    resolved = with_keypoints(unnamed, spec)  # those of the data set
    assert (resolved.keypoint.names, resolved.keypoint.edges) == (("head", "tail"), ((0, 1),))
    assert with_keypoints(resolved, spec) == resolved
    assert with_keypoints(PYRAMID, spec) == PYRAMID
    with pytest.raises(ValueError, match=r"keypoint\.names is empty"):
        build(unnamed)
    with pytest.raises(ValueError, match=r"keypoint\.names is \['head', 'tail'\], the data set has \['1', '2'\]"):
        with_keypoints(resolved, KeypointSpec.numbered(2))


def test_a_cascade() -> None:
    detector = build(replace(PYRAMID, architecture="cascade_mask_rcnn"))
    assert isinstance(detector.box_stage, CascadeBoxStage)
    stages: list[Any] = list(detector.box_stage.stages)
    assert [stage.matcher.positive_iou for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.coder.weights[0] for stage in stages] == [10, 20, 30]
    assert len({id(stage.head) for stage in stages}) == 3
    with pytest.raises(ValueError, match="a cascade has several"):
        build_tester(settings.PostprocessConfig(refine=True), [detector])
    cascade = replace(PYRAMID, architecture="cascade_rcnn")
    for change in ({"head": "tail"}, {"class_agnostic": False}, {"context": True}):
        with pytest.raises(ValueError, match="architecture cascade_rcnn moves one box per region"):
            replace(cascade, box=replace(PYRAMID.box, **change))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            CONFIG,
            {"backbone": Backbone(name="vgg16", shortcut="A")},
            "vgg16 has no option 'shortcut'",
        ),
        (PYRAMID, {"anchors": settings.AnchorConfig(sizes=(32.0,))}, r"anchors\.sizes .*5 levels, got \(32\.0,\)"),
        (PYRAMID, {"box": settings.BoxConfig()}, r"set box\.head to fc"),  # no tail after a pyramid
    ],
)
def test_what_does_not_fit_is_refused(config: settings.DetectionConfig, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(config, **changes))
