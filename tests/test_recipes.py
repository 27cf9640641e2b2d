"""The recipes of configs/paper, modern and backbones: a change here is a change of what is reproduced.

The modern values are those of Detectron2's configs of 2019; only the files with a figure of its model zoo claim one.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, load_config
from detection.data.cards import load_card
from detection.localization.config import LocalizationConfig
from detection.model.cascade import CascadeBoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.mask_stage import MaskStage
from detection.model.one_stage import OneStage
from detection.model.pointrend import PointStage
from detection.structures import ImageBatch, Target

CONFIGS = Path(__file__).parents[1] / "configs"

# Published figures that the header has to name; none: there is none. Detectron2's MODEL_ZOO.md and projects/PointRend.
MODERN = {
    "coco/modern/cascade_mask_rcnn_r50_fpn_3x": ["44.3", "38.5"],
    "coco/modern/cascade_rcnn_r50_fpn_1x": [],
    "coco/modern/faster_rcnn_r101_fpn_3x": ["42.0"],
    "coco/modern/faster_rcnn_r50_c4_1x": ["35.7"],
    "coco/modern/faster_rcnn_r50_dc5_1x": ["37.3"],
    "coco/modern/faster_rcnn_r50_fpn_1x": ["37.9"],
    "coco/modern/faster_rcnn_r50_fpn_3x": ["40.2"],
    "coco/modern/faster_rcnn_x101_32x8d_fpn_3x": ["43.0"],
    "coco/modern/fcos_r50_fpn_1x": [],
    "coco/modern/keypoint_rcnn_r50_fpn_1x": ["53.6", "64.0"],
    "coco/modern/keypoint_rcnn_r50_fpn_3x": ["55.4", "65.5"],
    "coco/modern/mask_rcnn_r101_fpn_3x": ["42.9", "38.6"],
    "coco/modern/mask_rcnn_r50_fpn_1x": ["38.6", "35.2"],
    "coco/modern/mask_rcnn_r50_fpn_1x_dconv_c3-c5": ["41.5", "37.5"],
    "coco/modern/mask_rcnn_r50_fpn_3x": ["41.0", "37.2"],
    "coco/modern/mask_rcnn_r50_fpn_lsj_adamw": [],
    "coco/modern/panoptic_fpn_r101_3x": ["43.0", "42.4", "38.5"],
    "coco/modern/panoptic_fpn_r50_1x": ["39.4", "37.6", "34.7"],
    "coco/modern/panoptic_fpn_r50_3x": ["41.5", "40.0", "36.5"],
    "coco/modern/pointrend_rcnn_r50_fpn_1x": ["36.2"],
    "coco/modern/pointrend_rcnn_r50_fpn_3x": ["38.3"],
    "coco/modern/retinanet_r50_fpn_1x": ["37.4"],
    "voc/modern/faster_rcnn_r50_c4_18k": ["80.3", "51.9"],
    "voc/modern/faster_rcnn_r50_fpn_18k": [],
}
PAPER = {
    "paper/faster_rcnn_coco_vgg16": ["41.5 / 21.2"],
    "paper/table10_resnet101_coco_voc07": ["85.6"],
    "paper/table11_resnet101_coco_voc12": ["83.8"],
    "paper/table12_resnet101": ["60.5", "58.8", "63.6 / 62.1"],
    "paper/table14_resnet101": ["10.6", "8.9", "9.0"],
    "paper/table7_resnet101_voc07": ["76.4"],
    "paper/table7_resnet101_voc12": ["73.8"],
    "paper/table7_vgg16_voc07": ["73.2"],
    "paper/table7_vgg16_voc12": ["70.4"],
    "paper/table8_resnet101": ["48.4 / 27.2"],
    "paper/table8_vgg16": ["41.5 / 21.2"],
    "paper/table9_resnet101_context": ["51.1 / 30.0", "53.8 / 32.5"],
}
# Name of the network, and channels of its map of stride 16.
BACKBONES = {
    "convnext_tiny": ("timm:convnext_tiny.fb_in1k", 384),
    "densenet121": ("timm:densenet121", 1024),
    "densenet161": ("timm:densenet161", 2112),
    "efficientnet_b0": ("timm:efficientnet_b0", 112),
    "efficientnet_lite0": ("timm:tf_efficientnet_lite0", 112),
    "googlenet": ("torchvision:googlenet", 832),
    "inception_v3": ("timm:inception_v3", 768),
    "res2net50": ("timm:res2net50_26w_4s", 1024),
    "resnest50": ("timm:resnest50d", 1024),
    "resnext50_32x4d": ("timm:resnext50_32x4d", 1024),
    "xception": ("timm:legacy_xception", 728),
}
OWN = "coco/modern/mask_rcnn_r50_fpn_lsj_adamw"  # the one that is not Detectron2's

# Values by a part of the name; of two that match, the later holds, and null takes out a section.
MODERN_VALUES = """
modern:
  anchors: {sizes: [32, 64, 128, 256, 512], ratios: [0.5, 1, 2], offset: 0, rounded: false}
  rpn: {positive_iou: 0.7, negative_iou: 0.3, samples_per_image: 256, positive_fraction: 0.5, nms_iou: 0.7,
    post_nms_test: 1000, allow_outside: true, min_size: 0, smooth_l1_beta: 0, box_loss_weight: 1}
  box: {head: fc, pool: roi_align, sampling_ratio: 0, samples_per_image: 512, positive_fraction: 0.25,
    positive_iou: 0.5, negative_iou_low: 0, coder_weights: [10, 10, 5, 5], smooth_l1_beta: 0, box_loss_weight: 1}
  test: {score_threshold: 0.05, nms_iou: 0.5, max_detections: 100}
  data: {shorter_side: 800, longer_side: 1333, augment: [{HorizontalFlip: {p: 0.5}}], jitter: null, copy_paste: 0,
    train: ["coco2017:train"], test: ["coco2017:val"], train_shorter_sides: [640, 672, 704, 736, 768, 800]}
  solver: {optimizer: sgd, images_per_step: 16, base_lr: 0.02, momentum: 0.9, weight_decay: 1.0e-4, bias_lr_factor: 1,
    gamma: 0.1, schedule: multistep, warmup_factor: 0.001, warmup_iterations: 1000, ema_decay: 0}
  backbone: {name: resnet50, weights: torchvision, weights_source: torchvision, norm: frozen_bn, freeze_at: 2,
    deform: null}
