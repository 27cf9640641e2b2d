"""From a config to a Detector: the only reader of config among the model code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from backbones.base import Backbone, FeatureSpec, Tail
from backbones.classifier import backbone_weights
from backbones.fpn import FPN
from backbones.norm import NormLayer, make_norm
from backbones.registry import build_backbone, pyramid_features
from backbones.weights.load import load_matching
from detection.config.detection import AnchorConfig, BackboneConfig, BoxConfig, Config, PostprocessConfig, RPNConfig
from detection.engine.checkpoint import read_checkpoint, resolve_weights, stored_config
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.box_heads import FCHead
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.cascade import CascadeBoxStage
from detection.model.faster_rcnn import Detector
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN, ProposalFilter, RPNHead
from detection.model.sampler import BalancedSampler
from detection.model.test_time.tester import Methods, Tester

__all__ = ["TRAINED_WITH", "build_detector", "build_plain_backbone", "build_tester", "refuse_detector_keys"]

# What a run's weights need of the network that takes them over, and what no name or shape among them shows.
TRAINED_WITH = ("name", "shortcut", "stochastic_depth", "weights_source", "norm_eps", "stride_in")
LIBRARIES = ("torchvision", "timm")  # as weights: not a folder that has such a name
DETECTOR_KEYS = ("init", "solver.fixed", "data.proposals", "backbone.fpn", "backbone.dilate_c5", "anchors.rounded")


def build_detector(config: Config, num_classes: int, *, pretrained: bool = True) -> Detector:
    """The detector that ``config`` describes, on the CPU.

    Args:
        config: of the run.
        num_classes: K, without the background.
        pretrained: load the backbone's weights; False where a whole detector's weights follow.

    Raises:
        ValueError: an option that the backbone lacks, or weights that do not fit it.
    """
    backbone = _backbone(config.backbone, pretrained=pretrained)
    anchors = _anchors(config.anchors, list(backbone.specs.values()), pyramid=config.backbone.fpn)
    channels = list(backbone.specs.values())[-1].channels
    head = RPNHead(channels, channels=config.rpn.channels, num_anchors=anchors[0].num_anchors, convs=config.rpn.convs)
    rpn = _rpn(config.rpn, anchors, head, ignore_overlap=config.box.ignore_overlap)
    box_stage = _box_stage(config.box, backbone, num_classes=num_classes)
    detector = Detector(
        backbone,
        rpn,
        box_stage,
        postprocess=_postprocessor(config.test),
        mask_stage=_mask_stage(config, backbone, box_stage, num_classes=num_classes) if config.mask.enabled else None,
        fixed=config.solver.fixed,
    )
    return detector.to(memory_format=torch.channels_last)


def build_tester(config: PostprocessConfig, detectors: Sequence[Detector]) -> Tester:
    """The way to test that ``config`` describes, over one detector or an ensemble."""
    methods = Methods(refine=config.refine, scales=config.scales, flip=config.flip)
    return Tester(detectors, methods=methods, postprocess=_postprocessor(config))


def build_plain_backbone(
    config: BackboneConfig, *, pretrained: bool, out_features: Sequence[str] | None = None
) -> Backbone:
    """The backbone that ``config`` describes, without its pyramid.

    Args:
        config: of the backbone; its weights may be the directory of a run of ``resdet pretrain``, or a checkpoint
            of it, if that had the same options of ``TRAINED_WITH``.
        pretrained: load the weights; False where those of a whole model follow.
        out_features: stages to return; None for the backbone's own default.

    Raises:
        ValueError: an option that the backbone lacks, or weights that do not fit it.
    """
    options = asdict(config)
    name, weights, source = options.pop("name"), options.pop("weights"), options.pop("weights_source")
    for of_the_pyramid in ("fpn", "fpn_channels", "fpn_norm"):
        del options[of_the_pyramid]
    run = _file_of_a_run(config, check=pretrained)
    backbone = build_backbone(
        name,
        weights=None if run else weights,
        weights_source=source,
        load_weights=pretrained,
        out_features=out_features,
        **options,
    )
    if run and pretrained:
        weights_of_run = backbone_weights(read_checkpoint(run).weights)
        if not weights_of_run:
            raise ValueError(
                f"{run} is no classifier; leave backbone.weights unset and give a detector to go on from as init"
            )
        load_matching(backbone, weights_of_run, source=str(run))
    return backbone


def refuse_detector_keys(config: Config, purpose: str) -> None:
    """Raises ValueError for a key that only detectors know, in the config of something else."""
    for key in DETECTOR_KEYS:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value:
            raise ValueError(f"{key} is {value!r}, but only detectors know it; leave it unset for {purpose}")


def _file_of_a_run(config: BackboneConfig, *, check: bool) -> Path | None:
    """The weights of ``config`` where a run of ours made them; None for others, and for a run that is gone.

    Raises:
        ValueError: with ``check``, it trained a network of other options.
    """
    if config.weights is None or config.weights in LIBRARIES or not Path(config.weights).exists():
        return None
    file = resolve_weights(config.weights)
    stored = stored_config(file)
    if stored is None:
        return None
    for key in TRAINED_WITH if check else ():
        given, trained = getattr(config, key), getattr(stored.backbone, key)
        if given != trained:
            raise ValueError(
                f"backbone.{key} is {given!r} here, and {file} was trained with {trained!r}; set it to that"
            )
    return file


def _postprocessor(config: PostprocessConfig) -> Postprocessor:
    return Postprocessor(
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        max_detections=config.max_detections,
        vote_iou=config.vote_iou,
        soft_nms_sigma=config.soft_nms_sigma,
    )


def _backbone(config: BackboneConfig, *, pretrained: bool) -> Backbone:
    features = pyramid_features(config.name) if config.fpn else ("c5",) if config.dilate_c5 else None
    body = build_plain_backbone(config, pretrained=pretrained, out_features=features)
    return FPN(body, channels=config.fpn_channels, norm=_norm(config.fpn_norm)) if config.fpn else body


def _norm(kind: Literal["bn", "gn", "sync_bn"] | None) -> NormLayer | None:
    return None if kind is None else make_norm(kind, eps=1e-5)


def _anchors(config: AnchorConfig, specs: Sequence[FeatureSpec], *, pyramid: bool) -> list[AnchorGenerator]:
    if pyramid and len(config.sizes) != len(specs):
        raise ValueError(f"anchors.sizes needs one size for each of the {len(specs)} levels, got {config.sizes}")
    dealt = [(size,) for size in config.sizes] if pyramid else [config.sizes]
    return [
        AnchorGenerator(spec.stride, sizes=sizes, ratios=config.ratios, offset=config.offset, rounded=config.rounded)
        for spec, sizes in zip(specs, dealt, strict=True)
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


def _box_stage(config: BoxConfig, backbone: Backbone, *, num_classes: int) -> BoxStage | CascadeBoxStage:
    if not config.cascade:
        return _one_stage(config, backbone, config.positive_iou, factor=1, num_classes=num_classes)
    stages = enumerate(config.cascade, start=1)
    return CascadeBoxStage(
        [_one_stage(config, backbone, iou, factor=factor, num_classes=num_classes) for factor, iou in stages]
    )


def _one_stage(
    config: BoxConfig, backbone: Backbone, positive_iou: float, *, factor: int, num_classes: int
) -> BoxStage:
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
            norm=_norm(config.head_norm),
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


def _mask_stage(
    config: Config, backbone: Backbone, box_stage: BoxStage | CascadeBoxStage, *, num_classes: int
) -> MaskStage:
    mask, spec = config.mask, list(backbone.specs.values())[-1]
    tail = box_stage.head if isinstance(box_stage, BoxStage) and isinstance(box_stage.head, Tail) else None
    pooler = RegionPooler(
        _pooled(backbone),
        tail.roi_size if tail else mask.pool_size,
        kind=config.box.pool,
        sampling_ratio=config.box.sampling_ratio,
    )
    head = MaskHead(
        tail.out_channels if tail else spec.channels,
        num_classes=num_classes,
        convs=0 if tail else mask.convs,
        channels=mask.channels,
        norm=_norm(mask.norm),
    )
    return MaskStage(pooler, head, loss_weight=mask.loss_weight)


def _pooled(backbone: Backbone) -> list[int]:
    """Strides of the features that regions are pooled from: all, but of a pyramid not p6, which only proposes."""
    strides = [spec.stride for spec in backbone.specs.values()]
    return strides[:-1] if isinstance(backbone, FPN) else strides
