"""Mirrors weights/detectron2.py: the architectures of Detectron2's zoo, by their names and shapes."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from backbones.weights.load import SOURCES, read_state_dict
from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config
from detection.engine.checkpoint import load_detector_weights, read_checkpoint, write_converted
from detection.model.faster_rcnn import FasterRCNN
from detection.model.pooler import RegionPooler
from detection.structures import ImageBatch
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_panoptic import object_classes
from detection.weights.detectron2_settings import settings_of
from detection.weights.published import ZOO, Entry
from detection.weights.to_detectron2 import to_detectron2

Shapes = dict[str, tuple[int, ...]]

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "detectron2_checkpoints.json"
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
FPN, MASKED = {"kind": "fpn"}, {"kind": "fpn", "masks": True}
SPECS: dict[str, dict[str, Any]] = {
    "faster_rcnn_R_50_C4": {"kind": "c4"},
    "faster_rcnn_R_101_C4": {"kind": "c4", "depth": 101},
    "faster_rcnn_R_50_DC5": {"kind": "dc5"},
    "faster_rcnn_R_50_FPN": FPN,
    "faster_rcnn_R_101_FPN": FPN | {"depth": 101},
    "mask_rcnn_R_50_C4": {"kind": "c4", "masks": True},
    "mask_rcnn_R_50_FPN": MASKED,
    "cascade_mask_rcnn_R_50_FPN": MASKED | {"cascade": True},
    "faster_rcnn_R_50_C4_voc": {"kind": "c4", "classes": 20},
}
# Of the zoo too, without a reference of their names at hand.
UNLISTED: dict[str, dict[str, Any]] = {
    "mask_rcnn_R_50_FPN_gn": MASKED | {"norm": "GN"},
    "mask_rcnn_R_50_FPN_syncbn": MASKED | {"norm": "SyncBN"},
    "faster_rcnn_X_101_32x8d_FPN": FPN | {"depth": 101, "groups": 32, "width": 8},
    "mask_rcnn_R_50_FPN_dconv_c3-c5": MASKED | {"offsets": 18},
    "mask_rcnn_R_50_FPN_LSJ": MASKED | {"norm": "SyncBN", "rpn_convs": 2},
    "faster_rcnn_R_50_FPN_modulated": FPN | {"offsets": 27},
    "keypoint_rcnn_R_50_FPN": FPN | {"classes": 1, "keypoints": True},
    "pointrend_rcnn_R_50_FPN": FPN | {"points": True},
    "panoptic_fpn_R_50": MASKED | {"stuff": 53},
    "panoptic_fpn_R_101_dconv_cascade_gn": MASKED
    | {"depth": 101, "offsets": 18, "cascade": True, "stuff": 53, "norm": "GN", "box_convs": 0},
}
# The largest: ResNeXt-152, whose body alone has fixed statistics.
LARGEST: dict[str, Any] = MASKED | {"depth": 152, "groups": 32, "width": 8, "offsets": 18, "cascade": True}
LARGEST |= {"norm": "FrozenBN", "heads_norm": "GN", "mask_convs": 8}
ALL_SPECS = SPECS | UNLISTED
DEFAULT = [name for name in SPECS if "101" not in name]
ALL = [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in SPECS]


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def normalised(name: str, *shape: int, norm: str = "FrozenBN") -> Shapes:
    parts = ("weight", "bias") if norm == "GN" else ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.weight": shape, **{f"{name}.norm.{part}": shape[:1] for part in parts}}


def convolved(name: str, *shape: int, norm: str) -> Shapes:
    """With a bias, or a norm after it."""
    return layer(name, *shape) if norm == "FrozenBN" else normalised(name, *shape, norm=norm)


def stage_shapes(
    prefix: str, number: int, blocks: int, *, norm: str, groups: int, width: int, offsets: int = 0
) -> Shapes:
    """Stage ``number`` (2 to 5) of a ResNet of bottleneck blocks; ``offsets`` are those of deformable ones."""
    stage, shapes = 2 ** (number - 2), Shapes()
    inner, outer = groups * width * stage, 256 * stage
    for block in range(blocks):
        entering = outer if block else 64 if number == 2 else outer // 2
        place = f"{prefix}.res{number}.{block}"
        if block == 0:
            shapes |= normalised(f"{place}.shortcut", outer, entering, 1, 1, norm=norm)
        shapes |= normalised(f"{place}.conv1", inner, entering, 1, 1, norm=norm)
        shapes |= layer(f"{place}.conv2_offset", offsets, inner, 3, 3) if offsets else {}
        shapes |= normalised(f"{place}.conv2", inner, inner // groups, 3, 3, norm=norm)
        shapes |= normalised(f"{place}.conv3", outer, inner, 1, 1, norm=norm)
    return shapes


def pointrend_shapes(classes: int) -> Shapes:
    coarse, point = "roi_heads.mask_head.coarse_head", "roi_heads.mask_head.point_head"
    shapes = layer(f"{coarse}.reduce_spatial_dim_conv", 256, 256, 2, 2)
    shapes |= layer(f"{coarse}.fc1", 1024, 256 * 49) | layer(f"{coarse}.fc2", 1024, 1024)
    shapes |= layer(f"{coarse}.prediction", classes * 49, 1024)
    for number in range(1, 4):
        shapes |= layer(f"{point}.fc{number}", 256, 256 + classes, 1)
    return shapes | layer(f"{point}.predictor", classes, 256 + classes, 1)


def detector_shapes(  # noqa: PLR0913  # one argument for every kind of layer
    *,
    kind: str,
    depth: int = 50,
    classes: int = 80,
    masks: bool = False,
    cascade: bool = False,
    keypoints: bool = False,
    points: bool = False,
    norm: str = "FrozenBN",
    groups: int = 1,
    width: int = 64,
    offsets: int = 0,
    rpn_convs: int = 1,
    heads_norm: str | None = None,
    mask_convs: int = 4,
    box_convs: int = 4,
    stuff: int = 0,
) -> Shapes:
    """Names and shapes of a Detectron2 detector, written down independently of the code under test."""
    heads_norm = heads_norm or norm
    body = "backbone.bottom_up" if kind == "fpn" else "backbone"
    shapes = normalised(f"{body}.stem.conv1", 64, 3, 7, 7, norm=norm)
    for number, blocks in enumerate(BLOCKS[depth], start=2):
        prefix = "roi_heads" if kind == "c4" and number == 5 else body
        moved = offsets if number > 2 else 0
        shapes |= stage_shapes(prefix, number, blocks, norm=norm, groups=groups, width=width, offsets=moved)
    for number in range(2, 6) if kind == "fpn" else ():
        shapes |= convolved(f"backbone.fpn_lateral{number}", 256, 64 * 2**number, 1, 1, norm=norm)
        shapes |= convolved(f"backbone.fpn_output{number}", 256, 256, 3, 3, norm=norm)
    channels, anchors = {"c4": (1024, 15), "dc5": (2048, 15), "fpn": (256, 3)}[kind]
    rpn = "proposal_generator.rpn_head"
    for number in range(rpn_convs):
        shapes |= layer(f"{rpn}.conv.conv{number}" if rpn_convs > 1 else f"{rpn}.conv", channels, channels, 3, 3)
    shapes |= layer(f"{rpn}.objectness_logits", anchors, channels, 1, 1)
    shapes |= layer(f"{rpn}.anchor_deltas", anchors * 4, channels, 1, 1)
    vector, convs = 2048 if kind == "c4" else 1024, 0 if heads_norm == "FrozenBN" else box_convs
    for stage in (".0", ".1", ".2") if cascade else ("",):
        if kind != "c4":
            for number in range(1, convs + 1):
                shapes |= normalised(f"roi_heads.box_head{stage}.conv{number}", 256, 256, 3, 3, norm=heads_norm)
            shapes |= layer(f"roi_heads.box_head{stage}.fc1", 1024, channels * 49)
            shapes |= {} if convs else layer(f"roi_heads.box_head{stage}.fc2", 1024, 1024)
        shapes |= layer(f"roi_heads.box_predictor{stage}.cls_score", classes + 1, vector)
        shapes |= layer(f"roi_heads.box_predictor{stage}.bbox_pred", 4 if cascade else 4 * classes, vector)
    if masks:
        for number in range(1, mask_convs + 1) if kind != "c4" else ():
            entering = channels if number == 1 else 256
            shapes |= convolved(f"roi_heads.mask_head.mask_fcn{number}", 256, entering, 3, 3, norm=heads_norm)
        deconv = "roi_heads.mask_head.deconv"
        shapes |= {f"{deconv}.weight": (2048 if kind == "c4" else 256, 256, 2, 2), f"{deconv}.bias": (256,)}
        shapes |= layer("roi_heads.mask_head.predictor", classes, 256, 1, 1)
    shapes |= pointrend_shapes(classes) if points else {}
    shapes |= semantic_shapes(1 + stuff) if stuff else {}
    if keypoints:
        for number in range(1, 9):
            shapes |= layer(f"roi_heads.keypoint_head.conv_fcn{number}", 512, 512 if number > 1 else 256, 3, 3)
        lowres = "roi_heads.keypoint_head.score_lowres"
        shapes |= {f"{lowres}.weight": (512, 17, 4, 4), f"{lowres}.bias": (17,)}
    return shapes


def semantic_shapes(classes: int) -> Shapes:
    """A semantic head on p2 to p5."""
    shapes = layer("sem_seg_head.predictor", classes, 128, 1, 1)
    for level, places in {"p2": 1, "p3": 1, "p4": 2, "p5": 3}.items():
        for place in range(places):  # an upsampling stands between two
            shapes |= normalised(f"sem_seg_head.{level}.{2 * place}", 128, 128 if place else 256, 3, 3, norm="GN")
    return shapes


@cache
def numbered_state(name: str) -> dict[str, Tensor]:
    """Every tensor is one number, another for each, repeated without memory."""
    shapes = detector_shapes(**ALL_SPECS[name])
    return {key: torch.tensor(float(number)).expand(shape) for number, (key, shape) in enumerate(shapes.items(), 1)}


@cache
def conversion(name: str) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Of ``numbered_state``, as the zoo's."""
    return convert_detectron2(numbered_state(name), class_names=class_names(name))