_1x: {solver: {iterations: 90000, steps: [60000, 80000]}}
_3x: {solver: {iterations: 270000, steps: [210000, 250000]}}
_fpn: {rpn: {channels: 256, pre_nms_train: 2000, post_nms_train: 1000, pre_nms_test: 1000}}
_c4_: {rpn: {channels: 1024, pre_nms_train: 12000, post_nms_train: 2000, pre_nms_test: 6000}, box: {head: tail}}
_dc5_: {rpn: {channels: 2048, pre_nms_train: 12000, post_nms_train: 2000, pre_nms_test: 6000}}
_r101_: {backbone: {name: resnet101}}
_x101_32x8d_: {backbone: {name: resnext101_32x8d}}
_dconv_: {backbone: {deform: [c3, c4, c5]}}
cascade: {rpn: {post_nms_train: 2000}, cascade: {ious: [0.5, 0.6, 0.7]}, box: {class_agnostic: true}}
keypoint: {rpn: {post_nms_train: 1500}, box: {smooth_l1_beta: 0.5},
  data: {train: ["coco2017_keypoints:train"], test: ["coco2017_keypoints:val"]}}
panoptic: {semantic: {loss_weight: 0.5}, data: {train: ["coco2017_panoptic:train"], test: ["coco2017_panoptic:val"]}}
voc/: {data: {train: ["voc2007:trainval", "voc2012:trainval"], test: ["voc2007:test"], train_shorter_sides: [480, 512,
  544, 576, 608, 640, 672, 704, 736, 768, 800]}, solver: {iterations: 18000, steps: [12000, 16000],
  warmup_iterations: 100, best_metric: voc.mAP}}
