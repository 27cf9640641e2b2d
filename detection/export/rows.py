"""Limits an exported graph to the rows that count: regions on their own level, masks and keypoints of detections.

The number of rows inside the graph then depends on the image, which every runtime supports; inputs and outputs keep
their shapes.  Counts are float32, as TensorRT's NonZero and CumSum require.

Shapes: N images, C channels, R regions of all images, D detections, S pooled size, M side of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from detection.model.box_stage import ScoredBoxes, image_rows
from detection.model.faster_rcnn import FasterRCNN
from detection.model.keypoint_stage import KeypointStage
from detection.model.mask_stage import MaskStage
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.padded import Found

__all__ = ["keep_counted_rows"]


def keep_counted_rows(model: nn.Module) -> None:
    """Replaces parts of ``model`` by parts that skip rows that do not count."""
    for module in model.modules():
        if isinstance(module, FasterRCNN):
            module.postprocess = _EveryPair(**asdict(module.postprocess))
        for name, part in module.named_children():
            if isinstance(part, RegionPooler):
                setattr(module, name, _pooler_of(part))
            elif isinstance(part, MaskStage):
                setattr(module, name, _DetectedMasks(_pooler_of(part.pooler), part.head, geometry=part.geometry))
            elif isinstance(part, KeypointStage):
                setattr(module, name, _DetectedKeypoints(_pooler_of(part.pooler), part.head))


def _pooler_of(pooler: RegionPooler) -> _OwnLevelPooler:
    return _OwnLevelPooler(pooler.strides, pooler.size, kind=pooler.kind, sampling_ratio=pooler.sampling_ratio)


class _OwnLevelPooler(RegionPooler):
    """Pools each region only from its own level."""

    def _pool(self, levels: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        if len(levels) == 1:
            return super()._pool(levels, boxes, images)
        regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
        level = self._levels(boxes)
        own = (level == torch.arange(len(levels), device=boxes.device)[:, None]).to(boxes.dtype)  # (L, R)
        parts = [
            self._operator(feature, regions[rows.nonzero()[:, 0]], 1 / stride)
            for feature, rows, stride in zip(levels, own, self.strides, strict=True)
        ]
        places = own.flatten().cumsum(0).view_as(own).gather(0, level[None])[0]  # counted from 1
        return torch.cat(parts)[places.long() - 1]


class _DetectedMasks(MaskStage):
    """Computes the masks of rows that are detections; the masks of other rows are 0."""

    def forward(
        self, features: Sequence[Tensor], found: Found, body: Callable[[Tensor], Tensor] | None = None
    ) -> Found:
        rows = _counted(found)
        boxes, labels = found.boxes.flatten(0, 1)[rows], found.labels.flatten()[rows]
        logits = self._logits(features, boxes, image_rows(found.boxes)[rows], labels, body)
        return replace(found, masks=_placed(logits.sigmoid(), rows, found))


class _DetectedKeypoints(KeypointStage):
    """Computes the keypoints of rows that are detections; the keypoints of other rows are 0.

    The first row is always computed, as OpenVINO 2026.4 cannot pool a batch of size 0.
    """

    def forward(self, features: Sequence[Tensor], found: Found) -> Found:
        rows = _counted(found)
        rows = torch.cat([rows, rows.new_zeros(1)])
        keypoints = self._find(features, found.boxes.flatten(0, 1)[rows], image_rows(found.boxes)[rows])
        keypoints = _placed(keypoints, rows, found)
        return replace(found, keypoints=torch.where(found.valid[..., None, None], keypoints, 0.0))


def _counted(found: Found) -> Tensor:
    """Returns the indices of the rows of all images that are detections."""
    return found.valid.flatten().to(found.boxes.dtype).nonzero()[:, 0]


def _placed(values: Tensor, rows: Tensor, found: Found) -> Tensor:
    """Scatters the ``values`` of ``rows`` into (N, D, ...); other rows are 0."""
    places = values.new_zeros(found.labels.numel(), *values.shape[1:])
    return places.index_put((rows,), values).unflatten(0, found.labels.shape)


@dataclass(frozen=True)
class _EveryPair(Postprocessor):
    """Keeps every region and class as a candidate in its order, as NMS skips those that do not count."""

    def _candidates(self, scored: ScoredBoxes) -> Found:
        scores = self._usable(scored)  # (N, P, K)
        labels = torch.arange(scores.shape[2], device=scores.device).expand(scores.shape)
        boxes = scored.boxes.expand(*scores.shape, 4)
        return Found(
            boxes=boxes.flatten(1, 2),
            valid=scores.flatten(1) > -torch.inf,
            scores=scores.flatten(1),
            labels=labels.flatten(1),
        )