def class_names(name: str) -> list[str]:
    """Of things, and of stuff if there is any."""
    spec = ALL_SPECS[name]
    return [f"class {label}" for label in range(spec.get("classes", 80) + spec.get("stuff", 0))]


@pytest.fixture
def double_precision() -> Iterator[None]:
    """In float32 a rounding that moves an IoU over a threshold changes a detection."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    if not REFERENCE.is_file():
        pytest.skip(f"no {REFERENCE}: names, shapes and settings of the zoo's files")
    return json.loads(REFERENCE.read_text())


@pytest.mark.parametrize("name", ALL)
def test_layouts_and_settings_are_the_zoo_s(reference, name: str) -> None:
    """Those of this test, those taken without any given, and those written."""
    assert {key: list(shape) for key, shape in detector_shapes(**SPECS[name]).items()} == reference[name]["tensors"]
    expected, (config, _) = reference[name]["settings"], conversion(name)
    given, _ = convert_detectron2(numbered_state(name), class_names=class_names(name), settings=expected)
    assert given == config
    settings = settings_of(config)
    common = settings.keys() & expected.keys()
    assert len(common) >= 20
    assert {key: settings[key] for key in common} == {key: expected[key] for key in common}


@pytest.mark.parametrize("name", [*ALL, *UNLISTED])
def test_nothing_is_missing_or_unused_and_no_value_changes(name) -> None:
    state = numbered_state(name)
    config, converted = conversion(name)
    assert sorted(value.flatten()[0].item() for value in converted.values()) == list(range(1, len(state) + 1))
    with torch.device("meta"):
        things = object_classes(config, class_names(name))
        own = build_detector(config, len(things), pretrained=False).state_dict()
    own = {key: value for key, value in own.items() if not key.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in converted.items()}


BODY = {
    "stem.conv1.norm.running_mean": "bn1.running_mean",
    "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
    "res3.0.shortcut.norm.running_var": "layer2.0.downsample.1.running_var",
    "res4.5.conv2.weight": "layer3.5.conv2.weight",
    "res4.1.conv3.norm.bias": "layer3.1.bn3.bias",
}
HEADS = {
    "proposal_generator.rpn_head.conv.bias": "rpn.head.conv.bias",
    "proposal_generator.rpn_head.objectness_logits.weight": "rpn.head.objectness.weight",
    "proposal_generator.rpn_head.anchor_deltas.bias": "rpn.head.deltas.bias",
    "roi_heads.box_predictor.cls_score.weight": "box_stage.predictor.classes.weight",
    "roi_heads.box_predictor.bbox_pred.bias": "box_stage.predictor.deltas.bias",
}
PLACES: dict[str, dict[str, str]] = {
    "mask_rcnn_R_50_C4": {
        **{f"backbone.{theirs}": f"backbone.{ours}" for theirs, ours in BODY.items()},
        **HEADS,
        "roi_heads.res5.2.conv1.norm.weight": "box_stage.head.layer4.2.bn1.weight",
        "roi_heads.mask_head.deconv.weight": "mask_stage.head.upsample.weight",
    },
    "faster_rcnn_R_50_DC5": {"backbone.res5.0.conv3.weight": "backbone.layer4.0.conv3.weight", **HEADS},
    "mask_rcnn_R_50_FPN": {
        **{f"backbone.bottom_up.{theirs}": f"backbone.body.{ours}" for theirs, ours in BODY.items()},
        **HEADS,
        "backbone.fpn_lateral2.weight": "backbone.lateral.c2.0.weight",
        "backbone.fpn_output5.bias": "backbone.output.c5.0.bias",
        "roi_heads.box_head.fc1.weight": "box_stage.head.fcs.0.weight",
        "roi_heads.box_head.fc2.bias": "box_stage.head.fcs.2.bias",
        "roi_heads.mask_head.mask_fcn1.weight": "mask_stage.head.convs.0.0.weight",
        "roi_heads.mask_head.mask_fcn4.bias": "mask_stage.head.convs.3.0.bias",
        "roi_heads.mask_head.predictor.bias": "mask_stage.head.masks.bias",
    },
    "cascade_mask_rcnn_R_50_FPN": {
        "roi_heads.box_head.1.fc2.weight": "box_stage.stages.1.head.fcs.2.weight",
        "roi_heads.box_predictor.2.bbox_pred.weight": "box_stage.stages.2.predictor.deltas.weight",
        "roi_heads.box_predictor.0.cls_score.bias": "box_stage.stages.0.predictor.classes.bias",
    },
    "mask_rcnn_R_50_FPN_LSJ": {
        "proposal_generator.rpn_head.conv.conv0.weight": "rpn.head.conv.weight",
        "proposal_generator.rpn_head.conv.conv1.bias": "rpn.head.more.0.bias",
    },
    "pointrend_rcnn_R_50_FPN": {
        "roi_heads.mask_head.coarse_head.reduce_spatial_dim_conv.bias": "mask_stage.coarse.shrink.0.bias",
        "roi_heads.mask_head.coarse_head.fc2.weight": "mask_stage.coarse.fcs.2.weight",
        "roi_heads.mask_head.coarse_head.prediction.bias": "mask_stage.coarse.masks.bias",
        "roi_heads.mask_head.point_head.fc3.weight": "mask_stage.points.layers.2.weight",
        "roi_heads.mask_head.point_head.predictor.bias": "mask_stage.points.masks.bias",
    },
    "panoptic_fpn_R_50": {
        "sem_seg_head.p2.0.weight": "label_stage.head.levels.p2.0.weight",
        "sem_seg_head.p5.4.norm.bias": "label_stage.head.levels.p5.9.bias",
        "sem_seg_head.predictor.bias": "label_stage.head.classes.bias",
        "roi_heads.mask_head.predictor.bias": "mask_stage.head.masks.bias",
    },
    "keypoint_rcnn_R_50_FPN": {
        "roi_heads.keypoint_head.conv_fcn1.weight": "keypoint_stage.head.convs.0.0.weight",
        "roi_heads.keypoint_head.conv_fcn8.bias": "keypoint_stage.head.convs.7.0.bias",
        "roi_heads.keypoint_head.score_lowres.weight": "keypoint_stage.head.maps.weight",
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_values_land_in_their_place(name) -> None:
    state, (_, converted) = numbered_state(name), conversion(name)
    for theirs, ours in PLACES[name].items():
        assert converted[ours] is state[theirs], theirs


def test_a_pickle_of_the_zoo_becomes_a_checkpoint_of_ours(tmp_path) -> None:
    """With all that the zoo's files hold, older ones the anchors too."""
    arrays = {key: value.numpy().copy() for key, value in numbered_state("faster_rcnn_R_50_C4_voc").items()}
    constants = {"pixel_mean": torch.tensor(SOURCES["msra"].input_stats.mean).view(3, 1, 1), "pixel_std": torch.ones(3)}
    arrays |= {key: value.numpy() for key, value in constants.items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = zoo_anchors([32, 64, 128, 256, 512]).numpy()
    with (tmp_path / "model_final.pkl").open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file, protocol=4)
    names = class_names("faster_rcnn_R_50_C4_voc")
    config, state = convert_detectron2(read_state_dict(tmp_path / "model_final.pkl"), class_names=names)
    checkpoint = read_checkpoint(write_converted(tmp_path / "run", config, names, state))
    assert checkpoint.config == config
    detector = build_detector(checkpoint.config, 20, pretrained=False)
    load_detector_weights(detector, checkpoint, names)
    expected = arrays["roi_heads.box_predictor.bbox_pred.weight"][0, 0]
    assert detector.get_parameter("box_stage.predictor.deltas.weight").eq(float(expected)).all()


