"""Mirrors detectron2.py and its parts for RetinaNet and label maps: the networks of Detectron2's zoo, names and shapes.

Their numbers are in test_detectron2_numbers.py.
"""

import json
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from backbones.weights.load import SOURCES, read_state_dict
from detection.build import build_detector
from detection.config.load import dump_config
from detection.engine.checkpoint import load_detector_weights, read_checkpoint, write_converted
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_panoptic import object_classes
from detection.weights.detectron2_semantic import our_semantic_name, their_semantic_name
from detection.weights.detectron2_settings import settings_of
from detection.weights.origin import _class_names
from detection.weights.published import ZOO, Entry
from detection.weights.to_detectron2 import to_detectron2

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "detectron2_checkpoints.json"
# The largest: ResNeXt-152, whose body alone has fixed statistics.
LARGEST: dict[str, Any] = {"kind": "fpn", "masks": True, "cascade": True, "norm": "FrozenBN", "heads_norm": "GN"}
LARGEST |= {"depth": 152, "groups": 32, "width": 8, "offsets": 18, "mask_convs": 8}
RETINANET, SEMANTIC = "retinanet_R_50_FPN", "semantic_R_50_FPN"


@pytest.fixture(scope="module")
def numbered(zoo_shapes):
    """A state in which every tensor is one number, another for each, repeated without memory."""

    @cache
    def state(name: str) -> dict[str, torch.Tensor]:
        shapes = zoo_shapes(name).items()
        return {key: torch.tensor(float(number)).expand(shape) for number, (key, shape) in enumerate(shapes, 1)}

    return state


@pytest.fixture(scope="module")
def convert(numbered, zoo_classes):
    """Config and weights of ``numbered``, with these settings."""
    return lambda name, **options: convert_detectron2(numbered(name), class_names=zoo_classes(name), **options)


@pytest.fixture(scope="module")
def conversion(convert):
    """Config and weights of ``numbered``, as the zoo's."""
    return cache(convert)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    if not REFERENCE.is_file():
        pytest.skip(f"no {REFERENCE}: names, shapes and settings of the zoo's files")
    return json.loads(REFERENCE.read_text())


def test_layouts_and_settings_are_the_zoo_s(reference, conversion, convert, zoo_shapes, listed) -> None:
    """Those of these tests, those taken without any given, and those written."""
    shapes = zoo_shapes(listed).items()
    assert {key: list(shape) for key, shape in shapes} == reference[listed]["tensors"]
    expected, (config, _) = reference[listed]["settings"], conversion(listed)
    assert convert(listed, settings=expected)[0] == config
    settings = settings_of(config)
    common = settings.keys() & expected.keys()
    assert len(common) >= 20
    assert {key: settings[key] for key in common} == {key: expected[key] for key in common}


