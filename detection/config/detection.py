"""Every option of a run, with its unit and its source.  The dataclasses are the schema of the YAML files in configs/.

Defaults are the paper's where it states them (He et al. 2015, "Deep Residual Learning", appendix A, and Ren et al.
2017, "Faster R-CNN"); docs/configuration.md lists what the papers leave open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "AlternatingConfig",
    "AnchorConfig",
    "BackboneConfig",
    "BoxConfig",
    "ClassificationConfig",
    "Config",
    "DataConfig",
    "JitterConfig",
    "LocalizationConfig",
    "MaskConfig",
    "PostprocessConfig",
    "RPNConfig",
    "SolverConfig",
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network.  An option left at null takes the backbone's own default; one that it lacks is refused."""

    name: str = "resnet50"
    weights: str | None = (
        None  # null: He initialisation; "torchvision" or "timm": downloaded; a file; a run's directory
    )
    # What trained the file: binds mean, order, eps, stride.
    weights_source: Literal["torchvision", "caffe", "msra"] = "torchvision"
    norm: Literal["bn", "frozen_bn", "gn", "sync_bn"] | None = None  # the paper fixes BN: frozen_bn
    norm_eps: float | None = None
    # Which convolution of a bottleneck strides; MSRA 1x1, torchvision 3x3.
    stride_in: Literal["1x1", "3x3"] | None = None
    shortcut: Literal["A", "B", "C"] | None = None  # section 4.1, table 3
    activation: Literal["relu", "prelu"] | None = None  # of residual networks; prelu: "Delving Deep into Rectifiers"
    stochastic_depth: float | None = None  # probability that a step skips the last residual branch; 0.5 in its paper
    freeze_at: int | None = None  # stages kept fixed, counted from the stem: 2 = conv1 and conv2_x
    tail_stride: Literal[1, 2] | None = None  # of conv5_x when it runs on regions
    dilate_c5: bool | None = None  # conv5_x in the trunk at stride 16 ("DC5"); box.head is then fc
    roi_size: int | None = None  # side of the pooled region that the tail expects, cells
    dropout: float | None = None  # VGG's fc6 and fc7
    fpn: bool = False  # a feature pyramid over the stages; box.head is then fc
    fpn_channels: int = 256
    fpn_norm: Literal["bn", "gn", "sync_bn"] | None = None  # after the pyramid's convolutions; null: none


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    # Square root of the area, pixels of the resized image; COCO adds 64. With backbone.fpn one per level, p2 to p6.
    sizes: tuple[float, ...] = (128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    offset: float = 0.5  # of the centre in its cell: 0.5 = middle, as py-faster-rcnn; 0 = corner, as torchvision
    rounded: bool = False  # to whole pixels, as torchvision


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    channels: int = 512  # of the 3x3 convolution
    convs: int = 1  # 3x3 convolutions
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    samples_per_image: int = 256
    positive_fraction: float = 0.5
    allow_outside: bool = False  # train on anchors that cross the image border; the paper ignores them
    smooth_l1_beta: float = 1.0 / 9.0  # py-faster-rcnn's sigma 3
    # On a sum over positives / sampled anchors; the paper's lambda 10 / 2400 against 1 / 256.
    box_loss_weight: float = 1.0
    pre_nms_train: int = 12000  # of each level of a pyramid
    pre_nms_test: int = 6000
    post_nms_train: int = 2000
    post_nms_test: int = 300
    nms_iou: float = 0.7
    min_size: float = 16.0  # pixels of the resized image; smaller proposals are dropped


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    # roi_align_unaligned is off by half a cell, as torchvision's detectors.
    pool: Literal["roi_pool", "roi_align", "roi_align_unaligned"] = "roi_pool"
    sampling_ratio: int = 2  # RoIAlign: sampling points per cell and side; 0: one per cell of the feature map
    head: Literal["tail", "fc"] = "tail"  # the backbone's layers after the trunk, or fully connected ones
    pool_size: int = 7  # side of the pooled regions; head fc only, a tail knows its own
    head_convs: int = 0  # 3x3 convolutions of 256 channels before the fully connected layers; head fc only
    head_fcs: int = 2
    head_channels: int = 1024
    head_norm: Literal["bn", "gn", "sync_bn"] | None = None  # after the convolutions
    class_agnostic: bool = False  # one box per region instead of one per class
    cascade: tuple[float, ...] = ()  # IoUs of the stages of a Cascade R-CNN, such as [0.5, 0.6, 0.7]; empty: one stage
    samples_per_image: int = 64  # 2 images x 64 = the paper's mini-batch of 128 regions
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    negative_iou_low: float = 0.0  # the VOC papers have 0.1 (heuristic hard negatives); 0 on COCO
    loss: Literal["smooth_l1", "giou"] = "smooth_l1"  # of the boxes
    smooth_l1_beta: float = 1.0  # 0 is L1
    # 1 / the deltas' standard deviations 0.1, 0.1, 0.2, 0.2; stage i of a cascade takes i times as much.
    coder_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    box_loss_weight: float = 1.0
    context: bool = False  # append the whole image's vector to every region's: appendix B, global context
    # A region or anchor inside an ignored object by this share of its area is not a negative.
    ignore_overlap: float = 0.7

    def __post_init__(self) -> None:
        if self.cascade and (self.head != "fc" or not self.class_agnostic or self.context):
            raise ValueError(
                "box.cascade moves one box per region from stage to stage: set box.head to fc, "
                "box.class_agnostic to true and box.context to false"
            )
        if self.head_fcs < 1:
            raise ValueError(f"box.head_fcs must be at least 1, got {self.head_fcs}")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """The mask branch; over box.head tail it shares the tail and has no convolutions.

    Source: Mask R-CNN, section 3 and figure 4.
    """

    enabled: bool = False
    pool_size: int = 14  # side of the pooled regions; a shared tail knows its own
    convs: int = 4  # 3x3 convolutions before the upsampling
    channels: int = 256
    norm: Literal["bn", "gn", "sync_bn"] | None = None  # after the convolutions
    loss_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    score_threshold: float = 0.05
    nms_iou: float = 0.3
    max_detections: int = 100  # per image
    # Soft-NMS instead of NMS: a box's score falls by exp(-IoU^2 / sigma) with every better box of its class.
    soft_nms_sigma: float | None = None
    vote_iou: float | None = None  # box voting among boxes of at least this IoU; the paper gives no value
    refine: bool = False  # a second pass from the boxes of the first: appendix B, box refinement
    scales: tuple[int, ...] = ()  # shorter sides, rising, that the box stage looks at: appendix B, 200 to 1000
    flip: bool = False  # average with the mirrored image

    def __post_init__(self) -> None:
        if len(self.scales) == 1 or list(self.scales) != sorted(set(self.scales)) or min(self.scales, default=1) < 1:
            raise ValueError(f"test.scales takes two or more rising shorter sides, or none, got {self.scales}")
        if self.soft_nms_sigma is not None and not self.soft_nms_sigma > 0:
            raise ValueError(f"test.soft_nms_sigma is positive, or null for plain NMS, got {self.soft_nms_sigma}")
        if self.vote_iou is not None and not 0 < self.vote_iou <= 1:
            raise ValueError(f"test.vote_iou is a fraction above 0 and at most 1, or null, got {self.vote_iou}")


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Large-scale jitter.  Source: Ghiasi et al. 2021, "Simple Copy-Paste", section 3."""

    size: int = 1024  # side of the square canvas, pixels
    low: float = 0.1  # the image is made to fit a square of low to high times the canvas
    high: float = 2.0

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.low <= self.high:
            raise ValueError(
                "data.jitter takes a size of at least 1 and 0 < low <= high, "
                f"got size {self.size}, low {self.low}, high {self.high}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: tuple[str, ...] = ()  # "card:split", concatenated; a card is a name in datasets/ or a path to a YAML file
    test: tuple[str, ...] = ()
    root: str | None = None  # data root; null: $RESDET_DATA_ROOT, else datasets/
    shorter_side: int = 600  # pixels after resizing
    longer_side: int = 1000  # at most
    train_shorter_sides: tuple[int, ...] = ()  # one is drawn for every training image; empty: shorter_side
    jitter: JitterConfig | None = None  # of training images, instead of both
    augment: tuple[dict[str, Any], ...] = ({"HorizontalFlip": {"p": 0.5}},)  # albumentations transforms, in order
    copy_paste: float = 0.0  # probability that objects of another training image are pasted; needs masks
    group_by_aspect: bool = True  # batches hold only upright or only lying images
    limit: int | None = None  # only the first images of each set: to see whether a model learns a few by heart
    skip_empty: bool = True  # train only on images with at least one object that is not ignored
    # Images with a class that fewer than this share of the images has come several times a pass (LVIS: 0.001); 0: off.
    repeat_threshold: float = 0.0
    workers: int = 2
    proposals: str | None = None  # file with the training set's proposals, for Fast R-CNN alone

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is at least 1, or null for all images, got {self.limit}")
        if min(self.train_shorter_sides, default=1) < 1:
            raise ValueError(f"data.train_shorter_sides must be at least 1, got {self.train_shorter_sides}")
        if self.jitter is not None and self.train_shorter_sides:
            raise ValueError("data.jitter draws the scale itself: leave data.train_shorter_sides empty, or jitter null")
        for name in ("copy_paste", "repeat_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} is a fraction from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    iterations: int = 70000  # optimizer steps
    images_per_step: int = 2  # over all accumulated parts
    accumulate: int = 1  # parts that a step is computed in, one after the other
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: float = 1e-3
    momentum: float = 0.9  # of SGD; AdamW has torch's betas
    weight_decay: float = 5e-4  # not on biases, norm layers and PReLU's slopes
    bias_lr_factor: float = 2.0  # Caffe's convention, as py-faster-rcnn
    schedule: Literal["multistep", "cosine"] = "multistep"
    steps: tuple[int, ...] = (50000,)  # multistep: iterations at which the rate is multiplied by gamma
    gamma: float = 0.1
    warmup_iterations: int = 0  # linear, from warmup_factor to 1
    warmup_factor: float = 0.001
    clip_norm: float | None = None  # of the whole gradient
    ema_decay: float = 0.0  # of the averaged weights, which are tested and saved (engine/ema.py); 0: none
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast
    checkpoint_every: int = 5000  # iterations; 0: only at the end
    keep_checkpoints: int = 2  # the newest k; the best one is kept beside them
    evaluate_every: int = 0  # iterations; 0: only at the end
    best_metric: str = "bbox.AP"  # a key of result.json
    log_every: int = 20  # iterations
    # Where a loss or gradient is not finite: stop; skip the step; or skip it from the newest checkpoint's weights.
    on_not_finite: Literal["stop", "skip", "roll_back"] = "stop"
    max_not_finite: int = 10  # steps that may be skipped in the whole run
    # Parts that keep their weights and statistics and have no loss; ["box_stage"] trains an RPN alone.
    fixed: tuple[Literal["backbone", "rpn", "box_stage"], ...] = ()

    def __post_init__(self) -> None:
        for name in ("iterations", "images_per_step", "accumulate", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"solver.{name} must be at least 1, got {getattr(self, name)}")
        if self.images_per_step % self.accumulate:
            raise ValueError(
                f"solver.images_per_step {self.images_per_step} must be a multiple of accumulate {self.accumulate}"
            )
        if not self.base_lr > 0:
            raise ValueError(f"solver.base_lr must be positive, got {self.base_lr}")
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"solver.steps must rise, got {self.steps}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"solver.ema_decay is at least 0 and below 1, such as 0.9998, got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class AlternatingConfig:
    """4-step alternating training: the lengths of its steps.  Source: Faster R-CNN, section 3.2."""

    rpn_iterations: int = 80000  # steps 1 and 3
    rpn_steps: tuple[int, ...] = (60000,)  # where the rate is multiplied by solver.gamma
    box_iterations: int = 40000  # steps 2 and 4, as py-faster-rcnn
    box_steps: tuple[int, ...] = (30000,)
    rpn_images_per_step: int | None = None  # null: solver.images_per_step
    box_images_per_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class LocalizationConfig:
    """ImageNet localisation; ``solver`` holds for both networks.  Source: "Deep Residual Learning", appendix C."""

    crop: int = 224  # side of the centre crop of a 1-crop test, and of a warped region, pixels
    crop_shorter_side: int = 256  # of the image that the centre crop is cut from
    scales: tuple[int, ...] = (224, 256, 384, 480, 640)  # shorter sides of a dense test: section 3.4
    proposals: int = 200  # per image and class
    rcnn_iterations: int = 60000  # optimizer steps; the RPN's are solver.iterations
    rcnn_steps: tuple[int, ...] = (40000,)  # where the rate is multiplied by solver.gamma
    classifier: str | None = None  # of a test: "torchvision", a file with its names, or a run of resdet pretrain

    def __post_init__(self) -> None:
        for name in ("crop", "proposals", "rcnn_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"localization.{name} must be at least 1, got {getattr(self, name)}")
        if self.crop_shorter_side < self.crop:
            raise ValueError(
                f"localization.crop_shorter_side {self.crop_shorter_side} must be at least the crop's side {self.crop}"
            )
        if list(self.scales) != sorted(set(self.scales)) or min(self.scales, default=0) < 1:
            raise ValueError(f"localization.scales takes one or more rising shorter sides, got {self.scales}")


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Classification training (resdet pretrain).  Source: "Deep Residual Learning", sections 3.4 and 4.2."""

    # Beside the usual one: spatial pyramid pooling, early exits, relay back-propagation.
    network: Literal["classifier", "spp", "branchynet", "relay"] = "classifier"
    # The stage that is pooled, those with an early exit, or the two of relay back-propagation; empty: the last of the
    # trunk, and the usual network has the tail after it.
    features: tuple[str, ...] = ()
    label_smoothing: float = 0.0  # 0.1 in "Rethinking the Inception Architecture"
    mixup: float = 0.0  # alpha; 0.2 on ImageNet and 1 on CIFAR in its paper; 0: none
    views: Literal["crop", "ten_crop", "dense"] = "crop"  # what a test is shown: the centre, ten crops, whole images
    crop: int = 224  # side of a crop, pixels
    shorter_side: int = 256  # of the image that crops are cut from
    scales: tuple[int, ...] = (224, 256, 384, 480, 640)  # shorter sides of the whole images

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.shorter_side:
            raise ValueError(
                f"classification.crop must be at least 1 and at most shorter_side {self.shorter_side}, got {self.crop}"
            )
        if not 0 <= self.label_smoothing < 1 or self.mixup < 0:
            raise ValueError(
                "classification takes a label_smoothing from 0 to below 1 and a mixup of at least 0, "
                f"got {self.label_smoothing} and {self.mixup}"
            )
        if self.network == "spp" and len(self.features) != 1:
            raise ValueError(
                "classification.network spp takes one of classification.features, the stage it pools, such as [c5]; "
                f"got {self.features}"
            )
        if self.network == "relay" and len(self.features) != 2:
            raise ValueError(
                f"classification.network relay takes two classification.features, such as [c3, c4], got {self.features}"
            )
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"classification.scales takes one or more shorter sides, got {self.scales}")


@dataclass(frozen=True, kw_only=True)
class Config:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    test: PostprocessConfig = field(default_factory=PostprocessConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    alternating: AlternatingConfig = field(default_factory=AlternatingConfig)
    localization: LocalizationConfig = field(default_factory=LocalizationConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    init: str | None = None  # a detector to start from: a checkpoint or a run directory
    init_classes: dict[str, str] = field(default_factory=dict)  # class here -> its name there, where they differ
    seed: int = 0  # of weights, shuffling, augmentation and sampling
    deterministic: bool = False  # the same run twice on the same machine, at some cost: docs/reliability.md
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output_dir: str | None = None  # null: output/<folder>/<name of the config file>

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
