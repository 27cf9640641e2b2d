"""The config of classification training and testing (``resdet pretrain``)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from detection.config.schema import Count, NonNegative, checked
from detection.config.sections import ProgramConfig, SolverConfig

__all__ = ["ClassificationConfig", "ClassifierConfig", "ClassifierSolverConfig"]

MIXING = ("mixup", "cutmix", "manifold_mixup")


@checked
class ClassifierConfig:
    """The classifier and its test.  Source: "Deep Residual Learning", sections 3.4 and 4.2."""

    # Beside the usual one: spatial pyramid pooling, early exits, relay back-propagation.
    # The attention critic is for backbones with SE, CBAM or residual attention.
    network: Literal["classifier", "spp", "branchynet", "relay", "attention_critic"] = "classifier"
    # The stage that is pooled, those with an early exit, or the two of relay back-propagation; empty: the last of the
    # trunk, and the usual network has the tail after it.
    features: tuple[str, ...] = ()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0.1 in "Rethinking the Inception Architecture"
    mixup: NonNegative = 0.0  # alpha; 0.2 on ImageNet and 1 on CIFAR in its paper; 0: none
    cutmix: NonNegative = 0.0  # alpha; 1 in its paper; 0: none
    manifold_mixup: NonNegative = 0.0  # alpha; 2 in its paper; mixes the image or one of `features`; 0: none
    views: Literal["crop", "ten_crop", "dense"] = "crop"  # what a test is shown: the centre, ten crops, whole images
    crop: Count = 224  # side of a crop, pixels
    shorter_side: Count = 256  # of the image that crops are cut from
    # Shorter sides of the whole images.
    scales: Annotated[tuple[Count, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)

    def __post_init__(self) -> None:
        if self.crop > self.shorter_side:
            raise ValueError(f"crop must be at most shorter_side {self.shorter_side}, got {self.crop}")
        mixing = {name: alpha for name in MIXING if (alpha := getattr(self, name)) > 0}
        if len(mixing) > 1:
            raise ValueError(f"a batch is mixed in one way, got {mixing}; set all but one of them to 0")
        wanted = {"spp": (1, "the stage it pools, such as [c5]"), "relay": (2, "such as [c3, c4]")}
        count, example = wanted.get(self.network, (len(self.features), ""))
        if len(self.features) != count:
            raise ValueError(f"network {self.network} takes {count} of features, {example}; got {list(self.features)}")


@checked
class ClassifierSolverConfig(SolverConfig):
    best_metric: str | None = "classification.top1"


@checked
class ClassificationConfig(ProgramConfig):
    program: ClassVar[str] = "classification"
    classification: ClassifierConfig = field(default_factory=ClassifierConfig)
    solver: ClassifierSolverConfig = field(default_factory=ClassifierSolverConfig)
