"""The base class of all architectures, and the parameter rows that belong to classes.

An architecture returns losses for images with targets, and typed predictions for images without.  A region-based one
also has the steps that test-time methods compose.  The table of architectures is in detection/build.py.

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
    """A model for training and testing; the arguments of the call decide which.

    Args:
        backbone: the trunk, which also determines how images are normalized and padded.

    Attributes:
        name: used in messages; ``build_detector`` sets it to the config's.
        fixed: names of the parts that are not trained.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalize = Normalize(backbone.input_stats, divisor=backbone.size_divisor)
        self.name, self.fixed = type(self).__name__, tuple[str, ...]()

    def fix(self, parts: Sequence[str]) -> None:
        """Freezes ``parts``, such as "backbone": no gradient, no loss, always eval mode.

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
        """Returns scalar losses by name if there are targets, else the detections of each image.

        ``proposals`` replace the model's own; a model without proposals raises ValueError.  All boxes are in pixels of
        ``images``.
        """

    @staticmethod
    def padded_targets(images: ImageBatch, targets: Targets | Sequence[Target]) -> Targets:
        """Returns ``targets`` padded to the same number of objects per image.

        Raises:
            ValueError: their number is not that of ``images``.
        """
        targets = targets if isinstance(targets, Targets) else Targets.pad(targets)
        if len(targets) != len(images):
            raise ValueError(f"{len(targets)} targets for {len(images)} images; give one for each")
        return targets

    @staticmethod
    def ragged(found: Found, images: ImageBatch) -> list[Detections]:
        """Returns the detections of each of ``images`` without padding; waits for a GPU."""
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
        """Returns the parts after the backbone, for parameter counts."""

    @abstractmethod
    def facts(self) -> Mapping[str, str]:
        """Returns the facts, by name, that a comparison lists besides the backbone."""


@runtime_checkable
class RegionVerbs(Protocol):
    """The steps of a test, which test-time methods compose; boxes are in pixels of the images given to ``features``."""

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
        """Returns the detections with their masks; unchanged if the architecture has none."""
        ...

    def keypoints(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns the detections with their keypoints; unchanged if the architecture has none."""
        ...

    def label_scores(self, features: Sequence[Tensor], found: Found, images: ImageBatch) -> Found:
        """Returns the detections with scores of every pixel; unchanged if the architecture has none."""
        ...


def class_rows(model: nn.Module) -> dict[str, ClassRows]:
    """Returns the class rows of parameters, by parameter name.

    Layers declare them in an attribute ``class_rows``: name of a sublayer -> its rows.
    """
    found = {}
    for name, module in model.named_modules():
        for layer, rows in getattr(module, "class_rows", {}).items():
            path = f"{name}.{layer}" if name else layer
            found |= {f"{path}.{parameter}": rows for parameter, _ in model.get_submodule(path).named_parameters()}
    return found