def test_nothing_is_missing_or_unused_and_no_value_changes(numbered, conversion, zoo_classes, zoo_name) -> None:
    state, (config, converted) = numbered(zoo_name), conversion(zoo_name)
    # Detectron2 begins with 100 positives, and does not save them.
    numbers = {key: value.flatten()[0].item() for key, value in converted.items()}
    assert numbers.pop("head.scale.positives", 100) == 100
    assert sorted(numbers.values()) == list(range(1, len(state) + 1))
    with torch.device("meta"):
        things = object_classes(config, zoo_classes(zoo_name))
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
    RETINANET: {
        "backbone.fpn_lateral3.weight": "backbone.lateral.c3.0.weight",
        "backbone.top_block.p7.bias": "backbone.coarse.p7.0.bias",
        "head.cls_subnet.6.weight": "head.class_tower.3.0.weight",
        "head.bbox_subnet.2.bias": "head.box_tower.1.0.bias",
        "head.bbox_pred.weight": "head.deltas.weight",
    },
    "keypoint_rcnn_R_50_FPN": {
        "roi_heads.keypoint_head.conv_fcn1.weight": "keypoint_stage.head.convs.0.0.weight",
        "roi_heads.keypoint_head.conv_fcn8.bias": "keypoint_stage.head.convs.7.0.bias",
        "roi_heads.keypoint_head.score_lowres.weight": "keypoint_stage.head.maps.weight",
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_values_land_in_their_place(numbered, conversion, name) -> None:
    state, (_, converted) = numbered(name), conversion(name)
    for theirs, ours in PLACES[name].items():
        reordered = name == RETINANET and converted[ours].unique() == state[theirs].unique()  # anchors go by size
        assert converted[ours] is state[theirs] or reordered, theirs


def test_a_pickle_of_the_zoo_becomes_a_checkpoint_of_ours(numbered, zoo_anchors, zoo_classes, tmp_path) -> None:
    """With all that the zoo's files hold, older ones the anchors too."""
    names = zoo_classes("faster_rcnn_R_50_C4_voc")
    arrays = {key: value.numpy().copy() for key, value in numbered("faster_rcnn_R_50_C4_voc").items()}
    constants = {"pixel_mean": torch.tensor(SOURCES["msra"].input_stats.mean).view(3, 1, 1), "pixel_std": torch.ones(3)}
    constants["proposal_generator.anchor_generator.cell_anchors.0"] = zoo_anchors([32, 64, 128, 256, 512])
    arrays |= {key: value.numpy() for key, value in constants.items()}
    with (tmp_path / "model_final.pkl").open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file, protocol=4)
    config, state = convert_detectron2(read_state_dict(tmp_path / "model_final.pkl"), class_names=names)
    checkpoint = read_checkpoint(write_converted(tmp_path / "run", config, names, state))
    assert checkpoint.config == config
    detector = build_detector(checkpoint.config, 20, pretrained=False)
    load_detector_weights(detector, checkpoint, names)
    expected = arrays["roi_heads.box_predictor.bbox_pred.weight"][0, 0]
    assert detector.get_parameter("box_stage.predictor.deltas.weight").eq(float(expected)).all()


# settings


def named_of(config, named: dict[str, Any]) -> dict[str, Any]:
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
retinanet_R_50_FPN:
  architecture: retinanet
  backbone: {name: resnet50, fpn_coarse: c5, stride_in: 1x1, weights_source: msra}
  anchors: {offset: 0, rounded: false}
  dense: {clip_first: false, normalizer: running, smooth_l1_beta: 0}
retinanet_R_101_FPN: {backbone: {name: resnet101}}
""")


@pytest.mark.parametrize("name", TOLD)
def test_settings_without_any_given(conversion, name: str) -> None:
    assert named_of(conversion(name)[0], TOLD[name]) == TOLD[name]


def test_a_retinanet_has_three_anchors_of_each_size(conversion) -> None:
    config, _ = conversion(RETINANET)
    assert config.anchors.sizes[:4] == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3), 64))
    settings: dict[str, Any] = settings_of(config)
    assert settings["MODEL.ANCHOR_GENERATOR.SIZES"][1] == pytest.approx([64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)])


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
- - retinanet_R_50_FPN  # which has no MODEL.ROI_HEADS
  - {MODEL.META_ARCHITECTURE: RetinaNet, MODEL.RETINANET.SCORE_THRESH_TEST: 0.3, MODEL.ROI_HEADS.NMS_THRESH_TEST: 0.9,
    MODEL.RETINANET.TOPK_CANDIDATES_TEST: 77, MODEL.ANCHOR_GENERATOR.SIZES: [[10, 11, 12], [20, 21, 22], [40, 41, 42],
    [80, 81, 82], [160, 161, 162]]}
  - {test: {score_threshold: 0.3, nms_iou: 0.5}, dense: {pre_nms: 77},
    anchors: {sizes: [10, 11, 12, 20, 21, 22, 40, 41, 42, 80, 81, 82, 160, 161, 162]}}
- - semantic_R_50_FPN
  - {MODEL.META_ARCHITECTURE: SemanticSegmentor, MODEL.SEM_SEG_HEAD.LOSS_WEIGHT: 0.5}
  - {architecture: semantic_fpn, semantic: {loss_weight: 0.5}, backbone: {stride_in: 1x1}}
""")


