"""The keypoint branch: a heat map for every keypoint, from the regions of detected boxes.

Source: Mask R-CNN (He et al. 2017), section 5.
Shapes: N images, C channels, R regions of an image, D detections, J keypoints, S pooled size, M side of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.model.box_heads import conv_layers
from detection.model.box_stage import RegionSample, image_rows
from detection.model.heat_maps import cells_of, find_peaks
from detection.model.pooler import RegionPooler
from detection.model.precision import at_least_single
from detection.model.select import gather_rows
from detection.padded import Found, Targets

__all__ = ["KeypointHead", "KeypointStage"]


class KeypointHead(nn.Module):
    """3x3 convolutions, a learnt upsampling by 2 to a map for each keypoint and a bilinear one by 2.

    Args:
        in_channels: C of the regions.
        num_keypoints: J.
        convs: number of convolutions.
        channels: channels of each convolution.
    """

    def __init__(self, in_channels: int, *, num_keypoints: int, convs: int = 8, channels: int = 512) -> None:
        super().__init__()
        self.convs = conv_layers(in_channels, channels, convs, None)
        self.maps = nn.ConvTranspose2d(channels if convs else in_channels, num_keypoints, 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.maps.weight, mode="fan_out", nonlinearity="relu")
        assert self.maps.bias is not None
        nn.init.zeros_(self.maps.bias)

    @property
    def num_keypoints(self) -> int:
        """J."""
        return self.maps.out_channels

    def forward(self, regions: Tensor) -> Tensor:
        """Returns logits (R, J, M, M), M = 4 S, of regions (R, C, S, S)."""
        maps = self.maps(self.convs(regions))
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


class KeypointStage(nn.Module):
    """Pools regions and runs the head; given targets, returns the loss.

    Args:
        pooler: pools regions from the feature maps.
        head: logits of every keypoint.
    """

    def __init__(self, pooler: RegionPooler, head: KeypointHead) -> None:
        super().__init__()
        self.pooler, self.head = pooler, head

    def forward(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns ``found`` with keypoints (N, D, J, 3): x, y and score of the maxima of their maps."""
        keypoints = self._find(features, found.boxes.flatten(0, 1), image_rows(found.boxes))
        return replace(found, keypoints=keypoints.unflatten(0, found.labels.shape))

    def losses(self, features: Sequence[Tensor], sample: RegionSample, targets: Targets) -> dict[str, Tensor]:
        """Returns the loss ``keypoint`` of the positive regions of ``sample``: cross-entropy over M x M cells.

        It is the mean over the labelled keypoints that lie in their region, hidden ones too.

        Raises:
            ValueError: targets without keypoints, or with another number of them.
        """
        if targets.keypoints is None:
            raise ValueError("training keypoints needs a data set with keypoints, such as COCO's person_keypoints")
        if targets.keypoints.shape[2] != self.head.num_keypoints:
            raise ValueError(
                f"an object of the data set has {targets.keypoints.shape[2]} keypoints, the detector "
                f"{self.head.num_keypoints}; leave keypoint.names out, which takes those of the training set"
            )
        keypoints = gather_rows(targets.keypoints, sample.objects)  # (N, R, J, 3)
        # Padding is empty, and has no cells.
        boxes = torch.where(sample.positive[..., None], sample.boxes, sample.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        maps = self._maps(features, boxes.flatten(0, 1), image_rows(boxes))
        cells, learnt = cells_of(keypoints, boxes, maps.shape[-1])  # (N, R, J)
        weight = (learnt & sample.positive[..., None]).flatten()
        entropy = F.cross_entropy(maps.flatten(2).flatten(0, 1), cells.flatten(), reduction="none")
        return {"keypoint": (entropy * weight).sum() / weight.sum().clamp(min=1)}

    def _find(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Returns keypoints (R, J, 3) of each of ``boxes`` (R, 4) of the ``images`` (R,)."""
        height, width = features[0].shape[-2:]
        longest = max(height, width) * self.pooler.strides[0]  # of the padded images
        return find_peaks(self._maps(features, boxes, images), boxes, longest=longest)

    def _maps(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Returns logits (R, J, M, M) of each of ``boxes`` (R, 4) of the ``images`` (R,)."""
        return at_least_single(self.head(self.pooler(features, boxes, images)))
