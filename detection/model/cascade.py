"""Cascade R-CNN: box stages one after the other, each trained on the boxes of the one before at a higher IoU.

Source: Cai and Vasconcelos 2018, "Cascade R-CNN: Delving into High Quality Object Detection", section 4.
Shapes: N images, C channels, R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from detection.boxes import not_empty
from detection.model.box_stage import BoxStage, RegionOutput, ScoredBoxes, image_rows
from detection.padded import Regions, Targets

__all__ = ["CascadeBoxStage"]


class CascadeBoxStage(nn.Module):
    """Class-agnostic box stages, each on the refined boxes of the one before.

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
        """Returns None: every stage, the mask stage included, has its own head."""

    @property
    def most_positives(self) -> int:
        """The most regions of an image that the first stage can sample as positive; they come first."""
        return self._stages()[0].most_positives

    def forward(self, features: Sequence[Tensor], proposals: Regions, sizes: Tensor) -> ScoredBoxes:
        """Returns scores, averaged over the stages, and the last stage's boxes of ``proposals``."""
        boxes = proposals.boxes
        scored: list[ScoredBoxes] = []
        for stage in self._stages():
            logits, deltas = stage.predictor(stage.batch_vectors(features, boxes, sizes))
            scored.append(stage.decode(logits, deltas, boxes, proposals.valid, sizes))
            boxes = scored[-1].boxes[:, :, 0]
        return ScoredBoxes(
            torch.stack([stage.scores for stage in scored]).mean(dim=0), scored[-1].boxes, proposals.valid
        )

    def outputs(
        self, features: Sequence[Tensor], proposals: Regions, targets: Targets, sizes: Tensor, seeds: Tensor
    ) -> Iterator[RegionOutput]:
        """Yields every stage's output for its regions: sampled for the first, refined by the one before for others."""
        stages = self._stages()
        sample = stages[0].draw(proposals, targets, seeds)
        for number, stage in enumerate(stages, start=1):
            # Every stage adds to the gradient of the features; the mean keeps its size.
            regions = stage.pooler(features, sample.boxes.flatten(0, 1), image_rows(sample.boxes))
            vectors = stage.head(_scale_gradient(regions, 1 / len(stages))).unflatten(0, sample.boxes.shape[:2])
            logits, deltas = stage.predictor(vectors)
            yield RegionOutput(stage, sample, logits, deltas, suffix=f"_{number}")
            if number < len(stages):
                with torch.no_grad():
                    moved = stage.decode(logits, deltas, sample.boxes, sample.valid, sizes).boxes[:, :, 0]
                    sample = stages[number].label(moved, sample.valid & not_empty(moved), targets)

    def _stages(self) -> list[BoxStage]:
        return [stage for stage in self.stages if isinstance(stage, BoxStage)]


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Returns ``x``, whose gradient is multiplied by ``factor``."""
    return x * factor + x.detach() * (1 - factor)
