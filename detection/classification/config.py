"""The config of classification training and testing (``resdet pretrain``)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from detection.config.schema import MODEL, Count, Fraction, NonNegative, checked
from detection.config.sections import ProgramConfig, SolverConfig

__all__ = ["ClassificationConfig", "ClassifierConfig", "ClassifierSolverConfig"]

MIXING = ("mixup", "cutmix", "manifold_mixup")


@checked
class ClassifierConfig:
    """The classifier and its test.  Source: "Deep Residual Learning", sections 3.4 and 4.2."""

    # Head: the usual one, spatial pyramid pooling, early exits, or relay back-propagation. A network of timm or
    # torchvision keeps its own head if this is "classifier".
    # The attention critic is for backbones with SE, CBAM or residual attention.
    network: Literal["classifier", "spp", "branchynet", "relay", "attention_critic"] = "classifier"
    # The stage that is pooled, those with an early exit, or the two of relay back-propagation; empty: the last of the
    # trunk, and the usual network has the tail after it.
    features: tuple[str, ...] = ()
    # Of branchynet, entropy in nats below which an image leaves: one for all exits, or one each, from the first on.
    # 0.3 is the paper's first of ResNet-110 on CIFAR-10; a test of a run shows accuracy against cost for others.
    exit_thresholds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (0.3,)
    # Weight of the losses of auxiliary classifiers in torchvision's GoogLeNet and Inception-v3; 0: without them.
    auxiliary_weight: NonNegative = 0.3  # "Going Deeper with Convolutions", section 5
    # Images have any number of classes, such as tags: those of all their objects. The metric is tags.F2 of result.json.
    tags: bool = False
    # softmax: cross-entropy, where the classes of an image share the probability evenly; sigmoid: binary cross-entropy,
    # each class by itself. Probabilities are the function's.
    loss: Literal["softmax", "sigmoid"] = field(default="softmax", metadata=MODEL)
    tag_threshold: Fraction = 0.2  # threshold of every class if there is no data.val to choose it on
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0.1 in "Rethinking the Inception Architecture"
    mixup: NonNegative = 0.0  # alpha; 0.2 on ImageNet and 1 on CIFAR in its paper; 0: none
    cutmix: NonNegative = 0.0  # alpha; 1 in its paper; 0: none
    manifold_mixup: NonNegative = 0.0  # alpha; 2 in its paper; mixes the image or one of `features`; 0: none
    views: Literal["crop", "ten_crop", "dense"] = "crop"  # views in a test: central crop, ten crops, whole images
    crop: Count = 224  # side of a crop, pixels
    shorter_side: Count = 256  # shorter side of the image that crops are cut from
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
        exits = len(self.exit_thresholds)
        if exits > 1 and exits != len(self.features):
            raise ValueError(
                f"exit_thresholds {list(self.exit_thresholds)} takes one number, or one for each of features "
                f"{list(self.features)}"
            )


@checked
class ClassifierSolverConfig(SolverConfig):
    best_metric: str | None = "classification.top1"


@checked
class ClassificationConfig(ProgramConfig):
    program: ClassVar[str] = "classification"
    classification: ClassifierConfig = field(default_factory=ClassifierConfig)
    solver: ClassifierSolverConfig = field(default_factory=ClassifierSolverConfig)