def zoo_anchors(sizes: list[int]) -> Tensor:
    """Detectron2's anchors around the corner of a cell: for each size one of each ratio."""
    boxes = []
    for size in sizes:
        for ratio in (0.5, 1.0, 2.0):
            width = (size**2 / ratio) ** 0.5
            boxes.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
    return torch.tensor(boxes)


# settings


def converted_config(name: str, settings: dict[str, Any]) -> DetectionConfig:
    return convert_detectron2(numbered_state(name), class_names=class_names(name), settings=settings)[0]


def named_of(config: DetectionConfig, named: dict[str, Any]) -> dict[str, Any]:
    """The values of ``config`` under the keys of ``named``."""
    values = yaml.safe_load(dump_config(config))
    return {k: {n: values[k][n] for n in v} if isinstance(v, dict) else values[k] for k, v in named.items()}


TOLD: dict[str, Any] = yaml.safe_load("""
mask_rcnn_R_50_C4:
  architecture: mask_rcnn
  backbone: {name: resnet50, norm: frozen_bn, roi_size: 14, fpn: false}
  anchors: {sizes: [32, 64, 128, 256, 512], offset: 0, rounded: false}
  rpn: {channels: 1024, pre_nms_train: 12000, pre_nms_test: 6000, post_nms_train: 2000, post_nms_test: 1000,
    min_size: 0, smooth_l1_beta: 0, samples_per_image: 256, positive_fraction: 0.5, allow_outside: true}
  box: {head: tail, pool: roi_align, sampling_ratio: 0, smooth_l1_beta: 0, samples_per_image: 512,
    positive_fraction: 0.25, coder_weights: [10, 10, 5, 5]}
  test: {nms_iou: 0.5, score_threshold: 0.05, max_detections: 100}
  data: {shorter_side: 800, longer_side: 1333}
cascade_mask_rcnn_R_50_FPN:
  backbone: {fpn: true, fpn_channels: 256, dilate_c5: null}
  rpn: {channels: 256, pre_nms_train: 2000, pre_nms_test: 1000, post_nms_train: 1000, post_nms_test: 1000}
  cascade: {ious: [0.5, 0.6, 0.7]}
  box: {class_agnostic: true, head: fc, pool_size: 7, head_channels: 1024}
  mask: {pool_size: 14, convs: 4, channels: 256, geometry: detectron2}
# Source: Detectron2, configs/COCO-Keypoints/Base-Keypoint-RCNN-FPN.yaml, and the defaults of ROI_KEYPOINT_HEAD.
keypoint_rcnn_R_50_FPN:
  architecture: keypoint_rcnn
  box: {smooth_l1_beta: 0.5, pool: roi_align, sampling_ratio: 0}
  rpn: {post_nms_train: 1500}
  keypoint: {pool_size: 14, convs: 8, channels: 512}
pointrend_rcnn_R_50_FPN: {architecture: pointrend_rcnn, mask: {pool_size: 14, geometry: detectron2}}
panoptic_fpn_R_50:
  architecture: panoptic_fpn
  semantic: {loss_weight: 0.5, norm: gn}
  panoptic: {instance_score: 0.5, overlap: 0.5, stuff_area: 4096}
panoptic_fpn_R_101_dconv_cascade_gn: {architecture: cascade_panoptic_fpn}
# Told by the layers.
mask_rcnn_R_50_FPN_gn:
  backbone: {norm: gn, fpn_norm: gn, stride_in: 3x3}
  box: {head_norm: gn, head_convs: 4, head_fcs: 1}
  mask: {norm: gn}
mask_rcnn_R_50_FPN_syncbn:
  backbone: {norm: sync_bn, fpn_norm: sync_bn, stride_in: 1x1, weights_source: msra}
  box: {head_norm: sync_bn}
  mask: {norm: sync_bn}
faster_rcnn_X_101_32x8d_FPN: {backbone: {name: resnext101_32x8d, stride_in: 3x3, weights_source: caffe2}}
mask_rcnn_R_50_FPN_dconv_c3-c5: {backbone: {deform: [c3, c4, c5], deform_modulated: false, stride_in: 1x1}}
faster_rcnn_R_50_FPN_modulated: {backbone: {deform: [c3, c4, c5], deform_modulated: true}}
mask_rcnn_R_50_FPN_LSJ: {rpn: {convs: 2}, backbone: {norm: sync_bn}}
""")


