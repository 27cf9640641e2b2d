"""Converts torchvision's Faster, Mask and Keypoint R-CNN, RetinaNet and FCOS with a ResNet-FPN to our config and names.

FCN and DeepLabV3 are in torchvision_semantic.py.

Names and shapes distinguish fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn, their v2,
keypointrcnn_resnet50_fpn and fcos_resnet50_fpn, and give the numbers of classes and keypoints and the ResNet.

Source: torchvision 0.29, models/detection/faster_rcnn.py, mask_rcnn.py, keypoint_rcnn.py, rpn.py and roi_heads.py, from
whose default arguments the settings come.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from backbones.weights.load import load_matching
from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    ArchitectureName,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    MaskConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.weights.keypoint_layers import has_keypoints, keypoint_config
from detection.weights.resnets import coarse_levels, count_children, resnet_name
from detection.weights.torchvision_names import CLASSES, DELTAS, MASKS, OLD_NAMES, our_name, reorder_classes
from detection.weights.torchvision_one_stage import (
    Kind,
    count_classes,
    dense_config,
    one_stage_kind,
    one_stage_names,
    reorder_rows,
)
from detection.weights.torchvision_semantic import convert_semantic, is_semantic

__all__ = ["convert_torchvision", "known_norm_eps"]

NEEDED = ("rpn.head.conv.weight", "box_stage.head.fcs.0.weight", f"{CLASSES}.weight", f"{DELTAS}.weight")

# Pattern of names -> the model that has them and no counterpart here
OTHERS = (
    (r"backbone\.(features|extra)\.", "SSD"),
    (r"backbone\.body\.\d", "a detector over MobileNet"),
    (r"backbone\.\d+\.", "DeepLabV3 or LR-ASPP over MobileNet"),
)

# The published models give a row to each of COCO's category ids 0..90, of which 80 are used; the rest is called N/A.
COCO_ROWS: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def convert_torchvision(
    state: Mapping[str, Tensor], *, class_names: Sequence[str], norm_eps: float | None = None
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Returns the config of a detector equal to torchvision's, and ``state`` under that detector's names.

    torchvision's background is row 0, ours the last of the class logits; boxes and masks have none. If ``state`` has
    the published 91 rows and ``class_names`` are COCO's 80, the rows of unused category ids are dropped, and their
    small probability is distributed over the other classes.

    Args:
        state: state dict of a torchvision detector.
        class_names: K names, in the order of the rows 1..K; COCO's 80 in any order for 91 rows. For FCN and DeepLabV3
            the background is a class with a name, in row 0.
        norm_eps: eps of the body's batch normalisation. None uses the names in the file: 1e-5 for BatchNorm2d (v2, and
            v1 trained from scratch), 0.0 for the published v1 files. Other v1 models need it.

    Raises:
        ValueError: the architecture is not supported (the names are listed), the number of classes differs, or
            ``norm_eps`` does not follow from the names.
    """
    if is_semantic(state):
        return convert_semantic(state, class_names)
    _refuse_others(state)
    if kind := one_stage_kind(state):
        return _convert_one_stage(state, kind, class_names, norm_eps)
    renamed = {our_name(name): value for name, value in state.items()}
    missing = [name for name in NEEDED if name not in renamed]
    if missing:
        raise ValueError(
            "these are no weights of torchvision's fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, their v2 or "
            f"keypointrcnn_resnet50_fpn: nothing in them becomes {', '.join(missing)}"
        )
    rows = _class_rows(len(renamed[f"{CLASSES}.weight"]), class_names)
    config = _config(renamed, norm_eps=_norm_eps(state) if norm_eps is None else norm_eps)
    converted = renamed | reorder_classes(renamed, rows)
    load_matching(build_detector(config, len(rows), pretrained=False), converted, source="torchvision's detector")
    return config, converted


