"""Builds a detector from a config.

Among model code, only the files build*.py read config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypedDict

import torch
from torch import nn

from backbones.base import Backbone, FeatureSpec
from backbones.fpn import FPN
from backbones.registry import pyramid_features
from detection.build_panoptic import build_label_stage
from detection.build_semantic import build_deeplabv3, build_fcn, build_semantic_fpn, stages_of
from detection.build_stages import (
    build_box_stage,
    build_keypoint_stage,
    build_mask_stage,
    build_masked_stage,
    build_norm,
    build_point_stage,
)
from detection.build_tester import build_postprocessor
from detection.build_trunk import build_plain_backbone
from detection.config.detection import (
    AnchorConfig,
    ArchitectureName,
    DenseConfig,
    DetectionConfig,
    RPNConfig,
)
from detection.engine.compiled import CompiledStep, Frames
from detection.fields.masks import Masks
from detection.fields.table import FIELDS, Field
from detection.keypoints import KeypointSpec
from detection.model.anchors import AnchorGenerator, deal
from detection.model.architecture import Architecture
from detection.model.cascade import CascadeBoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.fcos import FCOSHead, PointMatcher
from detection.model.matcher import Matcher
from detection.model.mnc import MNC
from detection.model.one_stage import Dense, OneStage
from detection.model.retinanet import RetinaNetHead
from detection.model.rpn import RPN, ProposalFilter, RPNHead
from detection.model.sampler import BalancedSampler

__all__ = [
    "ARCHITECTURES",
    "build_detector",
    "compile_losses",
    "data_parts",
    "deciding_metric",
    "field_operations",
    "judged_fields",
    "label_names",
    "needed_fields",
    "with_keypoints",
]


class Builder(Protocol):
    """Makes an architecture over a backbone."""

    def __call__(self, config: DetectionConfig, backbone: Backbone, num_classes: int) -> Architecture: ...


@dataclass(frozen=True, slots=True)
class _Kind:
    """An entry of the table of architectures."""

    build: Builder
    fields: tuple[str, ...] = ()  # of objects, besides boxes and labels, that it is trained on


def build_detector(
    config: DetectionConfig, num_classes: int, *, pretrained: bool = True, fixed: Sequence[str] = ()
) -> Architecture:
    """Returns the detector that ``config`` describes, on the CPU.

    Args:
        config: of the run.
        num_classes: K, without the background.
        pretrained: load the backbone's weights; False where a whole detector's weights follow.
        fixed: parts that are not trained, such as "backbone" and "rpn".

    Raises:
        ValueError: an option that the backbone lacks, weights that do not fit it, or an unknown part.
    """
    backbone = _backbone(config, pretrained=pretrained)
    detector = ARCHITECTURES[config.architecture].build(config, backbone, num_classes)
    detector.name = config.architecture
    detector.fix(fixed)
    return detector.to(memory_format=torch.channels_last)


def compile_losses(config: DetectionConfig, model: nn.Module, say: Callable[[str], None]) -> CompiledStep:
    """Returns ``model`` with compiled losses for the batches of ``config``; ``say`` gets a line for every graph.

    With solver.accumulate no CUDA graphs are recorded: the next part's graph would overwrite the summed gradients.
    """
    data = config.data
    if data.jitter is not None:
        frames = Frames.of_scale(data.jitter.size, data.jitter.size)
    else:
        frames = Frames.of_scale(max(data.train_shorter_sides, default=data.shorter_side), data.longer_side)
    return CompiledStep(model, "solver.compile", frames, say=say, records=config.solver.accumulate == 1)


def needed_fields(config: DetectionConfig, *, training: bool = False) -> tuple[str, ...]:
    """Returns the fields of objects, besides boxes and labels, that training or testing ``config``'s detector needs."""
    fields = ARCHITECTURES[config.architecture].fields
    return tuple(dict.fromkeys((*fields, "masks"))) if training and config.data.copy_paste > 0 else fields


def judged_fields(config: DetectionConfig) -> tuple[str, ...]:
    """Returns the predictions of ``config``'s network, besides boxes, that a test judges."""
    maps = ("label_maps",) if config.finds_label_maps else ()
    return (*needed_fields(config), *maps, *(("panoptic",) if config.is_panoptic else ()))


