"""Mirrors torchvision.py, torchvision_one_stage.py and to_torchvision.py: layouts, settings, and what is refused."""

import re
from collections.abc import Mapping
from inspect import signature

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, fasterrcnn_mobilenet_v3_large_fpn, ssd300_vgg16
from torchvision.ops import FrozenBatchNorm2d

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.engine.checkpoint import load_detector_weights, read_checkpoint, write_converted
from detection.engine.transfer import load_initial_weights
from detection.weights.to_torchvision import to_torchvision
from detection.weights.torchvision import COCO_ROWS, convert_torchvision
from detection.weights.torchvision_one_stage import reorder_rows

CLASSES = ("cat", "dog", "cow", "bus", "cup")
COCO_NAMES = tuple(name for name in COCO_ROWS[1:] if name != "N/A")


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` by the names that torchvision used before 0.13; RetinaNet's towers had no norm then."""
    renamed = {}
    for name, value in state.items():
        old = re.sub(r"(rpn\.head\.conv)\.0\.0\.", r"\1.", name)
        old = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", old)
        old = re.sub(r"(head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", old)
        renamed[re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", old)] = value
    return renamed


def fixed(channels: int) -> nn.Module:
    return FrozenBatchNorm2d(channels, eps=0.0)


@pytest.fixture(scope="module")
def new(narrow) -> dict[str, Tensor]:
    """A Mask R-CNN with fixed statistics and an eps of 0, by the new names; tests must not change it."""
    return narrow("mask_rcnn", norm=fixed).state_dict()


@pytest.fixture(scope="module")
def state(new) -> dict[str, Tensor]:
    """The same as the published v1 files have it, by the old names."""
    return as_published(new)


@pytest.fixture(scope="module")
def trained(narrow) -> dict[str, Tensor]:
    """A Mask R-CNN with statistics that are trained."""
    return narrow("mask_rcnn").state_dict()


def convert(state: Mapping[str, Tensor], **options):
    return convert_torchvision(state, class_names=CLASSES, **options)


# settings


def test_settings_are_the_defaults_of_torchvision_and_layers_are_read_off_the_weights(state) -> None:
    config, _ = convert(state)
    default = {name: entry.default for name, entry in signature(MaskRCNN.__init__).parameters.items()}
    rpn, box, test = config.rpn, config.box, config.test
    assert {
        **{"min_size": config.data.shorter_side, "max_size": config.data.longer_side},
        **{"rpn_pre_nms_top_n_train": rpn.pre_nms_train, "rpn_pre_nms_top_n_test": rpn.pre_nms_test},
        **{"rpn_post_nms_top_n_train": rpn.post_nms_train, "rpn_post_nms_top_n_test": rpn.post_nms_test},
        **{"rpn_nms_thresh": rpn.nms_iou, "rpn_batch_size_per_image": rpn.samples_per_image},
        **{"rpn_fg_iou_thresh": rpn.positive_iou, "rpn_bg_iou_thresh": rpn.negative_iou},
        **{"rpn_positive_fraction": rpn.positive_fraction, "box_positive_fraction": box.positive_fraction},
        **{"box_score_thresh": test.score_threshold, "box_nms_thresh": test.nms_iou},
        **{"box_fg_iou_thresh": box.positive_iou, "box_bg_iou_thresh": box.positive_iou},
        **{"box_detections_per_img": test.max_detections, "box_batch_size_per_image": box.samples_per_image},
    }.items() <= default.items()
    assert box.negative_iou_low == 0
    assert config.backbone.fpn_channels == config.rpn.channels == 64
    assert (config.box.head_convs, config.box.head_fcs, config.box.head_channels) == (0, 2, 128)
    assert (config.architecture, config.mask.convs, config.mask.channels) == ("mask_rcnn", 2, 32)
    assert config.mask.geometry == "torchvision"
    assert (config.backbone.fpn_norm, config.box.head_norm, config.mask.norm) == (None, None, None)
    boxes_only = {name: value for name, value in state.items() if "mask" not in name}
    config, weights = convert(boxes_only)
    assert config.architecture == "faster_rcnn"
    assert not any("mask" in name for name in weights)


def test_settings_of_dense_heads_are_the_defaults_of_torchvision(narrow) -> None:
    states = [narrow(kind).state_dict() for kind in ("retinanet", "retinanet_v2", "fcos")]
    first, second, fcos = (convert(own)[0] for own in (as_published(states[0]), *states[1:]))
    assert first.anchors.sizes[:6] == (32, 40, 50, 64, 80, 101)
    for config, name, test, dense, coarse in (
        (first, "retinanet", (0.05, 0.5, 300), (None, "smooth_l1", "image"), "p5"),
        (second, "retinanet", (0.05, 0.5, 300), ("gn", "giou", "image"), "c5"),
        (fcos, "fcos", (0.2, 0.6, 100), (fcos.dense.norm, fcos.dense.loss, "batch"), "p5"),
    ):
        assert (config.architecture, config.backbone.fpn_coarse) == (name, coarse)
        assert (config.test.score_threshold, config.test.nms_iou, config.test.max_detections) == test
        assert (config.dense.norm, config.dense.loss, config.dense.normalizer) == dense


@pytest.mark.slow
def test_other_keypoints_are_numbered_and_go_back(narrow) -> None:
    states = [narrow("keypoint_rcnn", norm=FrozenBatchNorm2d, num_keypoints=count).state_dict() for count in (17, 3)]
    config, _ = convert(states[0], norm_eps=1e-5)
    own = config.keypoint
    assert (config.architecture, own.pool_size, own.convs, own.channels) == ("keypoint_rcnn", 14, 2, 32)
    assert (len(own.names), own.names[:2], own.edges[0]) == (17, ("nose", "left_eye"), (15, 13))
    config, weights = convert(states[1], norm_eps=1e-5)
    assert (config.keypoint.names, config.keypoint.edges) == (("1", "2", "3"), ())
    back, code = to_torchvision(config, CLASSES, weights)
    assert code.startswith("model = keypointrcnn_resnet18_fpn(")
    assert "num_classes=6, num_keypoints=3)" in code
    assert all(back[name].equal(value) for name, value in states[1].items() if "keypoint" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"]
)
def test_the_body_is_told_by_its_blocks(narrow, name: str) -> None:
    with torch.device("meta"):
        shapes = narrow("mask_rcnn", body=name).state_dict()
    assert convert({k: torch.zeros(()).expand(value.shape) for k, value in shapes.items()})[0].backbone.name == name


def test_the_eps_is_told_by_old_names_by_trained_statistics_or_by_whoever_knows(narrow, new, state, trained) -> None:
    narrow("mask_rcnn", norm=FrozenBatchNorm2d).load_state_dict(state)  # torchvision, too, reads the old names
    (old_config, old_weights), (config, weights) = convert(state), convert(new, norm_eps=0.0)
    assert old_config == config
    assert set(old_weights) == set(weights)
    assert all(old_weights[name].equal(value) for name, value in weights.items())
    norms = [(one.backbone.norm, one.backbone.norm_eps) for one in (config, convert(trained)[0])]
    assert norms == [("frozen_bn", 0.0), ("bn", 1e-5)]
    with pytest.raises(ValueError, match=r"do not tell the eps .* give norm_eps: 0\.0 if .* 1e-5 if"):
        convert(new)
    for given in (new, state):
        assert convert(given, norm_eps=1e-5)[0].backbone.norm_eps == 1e-5
    # Published files of RetinaNet were trained before fixed batch normalisation added any eps, those of FCOS after.
    for kind, rename, eps in (("retinanet", as_published, 0), ("fcos", as_published, 1e-5), ("fcos", dict, 1e-5)):
        own = rename(narrow(kind).state_dict()).items()
        backbone = convert({name: value for name, value in own if "num_batches" not in name})[0].backbone
        assert (backbone.norm, backbone.norm_eps) == ("frozen_bn", eps)


# rows of the layers with one per class


@pytest.fixture(scope="module")
def ninety(narrow) -> dict[str, Tensor]:
    """A state with COCO's 91 rows."""
    return narrow("mask_rcnn", num_classes=90).state_dict()


def test_background_comes_last_and_has_no_box_and_no_mask(state) -> None:
    _, weights = convert(state)
    for kind in ("weight", "bias"):
        logits = state[f"roi_heads.box_predictor.cls_score.{kind}"]
        assert weights[f"box_stage.predictor.classes.{kind}"].equal(torch.cat([logits[1:], logits[:1]]))
        deltas = state[f"roi_heads.box_predictor.bbox_pred.{kind}"]
        assert weights[f"box_stage.predictor.deltas.{kind}"].equal(deltas[4:])
        masks = state[f"roi_heads.mask_predictor.mask_fcn_logits.{kind}"]
        assert weights[f"mask_stage.head.masks.{kind}"].equal(masks[1:])


def test_rows_of_unused_category_ids_are_dropped(ninety) -> None:
    assert load_card("coco2017").classes == COCO_NAMES
    config, weights = convert_torchvision(ninety, class_names=COCO_NAMES)
    logits, deltas = (ninety[f"roi_heads.box_predictor.{name}.bias"] for name in ("cls_score", "bbox_pred"))
    masks = ninety["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    for name, category_id in (("person", 1), ("stop sign", 13), ("toothbrush", 90)):
        row = COCO_NAMES.index(name)
        assert weights["box_stage.predictor.classes.bias"][row] == logits[category_id]
        ours = weights["box_stage.predictor.deltas.bias"][4 * row : 4 * row + 4]
        assert ours.equal(deltas[4 * category_id : 4 * category_id + 4])
        assert weights["mask_stage.head.masks.weight"][row].equal(masks[category_id])
    assert weights["box_stage.predictor.classes.bias"][-1] == logits[0]
    build_detector(config, 80, pretrained=False).load_state_dict(weights)
    # Names of the used categories may come in any order, and one may have ninety of one's own.
    _, turned = convert_torchvision(ninety, class_names=COCO_NAMES[::-1])
    assert turned["box_stage.predictor.classes.bias"][0] == logits[90]
    _, own = convert_torchvision(ninety, class_names=[f"class {number}" for number in range(90)])
    assert len(own["box_stage.predictor.classes.weight"]) == 91


def test_rows_of_unused_category_ids_are_dropped_and_anchors_go_by_size() -> None:
    names = ("head.classes", "head.deltas")
    state = {f"{name}.bias": torch.arange(9.0 * count) for name, count in zip(names, (91, 4), strict=True)}
    state |= {f"{name}.weight": value.view(-1, 1, 1, 1) for name, value in zip(names, state.values(), strict=True)}
    state["backbone.coarse.p6.0.weight"] = torch.zeros(1)
    rows = [COCO_ROWS.index(name) for name in COCO_NAMES]
    layers = reorder_rows(state, rows)
    # The second anchor of ours is the first size with the second ratio: torchvision's fourth.
    assert layers["head.classes.bias"][:3].tolist() == [rows[0], 3 * 91 + rows[0], 6 * 91 + rows[0]]
    assert layers["head.classes.bias"][9 * 79 + 1] == 3 * 91 + rows[79]
    assert layers["head.deltas.bias"][4:8].tolist() == [12, 13, 14, 15]
    assert layers["head.deltas.weight"][4:8].flatten().tolist() == [12, 13, 14, 15]
    assert len(layers["head.classes.weight"]) == 9 * 80


def test_the_file_is_a_run_and_starts_a_detector_of_other_classes(state, tmp_path) -> None:
    config, weights = convert(state)
    write_converted(tmp_path / "run", config, CLASSES, weights)
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.config == config == load_config(DetectionConfig, tmp_path / "run" / "config.yaml")
    detector = build_detector(config, len(CLASSES), pretrained=False)
    load_detector_weights(detector, checkpoint, CLASSES)
    assert all(detector.state_dict()[name].equal(value) for name, value in weights.items())
    detector = build_detector(config, 2, pretrained=False)
    assert load_initial_weights(detector, checkpoint, ("yak", "dog"), {}).classes == ("dog",)
    for layer in ("box_stage.predictor.classes.bias", "mask_stage.head.masks.weight"):
        assert detector.state_dict()[layer][1].equal(weights[layer][1])


# the way back


def test_only_the_background_s_box_and_mask_change(new) -> None:
    config, weights = convert(new, norm_eps=0.0)
    back, code = to_torchvision(config, CLASSES, weights)
    assert set(back) == set(new)
    unread = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}
    for name, value in new.items():
        rows = unread.get(name.rpartition(".")[0], 0)
        assert back[name][rows:].equal(value[rows:]), name
        assert not back[name][:rows].any()
    assert code.splitlines() == [
        "model = maskrcnn_resnet18_fpn(weights=None, weights_backbone=None, num_classes=6)",
        "for layer in model.backbone.body.modules(): layer.eps = 0.0",
    ]
    again, same = convert(back, norm_eps=0.0)
    assert again == config
    assert all(same[name].equal(value) for name, value in weights.items())


def test_a_frozen_stage_gets_its_counters_back_and_what_the_builder_takes_is_said(trained, narrow, changed) -> None:
    config, weights = convert(trained)
    fixed = changed(config, "backbone.fix_statistics=true")
    detector = build_detector(fixed, len(CLASSES), pretrained=False)
    detector.load_state_dict(weights, strict=False)
    assert "backbone.body.bn1.num_batches_tracked" not in detector.state_dict()
    assert set(to_torchvision(fixed, CLASSES, detector.state_dict())[0]) == set(trained)
    own = changed(config, "test.nms_iou=0.3", "rpn.post_nms_test=300", "rpn.min_size=0.0")
    _, code = to_torchvision(own, CLASSES, weights)
    assert "num_classes=6, rpn_post_nms_top_n_test=300, box_nms_thresh=0.3)" in code
    assert "model.rpn.min_size = 0.0" in code
    config, weights = convert(narrow("retinanet").state_dict())
    _, code = to_torchvision(changed(config, "test.nms_iou=0.3", "dense.pre_nms=50"), CLASSES, weights)
    assert "num_classes=6, nms_thresh=0.3, topk_candidates=50)" in code


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mask_rcnn", "anchors.offset=0.5", r"anchors\.offset is 0\.5, torch"),
        ("mask_rcnn", "box.pool=roi_align", r"box\.pool is 'roi_align', torch"),
        ("mask_rcnn", "test.vote_iou=0.5", r"test\.vote_iou is 0\.5"),
        ("mask_rcnn", "box.head_fcs=3", r"box\.head_fcs 3 .* can't go"),
        ("retinanet", "backbone.fpn_coarse=c5", r"backbone\.fpn_coarse c5"),
        ("retinanet", "dense.clip_first=false", r"dense\.clip_first is False"),
    ],
)
def test_what_torchvision_lacks_does_not_go_back(narrow, changed, kind: str, change: str, message: str) -> None:
    config, weights = convert(narrow(kind).state_dict())
    with pytest.raises(ValueError, match=message):
        to_torchvision(changed(config, change), CLASSES, weights)


# refusals, which say what was found and what would do


def test_other_classes_are_refused(state, ninety) -> None:
    with pytest.raises(ValueError, match=r"know 5 classes besides the background, class_names has 2: give 5 names$"):
        convert_torchvision(state, class_names=("cat", "dog"))
    with pytest.raises(ValueError, match=r"give 90 names, or COCO's 80 by their names in datasets/coco2017\.yaml"):
        convert_torchvision(ninety, class_names=[*COCO_NAMES[:-1], "tooth brush"])


def test_other_detectors_are_refused() -> None:
    state = {"backbone.body.conv1.weight": torch.zeros(1), "head.x.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"no weights of .*fasterrcnn.* nothing in them becomes rpn\.head\.conv"):
        convert(state)
    for builder, name in ((ssd300_vgg16, "SSD"), (fasterrcnn_mobilenet_v3_large_fpn, "a detector over MobileNet")):
        with torch.device("meta"):
            state = builder(weights=None, weights_backbone=None).state_dict()
        with pytest.raises(ValueError, match=rf"torchvision's weights of {name} \("):
            convert(state)


@pytest.mark.parametrize(
    ("without", "added", "message"),
    [
        ("-", {"roi_heads.x.weight": (1,)}, r"(?s)do not fit FasterRCNN.*unused: 1: roi_heads\.x"),
        (r"(bbox_pred|cls_score)\.bias", {}, r"missing: \d: rpn\.head\.deltas\.bias, box_stage\.predictor\.classes"),
        ("-", {"roi_heads.box_predictor.bbox_pred.weight": (4, 128)}, r"weight has 4 rows, .* 4 for each of 6 classes"),
        ("-", {"backbone.body.layer1.0.conv1.weight": (128, 64, 3, 3)}, r"\(module .*\(128, 64, 3, 3\)"),
        ("layer3.1", {}, r"stages of \(2, 2, 1, 2\) basic blocks, expected .*resnet18 \(2, 2, 2, 2\)"),
    ],
)
def test_layers_that_are_missing_unused_or_of_other_shapes_are_refused(
    state, without: str, added, message: str
) -> None:
    own = {name: value for name, value in state.items() if not re.search(without, name)}
    with pytest.raises(ValueError, match=message):
        convert(own | {name: torch.zeros(shape) for name, shape in added.items()})


def test_other_numbers_of_anchors_are_refused(narrow) -> None:
    state = narrow("retinanet").state_dict()
    for part in ("weight", "bias"):
        state[f"head.regression_head.bbox_reg.{part}"] = state[f"head.regression_head.bbox_reg.{part}"][:12]
    with pytest.raises(ValueError, match=r"3 anchors a cell, torchvision's 9"):
        convert(state)
