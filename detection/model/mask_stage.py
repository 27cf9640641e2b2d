"""The mask branch: a small mask for every class, from the regions of detected boxes.

Source: Mask R-CNN (He et al. 2017), section 3.
Shapes: N images, C channels, R regions of an image, D detections, K classes, S pooled size, M side of the masks.
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
from detection.model.box_stage import RegionSample, image_rows
from detection.model.class_rows import ClassRows
from detection.model.pooler import RegionPooler
from detection.model.precision import at_least_single
from detection.padded import Found, Targets

__all__ = ["MaskHead", "MaskStage"]


class MaskHead(nn.Module):
    """3x3 convolutions, an upsampling by 2 and a mask for each class.

    Args:
        in_channels: C of the regions.
        num_classes: K.
        convs: number of convolutions.
        channels: channels of each convolution and of the upsampling.
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
        """Returns logits (R, K, M, M), M = 2 S, of regions (R, C, S, S)."""
        return self.masks(F.relu(self.upsample(self.convs(regions))))


class MaskStage(nn.Module):
    """Pools regions and runs the head; given targets, returns the loss.

    Args:
        pooler: pools regions from the feature maps.
        head: logits of every class.
        geometry: mask geometry of the training targets; pasting must use the same.
    """

    def __init__(self, pooler: RegionPooler, head: MaskHead, *, geometry: MaskGeometry = "exact") -> None:
        super().__init__()
        self.pooler, self.head = pooler, head
        self.geometry: MaskGeometry = geometry

    def forward(
        self, features: Sequence[Tensor], found: Found, body: Callable[[Tensor], Tensor] | None = None
    ) -> Found:
        """Returns ``found`` with masks (N, D, M, M), probabilities of the detection's own class.

        ``body``, a tail shared with the boxes, runs on the regions (R, C, S, S) before the head.
        """
        boxes, labels = found.boxes, found.labels
        logits = self._logits(features, boxes.flatten(0, 1), image_rows(boxes), labels.flatten(), body)
        return replace(found, masks=logits.sigmoid().unflatten(0, labels.shape))

    def losses(
        self,
        features: Sequence[Tensor],
        sample: RegionSample,
        targets: Targets,
        body: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Returns the loss ``mask`` of positive regions of ``sample``: cross-entropy per pixel, of the object's class.

        Regions of objects without a mask do not count.

        Raises:
            ValueError: targets without masks.
        """
        if targets.masks is None or targets.mask_rows is None:
            raise ValueError(
                "training masks needs a data set with masks: COCO's segmentation, or VOC's with 'instances'"
            )
        rows = targets.mask_rows.gather(1, sample.objects)  # (N, R)
        counts = sample.positive & targets.masks.flatten(1).any(dim=1)[rows]
        labels, boxes = torch.where(sample.positive, sample.labels, 0), sample.boxes.flatten(0, 1)
        logits = self._logits(features, boxes, image_rows(sample.boxes), labels.flatten(), body)
        goals = crop_and_resize(targets.masks, boxes, logits.shape[-1], rows=rows.flatten(), geometry=self.geometry)
        weight = counts.flatten()[:, None, None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, goals, weight=weight, reduction="sum")
        return {"mask": loss / weight.sum().clamp(min=1)}

    def _logits(
        self,
        features: Sequence[Tensor],
        boxes: Tensor,
        images: Tensor,
        labels: Tensor,
        body: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Returns logits (R, M, M) of the class ``labels`` (R,) of each of ``boxes`` (R, 4) of the ``images`` (R,)."""
        regions = self.pooler(features, boxes, images)
        logits = at_least_single(self.head(regions if body is None else body(regions)))  # (R, K, M, M)
        side = logits.shape[-1]
        return logits.gather(1, labels[:, None, None, None].expand(-1, 1, side, side))[:, 0]