@pytest.mark.parametrize("name", TOLD)
def test_settings_without_any_given(name: str) -> None:
    assert named_of(conversion(name)[0], TOLD[name]) == TOLD[name]


GIVEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = yaml.safe_load("""
- - faster_rcnn_R_50_C4
  - {MODEL.ANCHOR_GENERATOR.SIZES: [[16, 32, 64, 128, 256]], MODEL.ANCHOR_GENERATOR.OFFSET: 0.5,
    MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION: 7, MODEL.ROI_HEADS.NMS_THRESH_TEST: 0.6, INPUT.MIN_SIZE_TEST: 600}
  - {anchors: {sizes: [16, 32, 64, 128, 256], offset: 0.5}, backbone: {roi_size: 7}, test: {nms_iou: 0.6},
    data: {shorter_side: 600}}
- [mask_rcnn_R_50_FPN_syncbn, {MODEL.RESNETS.NORM: FrozenBN}, {backbone: {norm: frozen_bn}}]
- - faster_rcnn_R_50_FPN
  - {MODEL.ROI_BOX_HEAD.POOLER_TYPE: ROIAlign, MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO: 2}
  - {box: {pool: roi_align_unaligned, sampling_ratio: 2}}
- - panoptic_fpn_R_50
  - {MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT: 9, MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH: 0.25,
    MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH: 0.75, MODEL.PANOPTIC_FPN.COMBINE.ENABLED: true}
  - {panoptic: {instance_score: 0.75, overlap: 0.25, stuff_area: 9}}
- - pointrend_rcnn_R_50_FPN
  - {MODEL.POINT_HEAD.SUBDIVISION_STEPS: 3, MODEL.ROI_MASK_HEAD.POOLER_TYPE: ""}
  - {point: {steps: 3}}
- - keypoint_rcnn_R_50_FPN
  - {MODEL.KEYPOINT_ON: true, MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS: 17,
    MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS: true, MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION: 7}
  - {keypoint: {pool_size: 7, convs: 8}}
- - faster_rcnn_R_50_FPN
  - {MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53], MODEL.PIXEL_STD: [58.395, 57.12, 57.375], INPUT.FORMAT: RGB,
    MODEL.RESNETS.STRIDE_IN_1X1: false}
  - {backbone: {weights_source: torchvision, stride_in: 3x3}}
""")


