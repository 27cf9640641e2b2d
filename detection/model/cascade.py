"""Cascade R-CNN: box stages one after the other, each trained on the boxes of the one before at a higher IoU.

Source: Cai and Vasconcelos 2018, "Cascade R-CNN: Delving into High Quality Object Detection", section 4.
Shapes: N images, C channels, R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from detection.model.box_stage import BoxStage, RegionOutput, ScoredBoxes
from detection.structures import Proposals, Target

__all__ = ["CascadeBoxStage"]


class CascadeBoxStage(nn.Module):
    """Class-agnostic box stages that look at ever better boxes.

    Args:
        stages: in their order; the first samples, the others train on all boxes that they get.
    """

    def __init__(self, stages: Sequence[BoxStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    @property
    def num_classes(self) -> int:
        """K."""
        return self._stages()[0].num_classes

    def describe(self) -> str:
        """Returns the head of each stage and the size of the regions that it sees."""
        return f"{len(self.stages)} times {self._stages()[0].describe()}"

    def shared_body(self) -> None:
        """Returns None: every stage has a head of its own, and a mask stage too."""

    def forward(
        self, features: Sequence[Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[ScoredBoxes]:
        """Scores, averaged over the stages, and the last stage's boxes of each image's ``proposals``."""
        boxes, per_stage = [image.boxes for image in proposals], []
        for stage in self._stages():
            scored = stage.predict(stage.vectors(features, boxes, sizes), boxes, sizes)
            boxes = [image.boxes[:, 0] for image in scored]
            per_stage.append(scored)
        return [
            ScoredBoxes(torch.stack([image.scores for image in stages]).mean(dim=0), stages[-1].boxes)
            for stages in zip(*per_stage, strict=True)
        ]

    def outputs(
        self,
        features: Sequence[Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        draws: Sequence[torch.Generator | None] | None = None,
    ) -> Iterator[RegionOutput]:
        """Yields what every stage says of its regions: drawn for the first, moved by the one before for the others."""
        stages = self._stages()
        samples = stages[0].sample(proposals, targets, draws)
        for number, stage in enumerate(stages, start=1):
            boxes = [sample.boxes for sample in samples]
            # Every stage adds to the gradient of the features; the mean keeps its size.
            pooled = _scale_gradient(stage.pooler(features, boxes), 1 / len(stages))
            logits, deltas = stage.predictor(stage.head(pooled))
            yield RegionOutput(stage, samples, logits, deltas, suffix=f"_{number}")
            if number < len(stages):
                with torch.no_grad():
                    moved = [image.boxes[:, 0] for image in stage.decode(logits, deltas, boxes, sizes)]
                    usable = [image[((image[:, 2:] - image[:, :2]) > 0).all(dim=1)] for image in moved]
                    samples = stages[number].label(usable, targets)

    def _stages(self) -> list[BoxStage]:
        return [stage for stage in self.stages if isinstance(stage, BoxStage)]


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``factor``."""
    return x * factor + x.detach() * (1 - factor)
