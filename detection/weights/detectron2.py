"""Converts Detectron2's R-CNNs (C4, DC5, FPN), PointRend, RetinaNet, semantic and panoptic FPN to our config and names.

Names and shapes give the architecture, the ResNet and the number of classes. Everything else is as in Detectron2's
model zoo, unless settings are given.

Source: Detectron2, configs/Base-RCNN-{C4,DilatedC5,FPN}.yaml, configs/Misc/mask_rcnn_R_50_FPN_3x_{gn,syncbn}.yaml,
configs/COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml and configs/COCO-Keypoints/Base-Keypoint-RCNN-FPN.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.weights.load import SOURCES, load_matching
from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass
from detection.model.anchors import AnchorGenerator, deal
from detection.weights.detectron2_names import our_name
from detection.weights.detectron2_panoptic import HEAD, panoptic_settings
from detection.weights.detectron2_pointrend import POINTS, pointrend_settings
from detection.weights.detectron2_retinanet import (
    CLASSES,
    class_count,
    classes_first,
    retinanet_settings,
    with_running_mean,
)
from detection.weights.detectron2_semantic import is_semantic_fpn, our_semantic_name, semantic_settings
from detection.weights.detectron2_settings import apply_settings
from detection.weights.keypoint_layers import has_keypoints, keypoint_config
from detection.weights.resnets import coarse_levels, count_children, deformable_stages, resnet_name

__all__ = ["convert_detectron2"]

Architecture = Literal["c4", "dc5", "fpn"]

# Pattern of names -> the model, and why it can't be loaded; the first match is reported.
OTHERS = (
    (r"head\.cls_subnet\.1\.", "RetinaNet with normalised towers", "its convolutions have a bias before it"),
    (r"sem_seg_head\.(?!p\d\.|predictor\.)", "a semantic segmentation", "only SemSegFPNHead is known here"),
    (
        r"roi_heads\.mask_head\.parameter_head\.",
        "Implicit PointRend",
        "model/pointrend.py has no layers made by others",
    ),
    (r"backbone\.(bottom_up\.)?s\d\.b\d", "a RegNet", "backbones/registry.py lacks it"),
    (r"backbone\.(bottom_up|net)\.(patch_embed|blocks)\.", "a transformer", "backbones/registry.py lacks it"),
)

ANCHORS = "anchor_generator.cell_anchors."
LEVELS = 5  # of a pyramid


def convert_detectron2(
    state: Mapping[str, Tensor], *, class_names: Sequence[str], settings: Mapping[str, Any] | None = None
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Returns the config of a detector equal to Detectron2's, and ``state`` under that detector's names.

    Detectron2's background is the last class, as ours. Older files also have anchors and pixel normalisation, which
    must agree with the config.

    Args:
        state: state dict of a Detectron2 detector.
        class_names: K names, in the order of the rows; for a panoptic network, stuff classes may follow.
        settings: keys of Detectron2's config with values that differ from the model zoo, such as
            {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.6}.

    Raises:
        ValueError: the model is not supported (its name is given), the number of classes differs, or our detector lacks
            a setting.
    """
    _refuse_others(state)
    if is_semantic_fpn(state):
        return _convert_semantic(state, class_names, settings or {})
    renamed = {our_name(our_semantic_name(name, HEAD)): value for name, value in state.items()}
    one_stage = f"{CLASSES}.weight" in renamed
    architecture = "fpn" if one_stage else _architecture(state)
    count = class_count(renamed) if one_stage else len(renamed[f"{_predictor(renamed)}.classes.weight"]) - 1
    panoptic = f"{HEAD}.classes.weight" in renamed
    if count != len(class_names) and not panoptic:
        raise ValueError(
            f"the weights know {count} classes besides the background, class_names has {len(class_names)}: "
            f"give {count} names, in the order of the rows"
        )
    tree = _shared_settings(renamed, architecture, backbone=_backbone(renamed))
    tree |= retinanet_settings(renamed) if one_stage else _zoo_settings(renamed, architecture)
    tree |= pointrend_settings(renamed, count) if f"{POINTS}.weight" in renamed else {}
    tree |= panoptic_settings(renamed, class_names, count) if panoptic else {}
    apply_settings(tree, settings or {})
    config = build_dataclass(DetectionConfig, tree)
    converted = {name: value for name, value in renamed.items() if not _is_constant(name)}
    converted = with_running_mean(classes_first(converted)) if one_stage else _masks_for_all(converted, count)
    _check_layers(config, count, converted)
    _check_constants(renamed, config)
    return config, converted