@pytest.mark.parametrize(("name", "given", "expected"), GIVEN)
def test_given_settings_replace_those_of_the_zoo(convert, name: str, given, expected) -> None:
    assert named_of(convert(name, settings=given)[0], expected) == expected


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
        (RETINANET, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "'RetinaNet' and cannot be changed"),
        (RETINANET, "MODEL.RETINANET.BBOX_REG_WEIGHTS", [10.0, 10.0, 5.0, 5.0], "BBOX_REG_WEIGHTS"),
        (SEMANTIC, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE"),
        (SEMANTIC, "MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.META_ARCHITECTURE"),
    ],
)
def test_a_setting_without_a_place_here_is_refused(convert, name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(name or "faster_rcnn_R_50_C4", settings={key: value})


def test_masks_pooled_as_boxes_go_back(convert) -> None:
    keys = {"POOLER_TYPE": "ROIAlign", "POOLER_SAMPLING_RATIO": 2}
    alike = {f"MODEL.ROI_{kind}_HEAD.{key}": value for kind in ("BOX", "MASK") for key, value in keys.items()}
    assert alike.items() <= settings_of(convert("mask_rcnn_R_50_FPN", settings=alike)[0]).items()


def test_classes_have_the_names_given_or_those_that_their_number_tells(numbered, conversion, zoo_classes) -> None:
    state, names = numbered("panoptic_fpn_R_50"), zoo_classes("panoptic_fpn_R_50")
    own = conversion("panoptic_fpn_R_50")[0].panoptic
    assert (own.stuff[0], len(own.stuff)) == ("class 80", 53)
    unnamed, _ = convert_detectron2(state, class_names=names[:80])
    assert unnamed.panoptic.stuff[:2] == ("stuff 1", "stuff 2")
    for name, given, message in (
        ("panoptic_fpn_R_50", 81, "80 things and 53 classes of stuff, class_names has 81"),
        ("faster_rcnn_R_50_C4", 20, "know 80 classes besides the background, class_names has 20: give 80 names"),
        (SEMANTIC, 53, "54 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_detectron2(numbered(name), class_names=names[:given])
    assert len(conversion("keypoint_rcnn_R_50_FPN")[0].keypoint.names) == 17
    assert len(_class_names(numbered(RETINANET), "detectron2")) == 80


def meta(config) -> Any:
    with torch.device("meta"):
        return build_detector(config, 80, pretrained=False)


def strides(detector, block: str) -> list[tuple[int, int]]:
    return [detector.get_submodule(f"{block}.conv{number}").stride for number in (1, 2, 3)]


def test_pixels_strides_and_pools_of_detectors(conversion, changed) -> None:
    """The tail of a C4 halves in its first convolution, a network of torchvision's weights in the second."""
    config, _ = conversion("faster_rcnn_R_50_FPN")
    own = meta(changed(config, "backbone.weights_source=torchvision", "backbone.stride_in=3x3"))
    c4 = meta(conversion("faster_rcnn_R_50_C4")[0])
    assert (own.normalize.bgr, c4.normalize.bgr) == (False, True)
    assert strides(own, "backbone.body.layer2.0") == [(1, 1), (2, 2), (1, 1)]
    assert strides(c4, "box_stage.head.layer4.0") == [(2, 2), (1, 1), (1, 1)]
    pooler = c4.box_stage.pooler
    assert (pooler.size, pooler.sampling_ratio, pooler.kind) == (14, 0, "roi_align")


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
def test_every_detector_of_regions_in_the_zoo_loads(zoo_shapes, entry) -> None:
    state = {key: torch.tensor(0.5).expand(shape) for key, shape in zoo_shapes(**spec_of(entry)).items()}
    config, converted = convert_detectron2(state, class_names=entry.class_names, settings=entry.settings)
    assert len(converted) == len(state)
    assert config.architecture in entry.name or config.architecture == "cascade_panoptic_fpn"
    stuff = config.panoptic.stuff
    assert (len(stuff), stuff[-1:]) == ((53, ("rug-merged",)) if "panoptic" in entry.name else (0, ()))
    assert ("dconv" in entry.name) == (config.backbone.deform == ("c3", "c4", "c5"))
    assert ("mask_rcnn" in entry.name) == ("mask" in config.architecture)
    assert named_of(config, OF_ONE.get(entry.name, {})) == OF_ONE.get(entry.name, {})


def test_older_files_of_pointrend_have_other_names(numbered, conversion, zoo_classes) -> None:
    name, older = "pointrend_rcnn_R_50_FPN", dict[str, torch.Tensor]()
    for key, value in numbered(name).items():
        before = re.sub(r"mask_head\.(coarse|point)_head", r"mask_\1_head", key)
        older[before.replace("coarse_head.fc", "coarse_head.coarse_mask_fc")] = value
    renamed = {"roi_heads.mask_coarse_head.coarse_mask_fc1.weight", "roi_heads.mask_point_head.fc1.weight"}
    assert renamed <= older.keys()
    config, converted = convert_detectron2(older, class_names=zoo_classes(name))
    assert (config, converted.keys()) == (conversion(name)[0], conversion(name)[1].keys())
    assert all(value is conversion(name)[1][key] for key, value in converted.items())


def test_one_mask_for_all_classes_becomes_that_of_each(numbered, zoo_classes) -> None:
    state, predictor = dict(numbered("mask_rcnn_R_50_C4")), "roi_heads.mask_head.predictor"
    state |= {f"{predictor}.weight": torch.rand(1, 256, 1, 1), f"{predictor}.bias": torch.rand(1)}
    _, converted = convert_detectron2(state, class_names=zoo_classes("mask_rcnn_R_50_C4"))
    assert converted["mask_stage.head.masks.bias"].equal(state[f"{predictor}.bias"].repeat(80))
    assert converted["mask_stage.head.masks.weight"].equal(state[f"{predictor}.weight"].repeat(80, 1, 1, 1))


# the way back


@pytest.fixture
def goes_back(zoo_classes):
    """Converts a state and back; gives the settings that are written."""

    def check(name: str, state) -> dict[str, Any]:
        config, converted = convert_detectron2(state, class_names=zoo_classes(name))
        back, settings = to_detectron2(config, object_classes(config, zoo_classes(name)), converted)
        assert set(back) == set(state)
        assert all(back[key].equal(value) for key, value in state.items())
        assert convert_detectron2(back, class_names=zoo_classes(name), settings=settings)[0] == config
        return settings

    return check


@pytest.mark.slow
def test_the_way_back_gives_the_same_bits_and_settings(goes_back, numbered, zoo_name) -> None:
    goes_back(zoo_name, numbered(zoo_name))


def test_networks_without_regions_go_back_with_settings_of_their_own(goes_back, numbered) -> None:
    settings = goes_back(RETINANET, numbered(RETINANET) | {"head.cls_score.bias": torch.arange(9 * 80.0)})
    assert (settings["MODEL.META_ARCHITECTURE"], settings["MODEL.RETINANET.NUM_CLASSES"]) == ("RetinaNet", 80)
    settings = goes_back(SEMANTIC, numbered(SEMANTIC))
    assert settings["MODEL.META_ARCHITECTURE"] == "SemanticSegmentor"
    assert (settings["MODEL.SEM_SEG_HEAD.NORM"], settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]) == ("GN", 54)
    assert not any(name.startswith(("MODEL.RPN", "MODEL.ROI", "MODEL.ANCHOR")) for name in settings)
    assert all(their_semantic_name(our_semantic_name(name)) == name for name in numbered(SEMANTIC))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("", "anchors.rounded=true", r"anchors\.rounded is True"),
        ("", "box.pool=roi_pool", r"box\.pool is 'roi_pool', detectron2"),
        ("", "test.flip=true", r"test\.flip is True, detectron2 has False"),
        ("", "backbone.norm_eps=0.001", r"backbone\.norm_eps is 0\.001"),
        ("", "backbone.name=vgg16", r"backbone\.name vgg16"),
        ("mask_rcnn_R_50_FPN", "mask.geometry=exact", r"mask\.geometry is 'exact', detectron2 has 'detectron2'"),
        (RETINANET, "backbone.fpn_coarse=p5", r"backbone\.fpn_coarse p5"),
        (RETINANET, "dense.clip_first=true", r"dense\.clip_first is True"),
        (RETINANET, "architecture=fcos", "architecture fcos"),
        (SEMANTIC, "architecture=fcn backbone.fpn=false", "architecture fcn can't go to detectron2"),
    ],
)
def test_what_detectron2_lacks_does_not_go_back(conversion, changed, zoo_classes, name, change, message: str) -> None:
    name = name or "faster_rcnn_R_50_C4"
    config, converted = conversion(name)
    with pytest.raises(ValueError, match=message):
        to_detectron2(changed(config, *change.split()), zoo_classes(name), converted)