lsj: {data: {jitter: {size: 1024, low: 0.1, high: 2}, train_shorter_sides: [], shorter_side: 1024, longer_side: 1024,
  copy_paste: 0.5}, solver: {optimizer: adamw, base_lr: 1.0e-4, weight_decay: 0.05, schedule: cosine,
  ema_decay: 0.9998, iterations: 270000}}
retinanet: {anchors: null, rpn: null, box: null, solver: {base_lr: 0.01}, dense: {convs: 4, prior: 0.01,
  focal_alpha: 0.25, focal_gamma: 2, pre_nms: 1000, positive_iou: 0.5, negative_iou: 0.4, smooth_l1_beta: 0}}
fcos: {anchors: null, rpn: null, box: null, test: {nms_iou: 0.6}, solver: {base_lr: 0.01}, dense: {convs: 4,
  prior: 0.01, focal_alpha: 0.25, focal_gamma: 2, pre_nms: 1000, center_radius: 1.5}}
"""
PAPER_VALUES = """
paper:
  data: {shorter_side: 600, longer_side: 1000, augment: [{HorizontalFlip: {p: 0.5}}], train: ["coco2014:train"],
    test: ["coco2014:val"]}
  anchors: {sizes: [64, 128, 256, 512], ratios: [0.5, 1, 2]}
  rpn: {positive_iou: 0.7, negative_iou: 0.3, samples_per_image: 256, positive_fraction: 0.5, nms_iou: 0.7,
    post_nms_train: 2000, post_nms_test: 300, allow_outside: false}
  box: {pool: roi_pool, samples_per_image: 64, positive_fraction: 0.25, positive_iou: 0.5, negative_iou_low: 0,
    coder_weights: [10, 10, 5, 5], context: false}
  solver: {base_lr: 1.0e-3, momentum: 0.9, weight_decay: 5.0e-4, gamma: 0.1}
  test: {nms_iou: 0.3}
  backbone: {weights: torchvision}
  alternating: {rpn_iterations: 320000, rpn_steps: [240000], rpn_images_per_step: 8, box_iterations: 320000,
    box_steps: [240000], box_images_per_step: 16}
faster_rcnn_coco: {solver: {base_lr: 3.0e-3}}
resnet101: {backbone: {name: resnet101, norm: frozen_bn, roi_size: 14, tail_stride: 2}}
vgg16: {backbone: {name: vgg16, freeze_at: 2, dropout: null}}
context: {box: {context: true}}
voc07: {data: {train: ["voc2007:trainval", "voc2012:trainval"], test: ["voc2007:test"]}}
voc12: {data: {train: ["voc2007:trainval", "voc2007:test", "voc2012:trainval"], test: []}}
_voc: {solver: {images_per_step: 2}, box: {negative_iou_low: 0.1}}
table7: {anchors: {sizes: [128, 256, 512]}, alternating: {rpn_iterations: 80000, rpn_steps: [60000],
  rpn_images_per_step: 1, box_iterations: 40000, box_steps: [30000], box_images_per_step: 2}}
_coco_voc: {anchors: null, alternating: null, box: {context: true}, test: {refine: true,
  scales: [200, 400, 600, 800, 1000]}}
table12: {data: {train: ["imagenet_det:train", "imagenet_det:val1"], test: ["imagenet_det:val2"]}, box: {context: true},
  test: {refine: true, scales: [200, 400, 600, 800, 1000]}}
"""
LOCALIZATION_VALUES = """
paper: {data: {train: ["imagenet_loc:train"], test: ["imagenet_loc:val_loc"]}, solver: {images_per_step: 256},
  rpn: {samples_per_image: 8, positive_fraction: 0.5}, backbone: {name: resnet101, norm: frozen_bn},
  localization: {crop: 224, crop_shorter_side: 256, proposals: 200}}
