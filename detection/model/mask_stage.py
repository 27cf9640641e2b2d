"""The mask branch: a small mask for every class, from the regions of the boxes that were found.

Source: Mask R-CNN (He et al. 2017), section 3.
Shapes: N images, C channels, R regions, P positive ones, K classes, S pooled size, M side of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.norm import NormLayer
from detection.mask_geometry import MaskGeometry, crop_and_resize
from detection.model.box_heads import conv_layers
from detection.model.box_stage import RegionSample
from detection.model.class_rows import ClassRows
from detection.model.pooler import RegionPooler
from detection.model.precision import at_least_single
from detection.structures import Detections, Target

__all__ = ["MaskHead", "MaskStage"]


class MaskHead(nn.Module):
    """3x3 convolutions, an upsampling by 2 and a mask for each class.

    Args:
        in_channels: C of the regions.
        num_classes: K.
        convs: number of convolutions.
        channels: of each and of the upsampling.
        norm: layer after every convolution; None for none.
    """

    def __init__(
        self, in_channels: int, *, num_classes: int, convs: int = 4, channels: int = 256, norm: NormLayer | None = None
    ) -> None:
        super().__init__()
        self.convs = conv_layers(in_channels, channels, convs, norm)
        self.upsample = nn.ConvTranspose2d(channels if convs else in_channels, channels, 2, stride=2)
        self.class_rows = {"masks": ClassRows(1)}
        self.masks = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.upsample, self.masks):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """Logits (R, K, M, M), M = 2 S, of regions (R, C, S, S)."""
        return self.masks(F.relu(self.upsample(self.convs(regions))))


class MaskStage(nn.Module):
    """Pool, head; given targets, the loss.

    Args:
        pooler: regions of the feature maps.
        head: logits of every class.
        geometry: of the training targets; masks must be pasted by the same.
    """

    def __init__(self, pooler: RegionPooler, head: MaskHead, *, geometry: MaskGeometry = "exact") -> None:
        super().__init__()
        self.pooler, self.head = pooler, head
        self.geometry: MaskGeometry = geometry

    def forward(
        self,
        features: Sequence[Tensor],
        detections: Sequence[Detections],
        body: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Detections]:
        """``detections`` of each image with their masks (R_i, M, M), probabilities of the detection's own class.

        ``body`` are layers that the regions (R, C, S, S) go through before the head: a tail shared with the boxes.
        """
        logits = self._logits(features, [image.boxes for image in detections], body)
        labels = torch.cat([image.labels for image in detections])
        masks = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        per_image = masks.split([len(image) for image in detections])
        return [replace(image, masks=own) for image, own in zip(detections, per_image, strict=True)]

    def losses(
        self,
        features: Sequence[Tensor],
        samples: Sequence[RegionSample],
        targets: Sequence[Target],
        body: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The loss ``mask`` of the positive regions among ``samples``: cross-entropy per pixel of the object's class.

        Regions of objects without a mask are left out.

        Raises:
            ValueError: a target without masks.
        """
        boxes, labels, objects = list[Tensor](), list[Tensor](), list[Tensor]()
        for sample, target in zip(samples, targets, strict=True):
            drawn = _masks(target).flatten(1).any(dim=1)[sample.objects].nonzero().flatten()
            boxes.append(sample.boxes[drawn])
            labels.append(sample.labels[drawn])
            objects.append(sample.objects[drawn])
        logits = self._logits(features, boxes, body)
        columns = torch.cat(labels)
        chosen = logits[torch.arange(len(columns), device=columns.device), columns]  # (P, M, M)
        goals = [
            crop_and_resize(_masks(target), image, logits.shape[-1], rows=rows, geometry=self.geometry)
            for target, image, rows in zip(targets, boxes, objects, strict=True)
        ]
        scale = 1 / max(chosen.numel(), 1)
        return {"mask": F.binary_cross_entropy_with_logits(chosen, torch.cat(goals), reduction="sum") * scale}

    def _logits(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], body: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        regions = self.pooler(features, boxes)
        return at_least_single(self.head(regions if body is None else body(regions)))


def _masks(target: Target) -> Tensor:
    if target.masks is None:
        raise ValueError("training masks needs a data set with masks: COCO's segmentation, or VOC's with 'instances'")
    return target.masks
