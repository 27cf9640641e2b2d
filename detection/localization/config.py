"""The config of ImageNet localisation (``resdet localize``)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field

from detection.config.detection import AnchorConfig
from detection.config.schema import MODEL, Count, Fraction, NonNegative, Positive, checked
from detection.config.sections import ProgramConfig

__all__ = ["ClassRPNConfig", "LocalizationConfig", "LocalizerConfig", "RegionConfig"]


@checked
class LocalizerConfig:
    """Its networks, which share ``solver``, and its test.  Source: "Deep Residual Learning", appendix C."""

    crop: Count = 224  # side of the centre crop of a 1-crop test, and of a warped region, pixels
    crop_shorter_side: Count = 256  # shorter side of the image that the centre crop is cut from
    # Shorter sides of a dense test: section 3.4.
    scales: Annotated[tuple[Count, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)
    proposals: Count = 200  # per image and class
    rcnn_iterations: Count = 60000  # iterations of the R-CNN; those of the RPN are solver.iterations
    rcnn_steps: tuple[int, ...] = (40000,)  # iterations at which the learning rate is multiplied by solver.gamma
    classifier: str | None = None  # of a test: "torchvision", a file with its names, or a run of ``resdet pretrain``

    def __post_init__(self) -> None:
        if self.crop_shorter_side < self.crop:
            raise ValueError(f"crop_shorter_side {self.crop_shorter_side} must be at least the crop's side {self.crop}")
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales takes one or more rising shorter sides, got {list(self.scales)}")


@checked
class ClassRPNConfig:
    """Options of the RPN with outputs per class."""

    channels: Count = 512  # of the 3x3 convolution
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples_per_image: Count = 256
    positive_fraction: Fraction = 0.5
    allow_outside: bool = False  # train on anchors that cross the image border
    smooth_l1_beta: NonNegative = 1.0 / 9.0
    box_loss_weight: NonNegative = 1.0
    pre_nms_test: Count = 6000
    nms_iou: Fraction = 0.7
    min_size: NonNegative = 16.0  # pixels of the resized image


@checked
class RegionConfig:
    """Options of the R-CNN on warped regions."""

    positive_iou: Fraction = 0.5
    smooth_l1_beta: NonNegative = 1.0
    coder_weights: tuple[Positive, Positive, Positive, Positive] = field(default=(10.0, 10.0, 5.0, 5.0), metadata=MODEL)
    box_loss_weight: NonNegative = 1.0
    ignore_overlap: Fraction = 0.7  # an anchor with this share of its area inside an ignored object is not a negative


@checked
class LocalizationConfig(ProgramConfig):
    program: ClassVar[str] = "localization"
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: ClassRPNConfig = field(default_factory=ClassRPNConfig)
    box: RegionConfig = field(default_factory=RegionConfig)
    localization: LocalizerConfig = field(default_factory=LocalizerConfig)

    def __post_init__(self) -> None:
        if self.data.val:
            raise ValueError(
                f"data.val is {list(self.data.val)}, and localisation watches no set in training; leave it empty"
            )