@pytest.mark.parametrize(("name", "given", "expected"), GIVEN)
def test_given_settings_replace_those_of_the_zoo(name: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert named_of(converted_config(name, given), expected) == expected


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("", "INPUT.FORMAT", "RGB", r"no weights here saw pixels of .*FORMAT RGB; known: torchvision: \[123\.675"),
        ("", "MODEL.PIXEL_STD", [57.375, 57.12, 5.0], r"no weights .*PIXEL_STD \[57\.375, 57\.12, 5\.0\]"),
        ("", "MODEL.PIXEL_MEAN", 103.53, r"no weights .*PIXEL_MEAN 103\.53"),
        ("", "MODEL.RESNETS.NORM", "LN", r"RESNETS\.NORM is 'LN'; known: '', 'FrozenBN'"),
        ("", "MODEL.RPN.BOUNDARY_THRESH", 0, "BOUNDARY_THRESH is 0; a detector here has -1"),
        ("", "TEST.AUG.ENABLED", True, "ENABLED is True"),
        ("", "MODEL.RESNETS.RES5_DILATION", 2, "RES5_DILATION is 2; a detector here has 1"),
        ("", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "POOLER_TYPE is 'ROIPool'"),
        ("", "MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]], r"mismatched: 4: rpn\.head\.objectness"),
        ("", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "high", r"test\.nms_iou' takes a number, got 'high'"),
        ("", "MODEL.ROI_HEADS.NMS", 0.5, r"no use for Detectron2's setting 'MODEL\.ROI_HEADS\.NMS'; known: MODEL\."),
        ("panoptic_fpn_R_50", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False, "COMBINE"),
        ("keypoint_rcnn_R_50_FPN", "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "ROIAlign", r"POOLER_TYPE is 'ROIAlign'"),
        ("pointrend_rcnn_R_50_FPN", "MODEL.POINT_HEAD.IN_FEATURES", ["p3"], r"\['p3'\]; a detector here has \('p2',\)"),
        ("mask_rcnn_R_50_FPN", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", r"'ROIAlign' and .*'ROIAlignV2'"),
    ],
)
def test_a_setting_without_a_place_here_is_refused(name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted_config(name or "faster_rcnn_R_50_C4", {key: value})


def test_masks_pooled_as_boxes_go_back() -> None:
    keys = {"POOLER_TYPE": "ROIAlign", "POOLER_SAMPLING_RATIO": 2}
    alike = {f"MODEL.ROI_{kind}_HEAD.{key}": value for kind in ("BOX", "MASK") for key, value in keys.items()}
    assert alike.items() <= settings_of(converted_config("mask_rcnn_R_50_FPN", alike)).items()


def test_stuff_has_the_names_given_or_numbers() -> None:
    state, names = numbered_state("panoptic_fpn_R_50"), class_names("panoptic_fpn_R_50")
    own = conversion("panoptic_fpn_R_50")[0].panoptic
    assert (own.stuff[0], len(own.stuff)) == ("class 80", 53)
    unnamed, _ = convert_detectron2(state, class_names=names[:80])
    assert unnamed.panoptic.stuff[:2] == ("stuff 1", "stuff 2")
    with pytest.raises(ValueError, match="80 things and 53 classes of stuff, class_names has 81"):
        convert_detectron2(state, class_names=names[:81])
    assert len(conversion("keypoint_rcnn_R_50_FPN")[0].keypoint.names) == 17


def test_pixels_and_strides_of_torchvision_s_weights() -> None:
    config, _ = conversion("faster_rcnn_R_50_FPN")
    backbone = replace(config.backbone, weights_source="torchvision", stride_in="3x3")
    config = replace(config, backbone=backbone)
    with torch.device("meta"):
        detector = build_detector(config, 80, pretrained=False)
    assert isinstance(detector, FasterRCNN)
    assert not detector.normalize.bgr
    assert [detector.get_submodule(f"backbone.body.layer2.0.conv{i}").stride for i in (1, 2)] == [(1, 1), (2, 2)]


def spec_of(entry: Entry) -> dict[str, Any]:
    """The layers of a Faster, Mask or Cascade R-CNN of the zoo, by its name."""
    name = entry.name
    if "X_152" in name:
        return LARGEST
    spec: dict[str, Any] = {
        "kind": next((kind for kind in ("c4", "dc5") if f"_{kind.upper()}" in name), "fpn"),
        "depth": 101 if "_101_" in name else 50,
        "classes": len(entry.class_names) - (53 if "panoptic" in name else 0),
        "masks": "mask_rcnn" in name or "panoptic" in name,
        "stuff": 53 if "panoptic" in name else 0,
        "cascade": "cascade" in name,
        "keypoints": "keypoint" in name,
        "points": "pointrend" in name,
        "norm": "SyncBN" if name.endswith(("_syncbn", "_LSJ")) else "FrozenBN",
        "offsets": 18 if "dconv" in name else 0,
        "rpn_convs": 2 if name.endswith("_LSJ") else 1,
    }
    spec |= {"norm": "GN"} if name.endswith("_gn") or "_gn_3x" in name else {}
    spec |= {"box_convs": 0} if "panoptic" in name else {}
    return spec | ({"groups": 32, "width": 8} if "32x8d" in name else {})


REGIONS = [entry for entry in ZOO if entry.source == "detectron2" and "retinanet" not in entry.name]
# Settings that a name does not show, as Detectron2's configs have them.
OF_ONE: dict[str, Any] = yaml.safe_load("""
cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv:
  backbone: {name: resnext152_32x8d, weights_source: msra, stride_in: 3x3}
scratch_mask_rcnn_R_50_FPN_9x_syncbn: {backbone: {weights_source: caffe2, stride_in: 3x3, freeze_at: 0}}
mask_rcnn_R_50_FPN_noaug_1x: {box: {pool: roi_align_unaligned, sampling_ratio: 2, smooth_l1_beta: 1.0}}
mask_rcnn_R_50_FPN_cityscapes: {data: {shorter_side: 1024, longer_side: 2048}}
mask_rcnn_R_50_FPN_1x_lvis: {test: {score_threshold: 0.0001, max_detections: 300}}
keypoint_rcnn_R_50_FPN_1x_d1: {box: {pool: roi_align_unaligned, smooth_l1_beta: 1.0}}
cascade_mask_rcnn_R_50_FPN_1x: {rpn: {post_nms_train: 2000}}
mask_rcnn_R_50_FPN_100ep_LSJ: {backbone: {freeze_at: 0}, box: {head_convs: 4}}
""")


@pytest.mark.slow
@pytest.mark.parametrize("entry", REGIONS, ids=lambda entry: entry.name)
def test_every_detector_of_regions_in_the_zoo_loads(entry) -> None:
    shapes = detector_shapes(**spec_of(entry))
    state = {key: torch.tensor(0.5).expand(shape) for key, shape in shapes.items()}
    config, converted = convert_detectron2(state, class_names=entry.class_names, settings=entry.settings)
    assert len(converted) == len(state)
    assert config.architecture in entry.name or config.architecture == "cascade_panoptic_fpn"
    stuff = config.panoptic.stuff
    assert (len(stuff), stuff[-1:]) == ((53, ("rug-merged",)) if "panoptic" in entry.name else (0, ()))
    assert ("dconv" in entry.name) == (config.backbone.deform == ("c3", "c4", "c5"))
    assert ("mask_rcnn" in entry.name) == ("mask" in config.architecture)
    assert named_of(config, OF_ONE.get(entry.name, {})) == OF_ONE.get(entry.name, {})


def test_older_files_of_pointrend_have_other_names() -> None:
    name, older = "pointrend_rcnn_R_50_FPN", dict[str, Tensor]()
    for key, value in numbered_state(name).items():
        before = re.sub(r"mask_head\.(coarse|point)_head", r"mask_\1_head", key)
        older[before.replace("coarse_head.fc", "coarse_head.coarse_mask_fc")] = value
    assert "roi_heads.mask_coarse_head.coarse_mask_fc1.weight" in older
    assert "roi_heads.mask_point_head.fc1.weight" in older
    config, converted = convert_detectron2(older, class_names=class_names(name))
    assert (config, converted.keys()) == (conversion(name)[0], conversion(name)[1].keys())
    assert all(value is conversion(name)[1][key] for key, value in converted.items())


def test_one_mask_for_all_classes_becomes_that_of_each() -> None:
    state = dict(numbered_state("mask_rcnn_R_50_C4"))
    predictor = "roi_heads.mask_head.predictor"
    state |= {f"{predictor}.weight": torch.rand(1, 256, 1, 1), f"{predictor}.bias": torch.rand(1)}
    _, converted = convert_detectron2(state, class_names=class_names("mask_rcnn_R_50_C4"))
    assert converted["mask_stage.head.masks.bias"].equal(state[f"{predictor}.bias"].repeat(80))
    assert converted["mask_stage.head.masks.weight"].equal(state[f"{predictor}.weight"].repeat(80, 1, 1, 1))


# the way back


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALL, *UNLISTED])
def test_the_way_back_gives_the_same_bits_and_settings(name) -> None:
    state, (config, converted) = numbered_state(name), conversion(name)
    back, settings = to_detectron2(config, object_classes(config, class_names(name)), converted)
    assert set(back) == set(state)
    assert all(back[key].equal(value) for key, value in state.items())
    assert convert_detectron2(back, class_names=class_names(name), settings=settings)[0] == config


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        ("faster_rcnn_R_50_C4", "anchors.rounded", True, r"anchors\.rounded is True"),
        ("faster_rcnn_R_50_C4", "box.pool", "roi_pool", r"box\.pool is 'roi_pool', detectron2"),
        ("faster_rcnn_R_50_C4", "test.flip", True, r"test\.flip is True, detectron2 has False"),
        ("faster_rcnn_R_50_C4", "backbone.norm_eps", 1e-3, r"backbone\.norm_eps is 0\.001"),
        ("faster_rcnn_R_50_C4", "backbone.name", "vgg16", r"backbone\.name vgg16"),
        ("mask_rcnn_R_50_FPN", "mask.geometry", "exact", r"mask\.geometry is 'exact', detectron2 has 'detectron2'"),
    ],
)
def test_what_detectron2_lacks_does_not_go_back(name: str, keys: str, value: Any, message: str) -> None:
    (config, converted), (section, key) = conversion(name), keys.split(".")
    changed = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    with pytest.raises(ValueError, match=message):
        to_detectron2(changed, class_names(name), converted)