"""
VALUES = dict.fromkeys(MODERN, MODERN_VALUES) | dict.fromkeys(PAPER, PAPER_VALUES)
VALUES |= {"paper/table14_resnet101": LOCALIZATION_VALUES}


def path_of(name):
    return CONFIGS / f"{name}.yaml"


def load(name) -> Any:
    return load_config(LocalizationConfig if "table14" in name else DetectionConfig, path_of(name))


def build(config) -> Any:
    """The detector of ``config``, without memory for its weights."""
    with torch.device("meta"):
        classes = load_card(config.data.train[0].partition(":")[0]).classes
        return build_detector(config, len(classes) - len(config.panoptic.stuff), pretrained=False)


def test_every_file_is_held_here() -> None:
    folders = ("coco/modern", "voc/modern", "paper", "backbones")
    files = {f"{folder}/{path.stem}" for folder in folders for path in (CONFIGS / folder).glob("*.yaml")}
    own = {*MODERN, *PAPER, *(f"backbones/{name}" for name in BACKBONES)}
    assert own == {name for name in files if not name.endswith("/recipe")}


@pytest.mark.parametrize("name", VALUES)
def test_values(name) -> None:
    wanted: dict[tuple[str, str], Any] = {}
    for tree in (tree for part, tree in yaml.safe_load(VALUES[name]).items() if part in name):
        for section, values in tree.items():
            kept = {key: value for key, value in wanted.items() if values is not None or key[0] != section}
            wanted = kept | {(section, key): value for key, value in (values or {}).items()}
    found = yaml.safe_load(dump_config(load(name)))
    assert {(section, key): found[section][key] for section, key in wanted} == wanted


@pytest.mark.parametrize("name", [*MODERN, *PAPER, *(f"backbones/{name}" for name in BACKBONES)])
def test_headers_have_their_command_and_the_published_figure(name) -> None:
    lines = path_of(name).read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    figures = (MODERN | PAPER).get(name, [])
    assert all(figure in header for figure in figures)
    if name in PAPER:
        if "_voc" in name and "table10" not in name:  # the figures per class average to the figure
            row = next(i for i, line in enumerate(lines) if line.startswith("# Expected"))
            values = [float(text) for text in lines[row + 1].lstrip("# ").split()]
            assert (len(values), sum(values) / 20) == (20, pytest.approx(float(figures[0]), abs=0.06))
        return
    assert f"resdet train configs/{name}.yaml\n" in header
    assert "not run" in header
    assert all(f"# {title}:" in header for title in ("Command", "Hardware", "Expected"))
    assert ("no published figure" in header) == (not figures)
    source = "projects/PointRend" if "pointrend" in name else "MODEL_ZOO.md"
    assert not figures or f"(Detectron2's {source})" in header


@pytest.mark.parametrize("name", MODERN)
def test_the_parts_are_those_of_the_name(name) -> None:
    config = load(name)
    detector = build(config)
    assert all(parameter.is_meta for parameter in detector.parameters())
    strides = [spec.stride for spec in detector.backbone.specs.values()]
    if "retinanet" in name or "fcos" in name:
        assert isinstance(detector, OneStage)
        assert strides == [8, 16, 32, 64, 128]
        assert detector.head.class_rows["classes"].per_class == (9 if "retinanet" in name else 1)
        return
    assert isinstance(detector, FasterRCNN)
    panoptic, points = "panoptic" in name, "pointrend" in name
    assert ("mask_rcnn" in name or panoptic) == isinstance(detector.mask_stage, MaskStage)
    assert points == isinstance(detector.mask_stage, PointStage)
    assert config.finds_masks == (detector.mask_stage is not None)
    assert panoptic == (detector.label_stage is not None) == (config.semantic.loss_weight == 0.5)
    if panoptic:
        things = load_card("coco2017").classes
        assert (*things, *config.panoptic.stuff) == load_card("coco2017_panoptic").classes
    assert ("keypoint_rcnn" in name) == (detector.keypoint_stage is not None)
    assert detector.keypoint_stage is None or detector.keypoint_stage.head.num_keypoints == 17
    assert ("cascade" in name) == isinstance(detector.box_stage, CascadeBoxStage)
    anchors: list[Any] = [*detector.rpn.anchors]
    pyramid = ([3] * 5, [4, 8, 16, 32, 64])
    assert ([level.num_anchors for level in anchors], strides) == (pyramid if "_fpn_" in name else ([15], [16]))


def test_sections_that_two_recipes_share_and_recipes_of_the_papers_beside_values() -> None:
    shared = ["backbone", "anchors", "rpn", "box"]
    same = {(OWN, "coco/modern/mask_rcnn_r50_fpn_3x"): [*shared, "mask", "test"]}
    same |= {("paper/table12_resnet101", "paper/table9_resnet101_context"): [*shared, "alternating"]}
    for (name, other), sections in same.items():
        for section in sections:
            assert getattr(load(name), section) == getattr(load(other), section), section
    resize, crop, flip = load("paper/table14_resnet101").data.augment
    assert (min(resize["SmallestMaxSize"]["max_size"]), max(resize["SmallestMaxSize"]["max_size"])) == (256, 480)
    assert (crop, flip) == ({"RandomCrop": {"height": 224, "width": 224}}, {"HorizontalFlip": {"p": 0.5}})
    for name in ("table10_resnet101_coco_voc07", "table11_resnet101_coco_voc12"):
        renamed, voc = load(f"paper/{name}").init_classes, load_card("voc2007").classes
        assert set(renamed) <= set(voc)
        assert {renamed.get(name, name) for name in voc} <= set(load_card("coco2014").classes)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_differ_from_the_recipe_of_resnet50_in_the_network_alone(name) -> None:
    config, resnet50 = load(f"backbones/{name}"), load("voc/resnet50_c4_0712")
    assert config.backbone.name == BACKBONES[name][0]
    assert (config.backbone.weights, config.backbone.freeze_at) == (config.backbone.name.partition(":")[0], 2)
    adam: Any = {"optimizer": "adamw", "base_lr": 1e-4, "weight_decay": 0.05} if name == "convnext_tiny" else {}
    box, solver = replace(resnet50.box, head="fc"), replace(resnet50.solver, **adam)
    assert replace(config, backbone=resnet50.backbone) == replace(resnet50, box=box, solver=solver)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_are_exact_for_odd_sizes_and_gradients_reach_what_is_trained(name) -> None:
    pytest.importorskip("timm")
    backbone = build(load(f"backbones/{name}")).backbone
    (spec,) = backbone.specs.values()
    assert (spec.stride, spec.channels) == (16, BACKBONES[name][1])
    for height, width in ((65, 97), (33, 50)):
        (feature,) = backbone(torch.zeros(2, 3, height, width, device="meta")).values()
        assert feature.shape == (2, spec.channels, math.ceil(height / 16), math.ceil(width / 16))
    feature.sum().backward()
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    assert [parameter.grad is not None for parameter in backbone.parameters()] == trained
    assert not all(trained)


def test_heads_and_pyramids_over_timm() -> None:
    pytest.importorskip("timm")
    config = load("backbones/densenet121")
    with pytest.raises(ValueError, match=r"timm:densenet121 has no tail; set box\.head to fc"):
        build(replace(config, box=replace(config.box, head="tail")))
    anchors = replace(config.anchors, sizes=(32.0, 64.0, 128.0, 256.0, 512.0))
    detector = build(replace(config, backbone=replace(config.backbone, fpn=True, fpn_channels=8), anchors=anchors))
    assert [spec.stride for spec in detector.backbone.specs.values()] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "googlenet"])
def test_a_step_reaches_every_trainable_layer(name) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = load(f"backbones/{name}")
    config = replace(config, backbone=replace(config.backbone, norm="bn"), rpn=replace(config.rpn, allow_outside=True))
    detector = build_detector(replace(config, box=replace(config.box, head_channels=16)), 3, pretrained=False)
    images = ImageBatch.from_images([torch.randint(0, 256, (3, 97, 130), dtype=torch.uint8) for _ in range(2)])
    boxes, labels = torch.tensor([[10.0, 10, 90, 90], [40, 20, 120, 80]]), torch.tensor([0, 2])
    losses = detector(images, [Target(boxes=boxes, labels=labels, ignore=torch.zeros(2, dtype=torch.bool))] * 2)
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    assert loss.isfinite()
    trained = [parameter for parameter in detector.backbone.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert len(detector.eval()(images)) == 2