# misfits


ANCHORS = "proposal_generator.anchor_generator.cell_anchors"


@pytest.mark.parametrize(
    ("without", "added", "message"),
    [
        ("", {}, r"no weights of Detectron2's .*: none of backbone\.fpn_lateral2\.weight, roi_heads\.res5"),
        ("rpn_head", {}, "an RPN's or a box predictor's are missing"),
        ("box_predictor", {}, "an RPN's or a box predictor's are missing"),
        ("res4.5.", {}, r"stages of \(3, 4, 5, 3\) bottleneck blocks, expected .*resnet50 \(3, 4, 6, 3\)"),
        ("bbox_pred.weight", {}, r"missing: 1: box_stage\.predictor\.deltas\.weight"),
        (None, {"roi_heads.x": [0.0]}, r"unused: 1: roi_heads\.x"),
        (None, {"head.cls_subnet.1.weight": [0.0]}, r"of RetinaNet with normalised towers \(head"),
        (None, {"sem_seg_head.p2.0.weight": [0.0]}, r"unused: 1: label_stage\.head\.levels\.p2"),
        (None, {"backbone.res4.0.conv2_offset.bias": [0.0]}, r"unused: 1: .*conv2\.offset\.bias"),
        (None, {"backbone.res2.0.conv2.weight": [[[[0.0] * 3] * 3] * 4] * 256}, "of ResNeXt-50 64x4d, which back"),
        (None, {"pixel_mean": [123.675, 116.28, 103.53]}, r"pixel_mean is \[123\.6.*has \[103\.5"),
        (None, {"pixel_std": [57.0] * 3}, r"pixel_std is \[57\.0"),
        (None, {f"{ANCHORS}.0": [16, 32, 64, 128, 256]}, r"s\.0 is .*say in settings \(--settings\) what differs"),
        (None, {f"{ANCHORS}.1": [64]}, r"cell_anchors\.1 is .* has None"),
    ],
)
def test_other_weights_are_refused(numbered, zoo_anchors, zoo_classes, without, added, message) -> None:
    known = numbered("faster_rcnn_R_50_C4").items()
    state = {name: value for name, value in known if without is None or without not in name}
    for name, values in added.items():
        state[name] = zoo_anchors(values) if ANCHORS in name else torch.tensor(values)
    with pytest.raises(ValueError, match=message):
        convert_detectron2(state, class_names=zoo_classes("faster_rcnn_R_50_C4"))


def test_a_pyramid_s_anchors_are_checked_level_by_level(numbered, zoo_anchors, zoo_classes) -> None:
    state = dict(numbered("faster_rcnn_R_50_FPN"))
    for number, size in enumerate((32, 64, 128, 256, 512)):
        state[f"{ANCHORS}.{number}"] = zoo_anchors([size])
    _, converted = convert_detectron2(state, class_names=zoo_classes("faster_rcnn_R_50_FPN"))
    assert not any("anchor" in name for name in converted)