# misfits


def c4_state(**changes: Tensor) -> dict[str, Tensor]:
    return numbered_state("faster_rcnn_R_50_C4") | {key.replace("__", "."): value for key, value in changes.items()}


def without(text: str) -> dict[str, Tensor]:
    return {name: value for name, value in c4_state().items() if text not in name}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {}, r"no weights of Detectron2's .*: none of backbone\.fpn_lateral2\.weight, roi_heads\.res5"),
        (lambda: without("rpn_head"), "an RPN's or a box predictor's are missing"),
        (lambda: without("box_predictor"), "an RPN's or a box predictor's are missing"),
        (lambda: without("res4.5."), r"stages of \(3, 4, 5, 3\) bottleneck blocks, expected .*resnet50 \(3, 4, 6, 3\)"),
        (lambda: without("bbox_pred.weight"), r"missing: 1: box_stage\.predictor\.deltas\.weight"),
        (lambda: c4_state(roi_heads__x=torch.zeros(1)), r"unused: 1: roi_heads\.x"),
        (lambda: c4_state(head__cls_subnet__1__weight=torch.zeros(1)), r"of RetinaNet with normalised towers \(head"),
        (lambda: c4_state(sem_seg_head__p2__0__weight=torch.zeros(1)), r"unused: 1: label_stage\.head\.levels\.p2"),
        (lambda: c4_state(backbone__res4__0__conv2_offset__bias=torch.zeros(1)), r"unused: 1: .*conv2\.offset\.bias"),
        (
            lambda: c4_state(backbone__res2__0__conv2__weight=torch.zeros(256, 4, 3, 3)),
            "of ResNeXt-50 64x4d, which back",
        ),
        (lambda: c4_state(pixel_mean=torch.tensor([123.675, 116.28, 103.53])), r"pixel_mean is \[123\.6.*has \[103\.5"),
        (lambda: c4_state(pixel_std=torch.full((3,), 57.0)), r"pixel_std is \[57\.0"),
        (
            lambda: c4_state(proposal_generator__anchor_generator__cell_anchors__0=zoo_anchors([16, 32, 64, 128, 256])),
            r"cell_anchors\.0 is .*say in settings \(--settings\) what differs",
        ),
        (
            lambda: c4_state(proposal_generator__anchor_generator__cell_anchors__1=zoo_anchors([64])),
            r"cell_anchors\.1 is .* has None",
        ),
    ],
)
def test_other_weights_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        convert_detectron2(make(), class_names=class_names("faster_rcnn_R_50_C4"))


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="know 80 classes besides the background, class_names has 20: give 80 names"):
        convert_detectron2(c4_state(), class_names=class_names("faster_rcnn_R_50_C4_voc"))


def test_a_pyramid_s_anchors_are_checked_level_by_level() -> None:
    state = dict(numbered_state("faster_rcnn_R_50_FPN"))
    for number, size in enumerate((32, 64, 128, 256, 512)):
        state[f"proposal_generator.anchor_generator.cell_anchors.{number}"] = zoo_anchors([size])
    _, converted = convert_detectron2(state, class_names=class_names("faster_rcnn_R_50_FPN"))
    assert not any("anchor" in name for name in converted)


# the same numbers, by a forward pass written down with Detectron2's names


def drawn_state(name: str) -> dict[str, Tensor]:
    """Random values under which activations keep their size; the layers after the RPN are one number."""
    generator, state = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for key, shape in detector_shapes(**ALL_SPECS[name]).items():
        if key.startswith("roi_heads."):
            state[key] = torch.tensor(0.01).expand(shape)
        elif len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[key] = 0.5 * key.endswith("norm.weight") + 0.1 * torch.randn(shape, generator=generator)
    return state


