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
    "Config",
    "DataConfig",
    "PostprocessConfig",
    "RPNConfig",
    "SolverConfig",
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network.  An option left at null takes the backbone's own default; one that it lacks is refused."""

    name: str = "resnet50"
    weights: str | None = None  # null: He initialisation; "torchvision": ImageNet, downloaded; or a file
    # What trained the file: binds mean, order, eps, stride.
    weights_source: Literal["torchvision", "caffe"] = "torchvision"
    norm: Literal["bn", "frozen_bn", "gn", "sync_bn"] | None = None  # the paper fixes BN: frozen_bn
    norm_eps: float | None = None
    # Which convolution of a bottleneck strides; MSRA 1x1, torchvision 3x3.
    stride_in: Literal["1x1", "3x3"] | None = None
    shortcut: Literal["A", "B", "C"] | None = None  # section 4.1, table 3
    freeze_at: int | None = None  # stages kept fixed, counted from the stem: 2 = conv1 and conv2_x
    tail_stride: Literal[1, 2] | None = None  # of conv5_x when it runs on regions
    roi_size: int | None = None  # side of the pooled region that the tail expects, cells
    dropout: float | None = None  # VGG's fc6 and fc7


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    # Square root of the area, pixels of the resized image; COCO adds 64.
    sizes: tuple[float, ...] = (128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    offset: float = 0.5  # of the centre in its cell: 0.5 = middle, as py-faster-rcnn; 0 = corner, as torchvision


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    channels: int = 512  # of the 3x3 convolution
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    samples_per_image: int = 256
    positive_fraction: float = 0.5
    allow_outside: bool = False  # train on anchors that cross the image border; the paper ignores them
    smooth_l1_beta: float = 1.0 / 9.0  # py-faster-rcnn's sigma 3
    # On a sum over positives / sampled anchors; the paper's lambda 10 / 2400 against 1 / 256.
    box_loss_weight: float = 1.0
    pre_nms_train: int = 12000
    pre_nms_test: int = 6000
    post_nms_train: int = 2000
    post_nms_test: int = 300
    nms_iou: float = 0.7
    min_size: float = 16.0  # pixels of the resized image; smaller proposals are dropped


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    pool: Literal["roi_pool", "roi_align"] = "roi_pool"
    sampling_ratio: int = 2  # RoIAlign: sampling points per cell and side
    samples_per_image: int = 64  # 2 images x 64 = the paper's mini-batch of 128 regions
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    negative_iou_low: float = 0.0  # the VOC papers have 0.1 (heuristic hard negatives); 0 on COCO
    smooth_l1_beta: float = 1.0
    coder_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)  # 1 / the deltas' standard deviations 0.1, 0.1, 0.2, 0.2
    box_loss_weight: float = 1.0
    context: bool = False  # append the whole image's vector to every region's: appendix B, global context
    # A region or anchor inside an ignored object by this share of its area is not a negative.
    ignore_overlap: float = 0.7


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    score_threshold: float = 0.05
    nms_iou: float = 0.3
    max_detections: int = 100  # per image
    vote_iou: float | None = None  # box voting among boxes of at least this IoU; the paper gives no value
    refine: bool = False  # a second pass from the boxes of the first: appendix B, box refinement
    scales: tuple[int, ...] = ()  # shorter sides, rising, that the box stage looks at: appendix B, 200 to 1000
    flip: bool = False  # average with the mirrored image

    def __post_init__(self) -> None:
        if len(self.scales) == 1 or list(self.scales) != sorted(set(self.scales)) or min(self.scales, default=1) < 1:
            raise ValueError(f"test.scales takes two or more rising shorter sides, or none, got {self.scales}")
        if self.vote_iou is not None and not 0 < self.vote_iou <= 1:
            raise ValueError(f"test.vote_iou is a fraction above 0 and at most 1, or null, got {self.vote_iou}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: tuple[str, ...] = ()  # "card:split", concatenated; a card is a name in datasets/ or a path to a YAML file
    test: tuple[str, ...] = ()
    root: str | None = None  # data root; null: $RESDET_DATA_ROOT, else datasets/
    shorter_side: int = 600  # pixels after resizing
    longer_side: int = 1000  # at most
    augment: tuple[dict[str, Any], ...] = ({"HorizontalFlip": {"p": 0.5}},)  # albumentations transforms, in order
    group_by_aspect: bool = True  # batches hold only upright or only lying images
    skip_empty: bool = True  # train only on images with at least one object that is not ignored
    workers: int = 2
    proposals: str | None = None  # file with the training set's proposals, for Fast R-CNN alone


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    iterations: int = 70000  # optimizer steps
    images_per_step: int = 2  # over all accumulated parts
    accumulate: int = 1  # parts that a step is computed in, one after the other
    base_lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not on biases and not on norm layers
    bias_lr_factor: float = 2.0  # Caffe's convention, as py-faster-rcnn
    schedule: Literal["multistep", "cosine"] = "multistep"
    steps: tuple[int, ...] = (50000,)  # multistep: iterations at which the rate is multiplied by gamma
    gamma: float = 0.1
    warmup_iterations: int = 0  # linear, from warmup_factor to 1
    warmup_factor: float = 0.001
    clip_norm: float | None = None  # of the whole gradient
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast
    checkpoint_every: int = 5000  # iterations; 0: only at the end
    keep_checkpoints: int = 2  # the newest k; the best one is kept beside them
    evaluate_every: int = 0  # iterations; 0: only at the end
    best_metric: str = "bbox.AP"  # a key of result.json
    log_every: int = 20  # iterations
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
class Config:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    test: PostprocessConfig = field(default_factory=PostprocessConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    alternating: AlternatingConfig = field(default_factory=AlternatingConfig)
    init: str | None = None  # a detector to start from: a checkpoint or a run directory
    init_classes: dict[str, str] = field(default_factory=dict)  # class here -> its name there, where they differ
    seed: int = 0  # of weights, shuffling, augmentation and sampling
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output_dir: str | None = None  # null: output/<folder>/<name of the config file>

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
