"""PointRend: a coarse mask of every region, and its outline refined point by point.

Source: "PointRend: Image Segmentation as Rendering" (Kirillov et al. 2020), sections 3 and 4; what the paper leaves
open as in Detectron2's projects/PointRend.
Shapes: N images, C channels, R regions of an image, D detections, K classes, P points, S side of the pooled regions,
M of the coarse masks, T of the final ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.mask_geometry import MaskGeometry, crop_and_resize
from detection.model.box_stage import RegionSample
from detection.model.class_rows import ClassRows
from detection.model.points import drawn_points, grid_points, on_image, sample_features, sample_masks, sample_regions
from detection.model.precision import at_least_single
from detection.padded import Found, Targets

__all__ = ["CoarseHead", "PointHead", "PointSettings", "PointStage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSettings:
    """The settings of point sampling.

    Attributes:
        train_points: points of a region that a step trains on.
        oversample: factor by which more points are sampled, of which the most uncertain are kept.
        importance: share of the points chosen by uncertainty; the others are uniform.
        steps: doublings of the coarse mask's side in a test.
        test_points: the most uncertain points of a detection that each of these doublings predicts.
    """

    train_points: int = 14 * 14
    oversample: int = 3
    importance: float = 0.75
    steps: int = 5
    test_points: int = 28 * 28


class CoarseHead(nn.Module):
    """Convolutions that make a region narrower and half as large, then fully connected layers.

    Args:
        in_channels: C of the regions.
        num_classes: K.
        pool_size: S, even.
        side: M.
        channels: of the convolutions.
        fcs: number of fully connected layers before the masks.
        fc_channels: of each.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        pool_size: int = 14,
        side: int = 7,
        channels: int = 256,
        fcs: int = 2,
        fc_channels: int = 1024,
    ) -> None:
        super().__init__()
        self.pool_size, self.side, self.num_classes = pool_size, side, num_classes
        narrow = in_channels > channels
        self.narrow = nn.Sequential(*([nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True)] if narrow else []))
        entering = channels if narrow else in_channels
        self.shrink = nn.Sequential(nn.Conv2d(entering, channels, 2, stride=2), nn.ReLU(inplace=True))
        layers, width = list[nn.Module](), channels * (pool_size // 2) ** 2
        for _ in range(fcs):
            layers += [nn.Linear(width, fc_channels), nn.ReLU(inplace=True)]
            width = fc_channels
        self.fcs = nn.Sequential(*layers)
        self.class_rows = {"masks": ClassRows(side**2)}
        self.masks = nn.Linear(width, num_classes * side**2)
        _start(self.narrow, self.shrink, last=self.masks)

    def forward(self, regions: Tensor) -> Tensor:
        """Returns logits (R, K, M, M) of regions (R, C, S, S)."""
        vectors = self.fcs(self.shrink(self.narrow(regions)).flatten(1))
        return self.masks(vectors).unflatten(1, (self.num_classes, self.side, self.side))


class PointHead(nn.Module):
    """Layers that see every point alone; each also gets the coarse logits.

    Args:
        in_channels: C of the features at a point.
        num_classes: K.
        layers: number of layers before the logits.
        channels: of each.
    """

    def __init__(self, in_channels: int, *, num_classes: int, layers: int = 3, channels: int = 256) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * layers]
        self.layers = nn.ModuleList(nn.Conv1d(width + num_classes, channels, 1) for width in widths[:-1])
        self.class_rows = {"masks": ClassRows(1)}
        self.masks = nn.Conv1d(widths[-1] + num_classes, num_classes, 1)
        _start(self.layers, last=self.masks)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Returns logits (R, K, P) of the features (R, C, P) and the coarse logits (R, K, P) at points."""
        x = torch.cat([fine, coarse], dim=1)
        for layer in self.layers:
            x = torch.cat([F.relu(layer(x)), coarse], dim=1)
        return self.masks(x)


class PointStage(nn.Module):
    """Coarse masks and points of the finest feature map; given targets, the losses.

    Args:
        coarse: head of the coarse masks.
        points: head of the points.
        stride: pixels of the image per cell of the feature map.
        settings: settings of point sampling.
        geometry: mask geometry of the coarse targets; pasting must use the same.
    """

    def __init__(
        self,
        coarse: CoarseHead,
        points: PointHead,
        *,
        stride: int,
        settings: PointSettings,
        geometry: MaskGeometry = "exact",
    ) -> None:
        super().__init__()
        self.coarse, self.points = coarse, points
        self.stride, self.settings = stride, settings
        self.geometry: MaskGeometry = geometry

    @property
    def side(self) -> int:
        """T."""
        return self.coarse.side * 2**self.settings.steps

    def forward(self, features: Sequence[Tensor], found: Found) -> Found:
        """Returns ``found`` with masks (N, D, T, T), probabilities of the detection's own class."""
        boxes, labels = found.boxes, found.labels.flatten()
        coarse = self._coarse_logits(features[0], boxes)  # (N * D, K, M, M)
        side, grid = self._first_side(), self._points_of(boxes, grid_points(self._first_side(), coarse))
        logits = self._own(self._point_logits(features[0], boxes, grid, coarse), labels)  # (N * D, P)
        while side < self.side:
            maps = logits.view(-1, 1, side, side)
            maps = F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
            side *= 2
            logits = maps.view(-1, side * side)
            cells = (-logits.abs()).topk(min(self.settings.test_points, side * side), dim=1).indices
            points = (torch.stack([cells % side, cells // side], dim=-1) + 0.5) / side
            points = points.to(boxes.dtype).unflatten(0, boxes.shape[:2])
            drawn = self._own(self._point_logits(features[0], boxes, points, coarse), labels)
            logits = logits.scatter(1, cells, drawn)
        return replace(found, masks=logits.sigmoid().view(*boxes.shape[:2], side, side))

    def losses(
        self, features: Sequence[Tensor], sample: RegionSample, targets: Targets, seeds: Tensor
    ) -> dict[str, Tensor]:
        """Returns the losses ``mask``, of coarse masks, and ``mask_point``, of points, of positives of ``sample``.

        Both are the mean cross-entropy of the object's class; regions of objects without a mask do not count.
        ``seeds`` (N,) are those of the random points.

        Raises:
            ValueError: targets without masks.
        """
        if targets.masks is None or targets.mask_rows is None:
            raise ValueError(
                "training masks needs a data set with masks: COCO's segmentation, or VOC's with 'instances'"
            )
        rows = targets.mask_rows.gather(1, sample.objects)  # (N, R)
        counts = (sample.positive & targets.masks.flatten(1).any(dim=1)[rows]).flatten()
        labels, boxes = torch.where(sample.positive, sample.labels, 0).flatten(), sample.boxes
        coarse = self._coarse_logits(features[0], boxes)
        goals = crop_and_resize(
            targets.masks, boxes.flatten(0, 1), self.coarse.side, rows=rows.flatten(), geometry=self.geometry
        )
        points = self._training_points(coarse.detach(), labels, boxes, seeds)
        logits = self._own(self._point_logits(features[0], boxes, points, coarse), labels)  # (N * R, P)
        inside = sample_masks(targets.masks, on_image(points, boxes).flatten(0, 1), rows.flatten())
        return {
            "mask": _mean_entropy(self._own(coarse.flatten(2), labels), goals.flatten(1), counts),
            "mask_point": _mean_entropy(logits, inside, counts),
        }

    @torch.no_grad()
    def _training_points(self, coarse: Tensor, labels: Tensor, boxes: Tensor, seeds: Tensor) -> Tensor:
        """Returns points (N, R, P, 2) to learn from: the most uncertain of many, and uniform ones."""
        count, settings = self.settings.train_points, self.settings
        certain = count - int(settings.importance * count)
        drawn = drawn_points(seeds, boxes.shape[1], settings.oversample * count + certain, boxes)
        many, uniform = drawn.flatten(0, 1).split([settings.oversample * count, certain], dim=1)
        uncertainty = -self._own(sample_regions(coarse, many), labels).abs()  # (N * R, P)
        best = uncertainty.topk(count - certain, dim=1).indices
        chosen = many.gather(1, best[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, uniform], dim=1).unflatten(0, boxes.shape[:2])

    def _coarse_logits(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Returns logits (N * R, K, M, M) of the regions ``boxes`` (N, R, 4)."""
        side = self.coarse.pool_size
        pooled = sample_features(features, on_image(grid_points(side, boxes), boxes), self.stride)
        regions = pooled.transpose(1, 2).flatten(0, 1).unflatten(2, (side, side))  # (N * R, C, S, S)
        return at_least_single(self.coarse(regions.to(features.dtype)))

    def _point_logits(self, features: Tensor, boxes: Tensor, points: Tensor, coarse: Tensor) -> Tensor:
        """Returns logits (N * R, K, P) of ``points`` (N, R, P, 2) of ``boxes`` (N, R, 4) with ``coarse`` logits."""
        fine = sample_features(features, on_image(points, boxes), self.stride).transpose(1, 2).flatten(0, 1)
        known = sample_regions(coarse, points.flatten(0, 1))
        return at_least_single(self.points(fine.to(features.dtype), known.to(features.dtype)))

    def _first_side(self) -> int:
        """Returns the largest side at which a step would predict every point; no step before it is needed."""
        side = self.coarse.side
        while 4 * side**2 <= self.settings.test_points and side < self.side:
            side *= 2
        return side

    @staticmethod
    def _points_of(boxes: Tensor, points: Tensor) -> Tensor:
        return points.to(boxes.dtype).expand(*boxes.shape[:2], -1, -1)

    @staticmethod
    def _own(logits: Tensor, labels: Tensor) -> Tensor:
        """Returns (R, P) of the logits (R, K, P), those of the class ``labels`` (R,)."""
        return logits.gather(1, labels[:, None, None].expand(-1, 1, logits.shape[2]))[:, 0]


def _mean_entropy(logits: Tensor, goals: Tensor, counts: Tensor) -> Tensor:
    """Returns the mean cross-entropy of ``logits`` (R, P) in the regions that count (R,) bool."""
    weight = counts[:, None].expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(logits, goals, weight=weight, reduction="sum")
    return loss / weight.sum().clamp(min=1)


def _start(*parts: nn.Module, last: nn.Module) -> None:
    """Initialises the convolutions of ``parts`` as Detectron2 does, and the ``last`` layer to near zero."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
    assert isinstance(last, nn.Linear | nn.Conv1d)
    nn.init.normal_(last.weight, std=0.001)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
