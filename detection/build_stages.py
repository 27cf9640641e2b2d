"""Builds the stages that run on regions from a config."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

from backbones.base import Backbone
from backbones.fpn import FPN
from backbones.norm import NormLayer, make_norm
from detection.config.detection import BoxConfig, DetectionConfig
from detection.model.box_coder import BoxCoder
from detection.model.box_heads import FCHead
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.matcher import Matcher
from detection.model.mnc import MaskedStage, MaskLayers
from detection.model.pointrend import CoarseHead, PointHead, PointSettings, PointStage
from detection.model.pooler import RegionPooler
from detection.model.sampler import BalancedSampler

__all__ = [
    "build_box_stage",
    "build_keypoint_stage",
    "build_mask_stage",
    "build_masked_stage",
    "build_norm",
    "build_point_stage",
]


def build_norm(kind: Literal["bn", "gn", "sync_bn"] | None) -> NormLayer | None:
    """Returns the constructor of norm layers of ``kind``; None for none."""
    return None if kind is None else make_norm(kind, eps=1e-5)


def build_box_stage(
    config: BoxConfig, backbone: Backbone, positive_iou: float, *, factor: int, num_classes: int
) -> BoxStage:
    """Returns the box stage; its coder's weights are ``factor`` times those of ``config``."""
    spec = list(backbone.specs.values())[-1]
    if config.head == "tail":
        tail = backbone.tail()
        head, roi_size = tail, tail.roi_size
    else:
        roi_size = config.pool_size
        head = FCHead(
            spec.channels,
            roi_size,
            convs=config.head_convs,
            fcs=config.head_fcs,
            channels=config.head_channels,
            norm=build_norm(config.head_norm),
        )
    return BoxStage(
        RegionPooler(_pooled(backbone), roi_size, kind=config.pool, sampling_ratio=config.sampling_ratio),
        head,
        BoxPredictor(
            head.out_channels * (2 if config.context else 1),
            num_classes=num_classes,
            class_agnostic=config.class_agnostic,
        ),
        matcher=Matcher(
            positive_iou,
            positive_iou,
            negative_iou_low=config.negative_iou_low,
            ignore_overlap=config.ignore_overlap,
        ),
        sampler=BalancedSampler(config.samples_per_image, config.positive_fraction),
        coder=BoxCoder(tuple(weight * factor for weight in config.coder_weights)),
        context=config.context,
        smooth_l1_beta=config.smooth_l1_beta,
        use_giou=config.loss == "giou",
        box_loss_weight=config.box_loss_weight,
    )


def build_masked_stage(config: DetectionConfig, backbone: Backbone, *, num_classes: int) -> MaskedStage:
    """Returns the stages of MNC after its proposals."""
    box, mnc, channels = config.box, config.mnc, list(backbone.specs.values())[-1].channels
    plain = build_box_stage(box, backbone, box.positive_iou, factor=1, num_classes=num_classes)
    layers = MaskLayers(
        channels, mnc.pool_size, side=mnc.mask_side, channels=mnc.mask_channels, geometry=config.mask.geometry
    )
    width = plain.head.out_channels
    return MaskedStage(
        RegionPooler(_pooled(backbone), mnc.pool_size, kind=box.pool, sampling_ratio=box.sampling_ratio),
        plain.head,
        deepcopy(plain.head),  # both begin with the backbone's weights
        BoxPredictor(2 * width, num_classes=num_classes, class_agnostic=box.class_agnostic),
        layers,
        matcher=plain.matcher,
        sampler=plain.sampler,
        coder=plain.coder,
        roi_size=plain.pooler.size,
        looks=mnc.looks,
        smooth_l1_beta=box.smooth_l1_beta,
        box_loss_weight=box.box_loss_weight,
    )


def build_mask_stage(
    config: DetectionConfig, backbone: Backbone, box_stage: BoxStage, *, num_classes: int
) -> MaskStage:
    """Returns the mask branch of a detector with ``box_stage``."""
    mask, spec = config.mask, list(backbone.specs.values())[-1]
    shared = config.box.head == "tail"  # then the masks see what the tail has made of the regions
    pooler = RegionPooler(
        _pooled(backbone),
        box_stage.pooler.size if shared else mask.pool_size,
        kind=config.box.pool,
        sampling_ratio=config.box.sampling_ratio,
    )
    head = MaskHead(
        box_stage.head.out_channels if shared else spec.channels,
        num_classes=num_classes,
        convs=0 if shared else mask.convs,
        channels=mask.channels,
        norm=build_norm(mask.norm),
    )
    return MaskStage(pooler, head, geometry=mask.geometry)


def build_point_stage(config: DetectionConfig, backbone: Backbone, *, num_classes: int) -> PointStage:
    """Returns PointRend's mask branch."""
    mask, point, finest = config.mask, config.point, next(iter(backbone.specs.values()))
    coarse = CoarseHead(
        finest.channels,
        num_classes=num_classes,
        pool_size=mask.pool_size,
        side=point.coarse_side,
        channels=mask.channels,
        fcs=point.fcs,
        fc_channels=point.fc_channels,
    )
    settings = PointSettings(
        train_points=point.train_points,
        oversample=point.oversample,
        importance=point.importance,
        steps=point.steps,
        test_points=point.test_points,
    )
    head = PointHead(finest.channels, num_classes=num_classes, layers=point.layers, channels=point.channels)
    return PointStage(coarse, head, stride=finest.stride, settings=settings, geometry=mask.geometry)


def build_keypoint_stage(config: DetectionConfig, backbone: Backbone) -> KeypointStage:
    """Returns the keypoint branch.

    Raises:
        ValueError: the config has no names of keypoints.
    """
    keypoint, box = config.keypoint, config.box
    if not keypoint.names:
        raise ValueError(
            "keypoint.names is empty, but a keypoint detector needs their number; training takes them from the "
            "data set; otherwise give them, such as keypoint.names=[nose,tail]"
        )
    return KeypointStage(
        RegionPooler(_pooled(backbone), keypoint.pool_size, kind=box.pool, sampling_ratio=box.sampling_ratio),
        KeypointHead(
            list(backbone.specs.values())[-1].channels,
            num_keypoints=len(keypoint.names),
            convs=keypoint.convs,
            channels=keypoint.channels,
        ),
    )


def _pooled(backbone: Backbone) -> list[int]:
    """Returns strides of the features that regions are pooled from: all but the coarse levels of a pyramid."""
    pooled = backbone.body if isinstance(backbone, FPN) else backbone
    return [spec.stride for spec in pooled.specs.values()]
