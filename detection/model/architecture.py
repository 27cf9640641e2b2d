"""The base of every architecture, and the rows that belong to its classes.

An architecture gives losses of images with targets, and a typed prediction of images without.  One that looks at
regions also has the verbs that test-time methods compose.  The table of architectures is in detection/build.py.

Shapes: N images, C channels, H W height and width, R regions, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, Self, overload, runtime_checkable

from torch import Tensor, nn

from backbones.base import Backbone
from detection.model.box_stage import ScoredBoxes
from detection.model.class_rows import ClassRows
from detection.model.normalize import Normalize
from detection.padded import Found, Regions, Targets
from detection.structures import Detections, ImageBatch, Target

__all__ = ["Architecture", "RegionVerbs", "class_rows"]


class Architecture(nn.Module, ABC):
    """A model for training and testing: the call decides which of the two it is.

    Args:
        backbone: the trunk, which also says how images are normalized and padded for it.

    Attributes:
        name: in messages; ``build_detector`` gives that of the config.
        fixed: names of the parts that are not trained.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalize = Normalize(backbone.input_stats, divisor=backbone.size_divisor)
        self.name, self.fixed = type(self).__name__, tuple[str, ...]()

    def fix(self, parts: Sequence[str]) -> None:
        """Takes ``parts``, such as "backbone", out of the training: no gradient, no loss, always eval mode.

        Raises:
            ValueError: a part that the model lacks.
        """
        children = dict(self.named_children())
        unknown = [name for name in parts if name not in children]
        if unknown:
            raise ValueError(f"{self.name} has no parts {unknown}; it has {sorted(children)}")
        self.fixed = tuple(parts)
        for name in parts:
            children[name].requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all parts but the fixed ones, whose statistics must not move."""
        super().train(mode)
        for name in self.fixed:
            self.get_submodule(name).eval()
        return self

    def features(self, images: ImageBatch) -> list[Tensor]:
        """Returns the trunk's feature maps (N, C, H / stride, W / stride), finest first."""
        return list(self.backbone(self.normalize(images)).values())

    @overload
    def forward(
        self, images: ImageBatch, targets: Targets | Sequence[Target], proposals: Regions | None = None
    ) -> dict[str, Tensor]: ...
    @overload
    def forward(
        self, images: ImageBatch, targets: None = None, proposals: Regions | None = None
    ) -> list[Detections]: ...
    @abstractmethod
    def forward(
        self,
        images: ImageBatch,
        targets: Targets | Sequence[Target] | None = None,
        proposals: Regions | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Returns scalar losses by name if there are targets, else what is detected in each image.

        ``proposals`` take the place of the model's own; one that has none refuses them.  All boxes are in pixels of
        ``images``.
        """

    @staticmethod
    def padded_targets(images: ImageBatch, targets: Targets | Sequence[Target]) -> Targets:
        """Returns ``targets`` padded to equally many objects of each image.

        Raises:
            ValueError: they are not as many as ``images``.
        """
        targets = targets if isinstance(targets, Targets) else Targets.pad(targets)
        if len(targets) != len(images):
            raise ValueError(f"{len(targets)} targets for {len(images)} images; give one for each")
        return targets

    @staticmethod
    def ragged(found: Found, images: ImageBatch) -> list[Detections]:
        """Returns what is detected in each of ``images`` without any padding; waits for a GPU."""
        detections = found.ragged()
        if found.label_scores is None:
            return detections
        return [
            replace(image, label_scores=image.label_scores[:, :height, :width])
            for image, (height, width) in zip(detections, images.size_list(), strict=True)
            if image.label_scores is not None
        ]

    @abstractmethod
    def head_modules(self) -> list[nn.Module]:
        """Returns the parts that stand on the backbone, for counts of parameters."""

    @abstractmethod
    def facts(self) -> Mapping[str, str]:
        """Returns what a reader of a comparison must know of it beside its backbone, by name."""


@runtime_checkable
class RegionVerbs(Protocol):
    """The steps of a test, which test-time methods compose; boxes are in pixels of the images of the features."""

    def features(self, images: ImageBatch) -> list[Tensor]:
        """Returns the trunk's feature maps (N, C, H / stride, W / stride), finest first."""
        ...

    def propose(self, features: Sequence[Tensor], images: ImageBatch) -> Regions:
        """Returns proposals of each image, best first."""
        ...

    def boxes(self, features: Sequence[Tensor], proposals: Regions, sizes: Tensor) -> ScoredBoxes:
        """Returns scores and boxes of every proposal, before thresholds and NMS, in images of ``sizes`` (N, 2)."""
        ...

    def masks(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns the detections with their masks; as they are from an architecture without."""
        ...

    def keypoints(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns the detections with their keypoints; as they are from an architecture without."""
        ...

    def label_scores(self, features: Sequence[Tensor], found: Found, images: ImageBatch) -> Found:
        """Returns the detections with scores of every pixel; as they are from an architecture without."""
        ...


def class_rows(model: nn.Module) -> dict[str, ClassRows]:
    """Returns which rows of the parameters belong to classes, by the names of the parameters.

    The layers say so themselves, in an attribute ``class_rows``: name of a layer below -> its rows.
    """
    found = {}
    for name, module in model.named_modules():
        for layer, rows in getattr(module, "class_rows", {}).items():
            path = f"{name}.{layer}" if name else layer
            found |= {f"{path}.{parameter}": rows for parameter, _ in model.get_submodule(path).named_parameters()}
    return found