def label_names(config: DetectionConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the label-map classes of ``config``'s network, whose checkpoint has ``class_names``."""
    if not config.finds_label_maps:
        return ()
    return (*class_names, *config.panoptic.stuff) if config.finds_objects else tuple(class_names)


def deciding_metric(config: DetectionConfig) -> str:
    """Returns the key of the figure by which ``config``'s networks are compared: of boxes, label maps or segments."""
    if not config.finds_label_maps:
        return "bbox.AP"
    return "panoptic.PQ" if config.finds_objects else "semseg.mIoU"


class DataParts(TypedDict):
    """Arguments of ``load_index`` and ``load_data`` that depend on the network."""

    label_maps: bool
    objects: bool


def data_parts(config: DetectionConfig) -> DataParts:
    """Returns the arguments by which data sets are read for ``config``'s network."""
    return {"label_maps": config.finds_label_maps, "objects": config.finds_objects}


def field_operations(config: DetectionConfig) -> Mapping[str, Field]:
    """Returns the table of fields with the operations that fit ``config``'s detector."""
    return FIELDS | {"masks": Masks(config.mask.geometry)}


def with_keypoints(config: DetectionConfig, keypoints: KeypointSpec | None) -> DetectionConfig:
    """Returns ``config`` with names and edges of a data set's ``keypoints``, if it needs them and has none.

    Raises:
        ValueError: it has other names.
    """
    if "keypoints" not in needed_fields(config) or keypoints is None:
        return config
    if not config.keypoint.names:
        return replace(config, keypoint=replace(config.keypoint, names=keypoints.names, edges=keypoints.edges))
    if config.keypoint.names != keypoints.names:
        raise ValueError(
            f"keypoint.names is {list(config.keypoint.names)}, the data set has {list(keypoints.names)}; leave "
            "keypoint.names and keypoint.edges out, or give a data set of these"
        )
    return config


def _backbone(config: DetectionConfig, *, pretrained: bool) -> Backbone:
    trunk = config.backbone
    if not trunk.fpn:
        return build_plain_backbone(trunk, pretrained=pretrained, out_features=_features(config))
    stages = pyramid_features(trunk.name)[0 if trunk.fpn_coarse == "subsample" else 1 :]
    body = build_plain_backbone(trunk, pretrained=pretrained, out_features=stages)
    return FPN(body, channels=trunk.fpn_channels, norm=build_norm(trunk.fpn_norm), coarse=trunk.fpn_coarse)


def _features(config: DetectionConfig) -> tuple[str, ...] | None:
    """Returns the stages that a head without a pyramid needs; None for the backbone's own default."""
    if not config.finds_objects:
        return stages_of(config)
    return ("c5",) if config.backbone.dilate_c5 else None


def _anchors(config: AnchorConfig, specs: Sequence[FeatureSpec]) -> list[AnchorGenerator]:
    return [
        AnchorGenerator(spec.stride, sizes=sizes, ratios=config.ratios, offset=config.offset, rounded=config.rounded)
        for spec, sizes in zip(specs, deal(config.sizes, len(specs)), strict=True)
    ]


def _rpn(config: RPNConfig, anchors: Sequence[AnchorGenerator], head: RPNHead, *, ignore_overlap: float) -> RPN:
    def proposal_filter(pre_nms: int, post_nms: int) -> ProposalFilter:
        return ProposalFilter(pre_nms=pre_nms, post_nms=post_nms, nms_iou=config.nms_iou, min_size=config.min_size)

    return RPN(
        anchors,
        head,
        matcher=Matcher(config.positive_iou, config.negative_iou, match_best=True, ignore_overlap=ignore_overlap),
        sampler=BalancedSampler(config.samples_per_image, config.positive_fraction),
        train_filter=proposal_filter(config.pre_nms_train, config.post_nms_train),
        test_filter=proposal_filter(config.pre_nms_test, config.post_nms_test),
        allow_outside=config.allow_outside,
        smooth_l1_beta=config.smooth_l1_beta,
        box_loss_weight=config.box_loss_weight,
    )


def _rcnn(
    config: DetectionConfig,
    backbone: Backbone,
    num_classes: int,
    *,
    cascade: bool = False,
    masks: bool = False,
    points: bool = False,
    keypoints: bool = False,
    labels: bool = False,
) -> FasterRCNN:
    """Builds a Faster R-CNN and, on request, its cascade, masks (maps or points), keypoints and label map."""
    rpn = _proposals(config, backbone)
    ious = config.cascade.ious if cascade else (config.box.positive_iou,)
    stages = [
        build_box_stage(config.box, backbone, iou, factor=factor, num_classes=num_classes)
        for factor, iou in enumerate(ious, start=1)
    ]
    mask_stage = None
    if points:
        mask_stage = build_point_stage(config, backbone, num_classes=num_classes)
    elif masks:
        mask_stage = build_mask_stage(config, backbone, stages[0], num_classes=num_classes)
    return FasterRCNN(
        backbone,
        rpn,
        CascadeBoxStage(stages) if cascade else stages[0],
        postprocess=build_postprocessor(config.test),
        mask_stage=mask_stage,
        keypoint_stage=build_keypoint_stage(config, backbone) if keypoints else None,
        label_stage=build_label_stage(config, backbone, num_classes) if labels else None,
    )


def _mnc(config: DetectionConfig, backbone: Backbone, num_classes: int) -> MNC:
    return MNC(
        backbone,
        _proposals(config, backbone),
        build_masked_stage(config, backbone, num_classes=num_classes),
        postprocess=build_postprocessor(config.test),
        vote_iou=config.mnc.vote_iou,
    )


def _proposals(config: DetectionConfig, backbone: Backbone) -> RPN:
    specs = list(backbone.specs.values())
    anchors, channels = _anchors(config.anchors, specs), specs[-1].channels
    head = RPNHead(channels, channels=config.rpn.channels, num_anchors=anchors[0].num_anchors, convs=config.rpn.convs)
    return _rpn(config.rpn, anchors, head, ignore_overlap=config.box.ignore_overlap)


def _retinanet(config: DetectionConfig, backbone: Backbone, num_classes: int) -> OneStage:
    dense, specs = config.dense, list(backbone.specs.values())
    head = RetinaNetHead(
        specs[-1].channels,
        _anchors(config.anchors, specs),
        num_classes=num_classes,
        matcher=Matcher(
            dense.positive_iou, dense.negative_iou, match_best=True, ignore_overlap=config.box.ignore_overlap
        ),
        settings=_dense(dense),
        use_giou=dense.loss == "giou",
        smooth_l1_beta=dense.smooth_l1_beta,
    )
    return OneStage(backbone, head, postprocess=build_postprocessor(config.test), clip_first=dense.clip_first)


def _fcos(config: DetectionConfig, backbone: Backbone, num_classes: int) -> OneStage:
    dense, specs = config.dense, list(backbone.specs.values())
    head = FCOSHead(
        specs[-1].channels,
        [spec.stride for spec in specs],
        num_classes=num_classes,
        matcher=PointMatcher(dense.center_radius),
        settings=_dense(dense),
        offset=config.anchors.offset,
        rounded=config.anchors.rounded,
    )
    return OneStage(backbone, head, postprocess=build_postprocessor(config.test), clip_first=dense.clip_first)


def _dense(config: DenseConfig) -> Dense:
    return Dense(
        convs=config.convs,
        norm=build_norm(config.norm),
        prior=config.prior,
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
        normalizer=config.normalizer,
        box_loss_weight=config.box_loss_weight,
        best=config.pre_nms,
    )


# Name in a config -> how it is built, and what it is trained on.
ARCHITECTURES: dict[ArchitectureName, _Kind] = {
    "faster_rcnn": _Kind(_rcnn),
    "mask_rcnn": _Kind(partial(_rcnn, masks=True), fields=("masks",)),
    "pointrend_rcnn": _Kind(partial(_rcnn, points=True), fields=("masks",)),
    "keypoint_rcnn": _Kind(partial(_rcnn, keypoints=True), fields=("keypoints",)),
    "cascade_rcnn": _Kind(partial(_rcnn, cascade=True)),
    "cascade_mask_rcnn": _Kind(partial(_rcnn, cascade=True, masks=True), fields=("masks",)),
    "mnc": _Kind(_mnc, fields=("masks",)),
    "retinanet": _Kind(_retinanet),
    "fcos": _Kind(_fcos),
    "fcn": _Kind(build_fcn),
    "deeplabv3": _Kind(build_deeplabv3),
    "semantic_fpn": _Kind(build_semantic_fpn),
    "panoptic_fpn": _Kind(partial(_rcnn, masks=True, labels=True), fields=("masks",)),
    "cascade_panoptic_fpn": _Kind(partial(_rcnn, cascade=True, masks=True, labels=True), fields=("masks",)),
}