def _convert_semantic(
    state: Mapping[str, Tensor], class_names: Sequence[str], settings: Mapping[str, Any]
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Converts semantic FPN as ``convert_detectron2``; every class has its row."""
    renamed = {our_name(our_semantic_name(name)): value for name, value in state.items()}
    count = len(renamed["head.classes.weight"])
    if count != len(class_names):
        raise ValueError(
            f"the weights know {count} classes, class_names has {len(class_names)}: give {count} names, in the order "
            "of the rows"
        )
    tree = _shared_settings(renamed, _architecture(state), backbone=_backbone(renamed)) | semantic_settings(renamed)
    apply_settings(tree, settings)
    config = build_dataclass(DetectionConfig, tree)
    converted = {name: value for name, value in renamed.items() if not _is_constant(name)}
    _check_layers(config, count, converted)
    _check_constants(renamed, config)
    return config, converted


def _check_layers(config: DetectionConfig, num_classes: int, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless ``state`` has the names and shapes of ``config``'s network."""
    with torch.device("meta"):
        detector = build_detector(config, num_classes, pretrained=False)
    load_matching(detector.to_empty(device="cpu"), state, source="Detectron2's detector")


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError, with the model's name, for a model without a counterpart here."""
    for pattern, model, reason in OTHERS:
        name = next((name for name in state if re.match(pattern, name)), None)
        if name is not None:
            raise ValueError(f"these are Detectron2's weights of {model} ({name}), and {reason}")


def _architecture(state: Mapping[str, Tensor]) -> Architecture:
    kinds: tuple[tuple[str, Architecture], ...] = (
        ("backbone.fpn_lateral2.weight", "fpn"),
        ("roi_heads.res5.0.conv1.weight", "c4"),
        ("backbone.res5.0.conv1.weight", "dc5"),
    )
    for name, kind in kinds:
        if name in state:
            return kind
    raise ValueError(
        "these are no weights of Detectron2's Faster, Mask or Cascade R-CNN with a ResNet: "
        f"none of {', '.join(name for name, _ in kinds)} is in them"
    )


def _predictor(state: Mapping[str, Tensor]) -> str:
    """Returns the name of the (first) box predictor in ``state``, under our names."""
    for predictor in ("box_stage.predictor", "box_stage.stages.0.predictor"):
        needed = ("rpn.head.conv.weight", f"{predictor}.classes.weight", f"{predictor}.deltas.bias")
        if all(name in state for name in needed):
            return predictor
    raise ValueError("these are no weights of Detectron2's Faster R-CNN: an RPN's or a box predictor's are missing")


def _backbone(state: Mapping[str, Tensor]) -> str:
    """Returns the name of the ResNet or ResNeXt in ``state``, under our names."""
    name = resnet_name(state)
    if name in ("resnet18", "resnet34"):
        raise ValueError(f"these are Detectron2's weights of {name}, and only its bottleneck blocks are known here")
    return name


def _shared_settings(state: Mapping[str, Tensor], architecture: Architecture, *, backbone: str) -> dict[str, Any]:
    """Returns the model zoo's settings, as sections of our config, that do not depend on the head in ``state``."""
    norm = _body_norm(state)
    pyramid: dict[str, Any] = {}
    if architecture == "fpn":
        pyramid["fpn_channels"] = len(state["backbone.lateral.c5.0.weight"])
        if "backbone.coarse.p6.0.weight" in state:
            pyramid["fpn_coarse"] = coarse_levels(state)
    return {
        "backbone": {
            "name": backbone,
            # ResNeXt-152's pixels are not divided by the deviation, which is part of its first layer's weights.
            "weights_source": "caffe2" if "resnext" in backbone and "152" not in backbone else "msra",
            "stride_in": "3x3" if "resnext" in backbone or norm == "gn" else "1x1",
            "norm": norm,
            "freeze_at": 2,
            "dilate_c5": True if architecture == "dc5" else None,
            "fpn": architecture == "fpn",
            **pyramid,
            **deformable_stages(state),
            "fpn_norm": _norm_after(state, "backbone.lateral.c5"),
            "roi_size": 14 if architecture == "c4" else None,
        },
        "test": {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100},
        "data": {"shorter_side": 800, "longer_side": 1333},
    }


def _zoo_settings(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Any]:
    """Returns the model zoo's settings for the layers after the trunk in ``state``, by our names, as sections."""
    fpn = architecture == "fpn"
    return {
        "anchors": {"sizes": [32, 64, 128, 256, 512], "ratios": [0.5, 1.0, 2.0], "offset": 0.0},
        "rpn": {
            "channels": len(state["rpn.head.conv.weight"]),
            "convs": 1 + count_children(state, "rpn.head.more"),
            "positive_iou": 0.7,
            "negative_iou": 0.3,
            "samples_per_image": 256,
            "positive_fraction": 0.5,
            "allow_outside": True,
            "smooth_l1_beta": 0.0,
            "pre_nms_train": 2000 if fpn else 12000,
            "pre_nms_test": 1000 if fpn else 6000,
            "post_nms_train": 1500 if has_keypoints(state) else 1000 if fpn else 2000,
            "post_nms_test": 1000,
            "nms_iou": 0.7,
            "min_size": 0.0,
        },
        "architecture": _architecture_name(state),
        "box": _box_settings(state, architecture),
        "mask": _mask_settings(state, architecture),
        "keypoint": asdict(keypoint_config(state)) if has_keypoints(state) else {},
    }


def _body_norm(state: Mapping[str, Tensor]) -> str:
    """Returns the norm of the body: that of the pyramid, where it has any, since fixed statistics look like others."""
    if not any(name.endswith("layer1.0.bn1.running_mean") for name in state):
        return "gn"
    return "frozen_bn" if _norm_after(state, "backbone.lateral.c5") is None else "sync_bn"


def _norm_after(state: Mapping[str, Tensor], block: str) -> str | None:
    """Returns the norm after the convolution of ``block``; the model zoo's batch normalisation is synchronised."""
    if f"{block}.1.weight" not in state:
        return None
    return "sync_bn" if f"{block}.1.running_mean" in state else "gn"


def _masks_for_all(state: dict[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Returns ``state`` with a class-agnostic mask (CLS_AGNOSTIC_MASK) copied to every class."""
    names = (f"{layer}.{part}" for layer in ("mask_stage.head.masks", POINTS) for part in ("weight", "bias"))
    shared = {name: state[name] for name in names if name in state and len(state[name]) == 1}
    return state | {name: value.expand(num_classes, *value.shape[1:]) for name, value in shared.items()}


def _architecture_name(state: Mapping[str, Tensor]) -> str:
    masks = "mask_stage.head.masks.weight" in state
    if has_keypoints(state):
        return "keypoint_rcnn"
    if f"{POINTS}.weight" in state:
        return "pointrend_rcnn"
    if f"{HEAD}.classes.weight" in state:
        return "cascade_panoptic_fpn" if ".stages." in _predictor(state) else "panoptic_fpn"
    if ".stages." in _predictor(state):
        return "cascade_mask_rcnn" if masks else "cascade_rcnn"
    return "mask_rcnn" if masks else "faster_rcnn"


def _box_settings(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Any]:
    predictor = _predictor(state)
    head, own = predictor.replace("predictor", "head"), dict[str, Any]()
    if architecture != "c4":
        own = {
            "head_convs": count_children(state, f"{head}.convs"),
            "head_fcs": count_children(state, f"{head}.fcs"),
            "head_channels": state[f"{predictor}.classes.weight"].shape[1],
            "head_norm": _norm_after(state, f"{head}.convs.0"),
        }
    return own | {
        "pool": "roi_align",
        "sampling_ratio": 0,
        "head": "tail" if architecture == "c4" else "fc",
        "pool_size": 7,
        "class_agnostic": len(state[f"{predictor}.deltas.bias"]) == 4,
        "samples_per_image": 512,
        "positive_fraction": 0.25,
        "positive_iou": 0.5,
        "smooth_l1_beta": 0.5 if has_keypoints(state) else 0.0,
        "coder_weights": [10.0, 10.0, 5.0, 5.0],
    }


def _mask_settings(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Any]:
    if "mask_stage.head.masks.weight" not in state:
        return {}
    convs = "mask_stage.head.convs"
    own = {} if architecture == "c4" else {"pool_size": 14, "convs": count_children(state, convs)}
    return own | {
        "norm": _norm_after(state, f"{convs}.0"),
        "channels": state["mask_stage.head.masks.weight"].shape[1],
        "geometry": "detectron2",
    }


def _is_constant(name: str) -> bool:
    return name in ("pixel_mean", "pixel_std") or name.startswith(ANCHORS)


def _check_constants(state: Mapping[str, Tensor], config: DetectionConfig) -> None:
    """Raises ValueError if the constants in older files differ from our detector's."""
    anchors, stats = config.anchors, SOURCES[config.backbone.weights_source].input_stats
    expected = {"pixel_mean": torch.tensor(stats.mean), "pixel_std": torch.tensor(stats.std)}
    levels = deal(anchors.sizes, LEVELS if config.backbone.fpn else 1) if config.finds_objects else []
    for number, sizes in enumerate(levels):
        expected[f"{ANCHORS}{number}"] = AnchorGenerator(1, sizes=sizes, ratios=anchors.ratios).cell_anchors
    for name in filter(_is_constant, state):
        own = expected.get(name)
        if (
            own is None
            or own.numel() != state[name].numel()
            or (own.flatten() - state[name].flatten()).abs().max() > 0.01
        ):
            raise ValueError(
                f"{name} is {state[name].flatten().tolist()}, a detector of these settings has "
                f"{None if own is None else own.flatten().tolist()}; say in settings (--settings) what "
                "differs from the model zoo's"
            )