def convolve(state: Mapping[str, Tensor], name: str, x: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    padding = dilation * (weight.shape[-1] // 2)
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return normalise(state, name, x)


def deform(state: Mapping[str, Tensor], name: str, x: Tensor, *, stride: int, dilation: int) -> Tensor:
    """The convolution ``name`` at the places that ``name``_offset gives: (dy, dx) of each sample, then its logit."""
    chosen = convolve(state, f"{name}_offset", x, stride=stride, dilation=dilation)
    height, width = x.shape[-2:]
    down, across = (torch.arange(count) * stride for count in chosen.shape[-2:])
    samples = []
    for sample in range(9):
        rows = down[:, None] + (sample // 3 - 1) * dilation + chosen[:, 2 * sample]
        columns = across + (sample % 3 - 1) * dilation + chosen[:, 2 * sample + 1]
        places = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
        found = F.grid_sample(x, places, align_corners=True)
        samples.append(found * chosen[:, None, 18 + sample].sigmoid() if chosen.shape[1] == 27 else found)
    weight = state[f"{name}.weight"].flatten(2)  # (O, C, 9)
    return normalise(state, name, torch.einsum("ncshw,ocs->nohw", torch.stack(samples, dim=2), weight))


def normalise(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The norm after the convolution ``name``, if there is any."""
    if f"{name}.norm.weight" not in state:
        return x
    if f"{name}.norm.running_mean" not in state:
        return F.group_norm(x, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"], eps=1e-5)
    scale, shift, mean, var = (
        state[f"{name}.norm.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def zoo_body(state: Mapping[str, Tensor], body: str, x: Tensor, *, dilated: bool, stride_in: str) -> list[Tensor]:
    """res2, res3, .. of the stages under ``body``; the stride is in the 1x1 or the 3x3 convolution."""
    x = F.max_pool2d(F.relu(convolve(state, f"{body}.stem.conv1", x, stride=2)), 3, stride=2, padding=1)
    outputs = []
    for stage in range(2, 6):
        dilation = 2 if dilated and stage == 5 else 1
        block = 0
        while f"{body}.res{stage}.{block}.conv1.weight" in state:
            place = f"{body}.res{stage}.{block}"
            stride = 2 if block == 0 and stage > 2 and dilation == 1 else 1
            first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
            out = F.relu(convolve(state, f"{place}.conv1", x, stride=first))
            middle = deform if f"{place}.conv2_offset.weight" in state else convolve
            out = F.relu(middle(state, f"{place}.conv2", out, stride=second, dilation=dilation))
            shortcut = convolve(state, f"{place}.shortcut", x, stride=stride) if block == 0 else x
            x = F.relu(convolve(state, f"{place}.conv3", out) + shortcut)
            block += 1
        outputs += [x] if block else []
    return outputs


def zoo_pyramid(state: Mapping[str, Tensor], stages: list[Tensor]) -> list[Tensor]:
    levels, above = list[Tensor](), torch.zeros(())
    for stage, x in reversed(list(enumerate(stages, start=2))):
        above = convolve(state, f"backbone.fpn_lateral{stage}", x) + above
        levels.insert(0, convolve(state, f"backbone.fpn_output{stage}", above))
        above = F.interpolate(above, scale_factor=2, mode="nearest")
    return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def loaded(config: DetectionConfig, state: Mapping[str, Tensor]) -> FasterRCNN:
    """The detector of ``config`` up to its RPN; its box head is small, which saves time."""
    box = replace(config.box, pool_size=1, head_channels=8)
    small = replace(config, architecture="faster_rcnn", box=box)
    detector = build_detector(small, 80, pretrained=False).eval()
    own = {name: value for name, value in state.items() if name.startswith(("backbone.", "rpn."))}
    missing, unused = detector.load_state_dict(own, strict=False)
    assert not unused
    assert all(name.startswith("box_stage.") or name.endswith("num_batches_tracked") for name in missing)
    assert isinstance(detector, FasterRCNN)
    return detector


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn_R_50_DC5", "faster_rcnn_R_50_FPN", *UNLISTED])
@torch.inference_mode()
def test_features_and_rpn_give_detectron2_s_numbers(name) -> None:
    state = drawn_state(name)
    detector = loaded(*convert_detectron2(state, class_names=class_names(name)))
    pixels = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    std = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1) if "X_101" in name else 1.0
    kind = ALL_SPECS[name]["kind"]
    body = "backbone.bottom_up" if kind == "fpn" else "backbone"
    normal, stride_in = (pixels.flip(1).float() - mean) / std, "3x3" if "X_101" in name or "gn" in name else "1x1"
    stages = zoo_body(state, body, normal, dilated=kind == "dc5", stride_in=stride_in)
    expected = zoo_pyramid(state, stages) if kind == "fpn" else stages[-1:]
    features = detector.features(ImageBatch(pixels, torch.tensor([[64, 96]])))
    assert [feature.shape[-2:] for feature in features] == [level.shape[-2:] for level in expected]
    rpn = "proposal_generator.rpn_head"
    for ours, theirs in zip(features, expected, strict=True):
        assert_near(ours, theirs)
        hidden = theirs
        for convolution in ("conv", "conv.conv0", "conv.conv1"):
            present = f"{rpn}.{convolution}.weight" in state
            hidden = F.relu(convolve(state, f"{rpn}.{convolution}", hidden)) if present else hidden
        logits, deltas = detector.rpn.head(ours)
        # (N, A, H, W) and (N, A * 4, H, W): anchors of a cell together
        assert_near(logits[0], convolve(state, f"{rpn}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten())
        boxes = convolve(state, f"{rpn}.anchor_deltas", hidden)[0].unflatten(0, (-1, 4))
        assert_near(deltas[0], boxes.permute(2, 3, 0, 1).reshape(-1, 4))
    if detector.label_stage is not None:
        assert_near(detector.label_stage.head(features), zoo_semantic(state, expected))


def zoo_semantic(state: Mapping[str, Tensor], levels: Sequence[Tensor]) -> Tensor:
    """Logits of stride 4 of a semantic head on the first four ``levels``."""
    total = torch.zeros(())
    for number, level in enumerate(levels[:4]):
        x = level
        for place in range(max(number, 1)):
            x = F.relu(convolve(state, f"sem_seg_head.p{number + 2}.{2 * place}", x))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if number else x
        total = total + x
    return convolve(state, "sem_seg_head.predictor", total)


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_anchors_start_at_the_corner_of_the_first_cell() -> None:
    config, _ = conversion("faster_rcnn_R_50_FPN")
    detector = build_detector(config, 80, pretrained=False)
    assert isinstance(detector, FasterRCNN)
    anchors = detector.rpn.anchors
    for number, (level, stride) in enumerate(zip(anchors, (4, 8, 16, 32, 64), strict=True)):
        first = zoo_anchors([32 * 2**number])
        laid = level(2, 3)
        torch.testing.assert_close(laid[:3], first, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(laid[-3:], first + stride * torch.tensor([2, 1, 2, 1]), rtol=1e-6, atol=1e-4)


def test_the_tail_of_a_c4_halves_in_its_first_convolution() -> None:
    config, _ = conversion("faster_rcnn_R_50_C4")
    with torch.device("meta"):
        detector = build_detector(config, 80, pretrained=False)
    strides = [detector.get_submodule(f"box_stage.head.layer4.0.conv{i}").stride for i in (1, 2, 3)]
    assert strides == [(2, 2), (1, 1), (1, 1)]
    pooler = detector.get_submodule("box_stage.pooler")
    assert isinstance(pooler, RegionPooler)
    assert (pooler.size, pooler.sampling_ratio, pooler.kind) == (14, 0, "roi_align")
    assert isinstance(detector, FasterRCNN)
    assert detector.normalize.bgr


# detections, by Detectron2's definitions: proposal_utils.py, poolers.py, roi_heads/fast_rcnn.py and mask_head.py


def spread(state: dict[str, Tensor], name: str, x: Tensor, deviation: float) -> Tensor:
    """Draws the layer ``name`` so that each of its outputs for ``x`` has this deviation and no mean; returns them."""
    weight = torch.randn(state[f"{name}.weight"].shape, generator=torch.Generator().manual_seed(0))
    outputs = F.conv2d(x, weight) if weight.ndim == 4 else F.linear(x, weight)
    channels = outputs.transpose(0, 1).flatten(1)
    factor, mean = deviation / channels.std(dim=1), channels.mean(dim=1)
    state[f"{name}.weight"] = weight * factor.view(-1, *[1] * (weight.ndim - 1))
    state[f"{name}.bias"] = -mean * factor
    shape = (-1, *[1] * (outputs.ndim - 2))
    return (outputs - mean.view(shape)) * factor.view(shape)


def zoo_decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes (..., 4) of ``deltas`` (..., 4) from ``boxes`` (..., 4)."""
    sides, (shift, scale) = boxes[..., 2:] - boxes[..., :2], (deltas / torch.tensor(weights)).split(2, dim=-1)
    centers = boxes[..., :2] + sides / 2 + shift * sides
    sides = sides * scale.clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)


def zoo_proposals(state: dict[str, Tensor], levels: list[Tensor], size: tuple[int, int], most: int) -> Tensor:
    rpn, boxes, scores, numbers = "proposal_generator.rpn_head", [], [], []
    for number, (x, stride) in enumerate(zip(levels, (4, 8, 16, 32, 64), strict=True)):
        y, across = torch.meshgrid(*(torch.arange(0, n * stride, stride) for n in x.shape[-2:]), indexing="ij")
        corners = torch.stack([across, y, across, y], dim=-1)[:, :, None]
        anchors = (corners + zoo_anchors([32 * 2**number])).reshape(-1, 4)
        hidden = F.relu(convolve(state, f"{rpn}.conv", x))
        if number == 0:
            spread(state, f"{rpn}.objectness_logits", hidden, 1.5)
            spread(state, f"{rpn}.anchor_deltas", hidden, 0.2)
        logits = convolve(state, f"{rpn}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten()
        deltas = convolve(state, f"{rpn}.anchor_deltas", hidden)[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1)
        best, rows = logits.topk(min(1000, len(logits)))
        boxes.append(zoo_decode(deltas.reshape(-1, 4)[rows], anchors[rows], (1.0, 1.0, 1.0, 1.0)))
        scores.append(best)
        numbers.append(torch.full_like(rows, number))
    clipped = clip_boxes_to_image(torch.cat(boxes), size)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    clipped = clipped[kept]
    return clipped[batched_nms(clipped, torch.cat(scores)[kept], torch.cat(numbers)[kept], 0.7)[:most]]


def zoo_pool(levels: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    own = (4 + torch.log2(sides / 224 + 1e-8)).floor().clamp(2, 5)
    pooled = torch.zeros(len(boxes), levels[0].shape[1], size, size)
    for number, level in enumerate(levels[:4], start=2):
        mine = own == number
        pooled[mine] = roi_align(level, [boxes[mine]], size, spatial_scale=1 / 2**number, aligned=True)
    return pooled


def zoo_detections(state: dict[str, Tensor], levels: list[Tensor], size: tuple[int, int], most: int) -> list[Tensor]:
    """Boxes, scores, labels and mask probabilities, the best first."""
    proposals, head = zoo_proposals(state, levels, size, most), "roi_heads.box_head"
    x = zoo_pool(levels, proposals, 7).flatten(1)
    for name in ("fc1", "fc2"):
        x = F.relu(spread(state, f"{head}.{name}", x, 1.0))
    logits = spread(state, "roi_heads.box_predictor.cls_score", x, 2.5)
    deltas = spread(state, "roi_heads.box_predictor.bbox_pred", x, 0.5).unflatten(1, (-1, 4))
    boxes = clip_boxes_to_image(zoo_decode(deltas, proposals[:, None], (10.0, 10.0, 5.0, 5.0)), size)
    scores = logits.softmax(dim=1)[:, :-1]
    rows, labels = (scores > 0.05).nonzero(as_tuple=True)
    boxes, scores = boxes[rows, labels], scores[rows, labels]
    kept = batched_nms(boxes, scores, labels, 0.5)[:100]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    x, head = zoo_pool(levels, boxes, 14), "roi_heads.mask_head"
    for number in range(1, 5):
        name = f"{head}.mask_fcn{number}"
        weight = torch.randn(state[f"{name}.weight"].shape, generator=torch.Generator().manual_seed(number))
        state |= {f"{name}.weight": weight * (2 / 2304) ** 0.5, f"{name}.bias": torch.zeros(256)}
        x = F.relu(convolve(state, name, x))
    state[f"{head}.deconv.weight"] = torch.randn(256, 256, 2, 2, generator=torch.Generator().manual_seed(9)) / 16
    x = F.relu(F.conv_transpose2d(x, state[f"{head}.deconv.weight"], state[f"{head}.deconv.bias"], stride=2))
    masks = spread(state, f"{head}.predictor", x, 2.0).sigmoid()
    return [boxes, scores, labels, masks[torch.arange(len(masks)), labels]]


@pytest.mark.slow
@torch.inference_mode()
def test_boxes_scores_and_masks_are_detectron2_s(double_precision) -> None:
    name, size, most = "mask_rcnn_R_50_FPN", (96, 128), 200
    pixels = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    state = {key: value.double() for key, value in drawn_state(name).items()}
    normal = pixels.flip(1).double() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    stages = zoo_body(state, "backbone.bottom_up", normal, dilated=False, stride_in="1x1")
    boxes, scores, labels, masks = zoo_detections(state, zoo_pyramid(state, stages), size, most)
    assert len(boxes) >= 50
    assert len(labels.unique()) > 10
    assert masks.std() > 0.1

    config, weights = convert_detectron2(state, class_names=class_names(name))
    detector = build_detector(replace(config, rpn=replace(config.rpn, post_nms_test=most)), 80, pretrained=False)
    detector.load_state_dict(weights, strict=False)
    (found,) = detector.eval()(ImageBatch(pixels, torch.tensor([size])))
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-6)
    assert found.labels.equal(labels)
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.masks, masks, rtol=0, atol=1e-5)