def _convert_one_stage(
    state: Mapping[str, Tensor], kind: Kind, class_names: Sequence[str], norm_eps: float | None
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """Converts RetinaNet and FCOS as ``convert_torchvision``; their row 0 has no training objects."""
    renamed = one_stage_names(state, kind)
    rows = _class_rows(count_classes(renamed), class_names)
    eps = _norm_eps(state) if norm_eps is None else norm_eps
    body = _backbone_config(renamed, norm_eps=eps, channels=len(renamed["backbone.output.c3.0.weight"]))
    config = dense_config(renamed, kind, replace(body, fpn_coarse=coarse_levels(renamed)))
    converted = renamed | reorder_rows(renamed, rows)
    load_matching(build_detector(config, len(rows), pretrained=False), converted, source="torchvision's detector")
    return config, converted


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError, with the model's name, for a model without a counterpart here."""
    for pattern, model in OTHERS:
        name = next((name for name in state if re.match(pattern, name)), None)
        if name is not None:
            raise ValueError(
                f"these are torchvision's weights of {model} ({name}), which has no counterpart here; fasterrcnn, "
                "maskrcnn, keypointrcnn, retinanet and fcos over a ResNet with a pyramid have, and fcn and deeplabv3 "
                "over a dilated ResNet"
            )


def _class_rows(count: int, class_names: Sequence[str]) -> list[int]:
    """Returns the row, of ``count`` rows, of each of ``class_names``; row 0 is the background."""
    if count == len(class_names) + 1:
        return list(range(1, count))
    if count == len(COCO_ROWS) and set(class_names) == set(COCO_ROWS[1:]) - {"N/A"}:
        return [COCO_ROWS.index(name) for name in class_names]
    used = ", or COCO's 80 by their names in datasets/coco2017.yaml" if count == len(COCO_ROWS) else ""
    raise ValueError(
        f"the weights know {count - 1} classes besides the background, class_names has {len(class_names)}: "
        f"give {count - 1} names{used}"
    )


def known_norm_eps(state: Mapping[str, Tensor]) -> float | None:
    """Returns eps of the body's batch normalisation; None if it does not follow from the names.

    FrozenBatchNorm2d adds 1e-5, but the published v1 models were trained before it added anything, and torchvision sets
    0.0 after loading them. Their files have old names; a state dict saved later has new ones, whatever it began with.
    """
    if _counts_steps(state) or one_stage_kind(state) == "fcos":  # which is younger than the 1e-5
        return 1e-5
    return 0.0 if any(pattern.fullmatch(name) for name in state for pattern, _ in OLD_NAMES) else None


def _norm_eps(state: Mapping[str, Tensor]) -> float:
    if (known := known_norm_eps(state)) is not None:
        return known
    raise ValueError(
        "the names do not tell the eps of the fixed batch normalisation; give norm_eps: 0.0 if the model began with "
        "weights='DEFAULT' or 'COCO_V1' of a v1 model, 1e-5 if it began with weights_backbone"
    )


def _counts_steps(state: Mapping[str, Tensor]) -> bool:
    """Returns whether the body has BatchNorm2d; FrozenBatchNorm2d has no step counters."""
    return "backbone.body.bn1.num_batches_tracked" in state


def _config(state: Mapping[str, Tensor], *, norm_eps: float) -> DetectionConfig:
    """Returns torchvision's settings for the layers in ``state``, under our names."""
    return DetectionConfig(
        backbone=_backbone_config(state, norm_eps=norm_eps, channels=state["rpn.head.conv.weight"].shape[1]),
        anchors=AnchorConfig(sizes=(32.0, 64.0, 128.0, 256.0, 512.0), ratios=(0.5, 1.0, 2.0), offset=0.0, rounded=True),
        rpn=RPNConfig(
            channels=state["rpn.head.conv.weight"].shape[0],
            convs=2 if "rpn.head.more.0.weight" in state else 1,
            positive_iou=0.7,
            negative_iou=0.3,
            samples_per_image=256,
            positive_fraction=0.5,
            allow_outside=True,
            smooth_l1_beta=1 / 9,
            pre_nms_train=2000,
            pre_nms_test=1000,
            post_nms_train=2000,
            post_nms_test=1000,
            nms_iou=0.7,
            min_size=1e-3,
        ),
        architecture=_architecture(state),
        box=_box_config(state),
        mask=_mask_config(state),
        keypoint=keypoint_config(state),
        test=PostprocessConfig(score_threshold=0.05, nms_iou=0.5, max_detections=100),
        data=DetectorDataConfig(shorter_side=800, longer_side=1333),
    )


def _architecture(state: Mapping[str, Tensor]) -> ArchitectureName:
    if has_keypoints(state):
        return "keypoint_rcnn"
    return "mask_rcnn" if f"{MASKS}.weight" in state else "faster_rcnn"


def _backbone_config(state: Mapping[str, Tensor], *, norm_eps: float, channels: int) -> DetectorBackboneConfig:
    return DetectorBackboneConfig(
        name=resnet_name(state),
        norm="bn" if _counts_steps(state) else "frozen_bn",
        norm_eps=norm_eps,
        freeze_at=2,  # trainable_backbone_layers=3, the default after loading weights
        fix_statistics=not _counts_steps(state),  # BatchNorm2d stays in training mode there, whatever is fixed
        fpn=True,
        fpn_channels=channels,
        fpn_norm=_norm_after(state, "backbone.lateral.c5"),
    )


def _box_config(state: Mapping[str, Tensor]) -> BoxConfig:
    return BoxConfig(
        pool="roi_align_unaligned",
        sampling_ratio=2,
        head="fc",
        pool_size=7,
        head_convs=count_children(state, "box_stage.head.convs"),
        head_fcs=count_children(state, "box_stage.head.fcs"),
        head_channels=len(state["box_stage.head.fcs.0.weight"]),
        head_norm=_norm_after(state, "box_stage.head.convs.0"),
        samples_per_image=512,
        positive_fraction=0.25,
        positive_iou=0.5,
        smooth_l1_beta=1 / 9,
        coder_weights=(10.0, 10.0, 5.0, 5.0),
    )


def _mask_config(state: Mapping[str, Tensor]) -> MaskConfig:
    if f"{MASKS}.weight" not in state:
        return MaskConfig()
    return MaskConfig(
        geometry="torchvision",
        pool_size=14,
        convs=count_children(state, "mask_stage.head.convs"),
        channels=state[f"{MASKS}.weight"].shape[1],
        norm=_norm_after(state, "mask_stage.head.convs.0"),
    )


def _norm_after(state: Mapping[str, Tensor], block: str) -> Literal["bn"] | None:
    return "bn" if f"{block}.1.running_mean" in state else None
