"""From a config to a Detector: the only reader of config among the model code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from backbones.base import Backbone
from backbones.factory import build_backbone
from detection.config import BackboneConfig, BoxConfig, Config, PostprocessConfig, RPNConfig
from detection.inference.tester import Methods, Tester
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.detector import Detector
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN, ProposalFilter, RPNHead
from detection.model.sampler import BalancedSampler

__all__ = ["build_detector", "build_tester"]


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
    spec = list(backbone.specs.values())[-1]
    anchors = AnchorGenerator(
        spec.stride, sizes=config.anchors.sizes, ratios=config.anchors.ratios, offset=config.anchors.offset
    )
    head = RPNHead(spec.channels, channels=config.rpn.channels, num_anchors=anchors.num_anchors)
    rpn = _rpn(config.rpn, anchors, head, ignore_overlap=config.box.ignore_overlap)
    stage = _box_stage(config.box, backbone, stride=spec.stride, num_classes=num_classes)
    detector = Detector(backbone, rpn, stage, postprocess=_postprocessor(config.test), fixed=config.solver.fixed)
    return detector.to(memory_format=torch.channels_last)


def build_tester(config: PostprocessConfig, detectors: Sequence[Detector]) -> Tester:
    """The way to test that ``config`` describes, over one detector or an ensemble."""
    methods = Methods(refine=config.refine, scales=config.scales, flip=config.flip)
    return Tester(detectors, methods=methods, postprocess=_postprocessor(config))


def _postprocessor(config: PostprocessConfig) -> Postprocessor:
    return Postprocessor(
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        max_detections=config.max_detections,
        vote_iou=config.vote_iou,
    )


def _backbone(config: BackboneConfig, *, pretrained: bool) -> Backbone:
    options = asdict(config)
    name, weights, source = options.pop("name"), options.pop("weights"), options.pop("weights_source")
    return build_backbone(name, weights=weights, weights_source=source, load_weights=pretrained, **options)


def _rpn(config: RPNConfig, anchors: AnchorGenerator, head: RPNHead, *, ignore_overlap: float) -> RPN:
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


def _box_stage(config: BoxConfig, backbone: Backbone, *, stride: int, num_classes: int) -> BoxStage:
    tail = backbone.tail()
    return BoxStage(
        RegionPooler(stride, tail.roi_size, kind=config.pool, sampling_ratio=config.sampling_ratio),
        tail,
        BoxPredictor(tail.out_channels * (2 if config.context else 1), num_classes=num_classes),
        matcher=Matcher(
            config.positive_iou,
            config.positive_iou,
            negative_iou_low=config.negative_iou_low,
            ignore_overlap=config.ignore_overlap,
        ),
        sampler=BalancedSampler(config.samples_per_image, config.positive_fraction),
        coder=BoxCoder(config.coder_weights),
        context=config.context,
        smooth_l1_beta=config.smooth_l1_beta,
        box_loss_weight=config.box_loss_weight,
    )
