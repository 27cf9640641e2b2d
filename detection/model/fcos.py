"""FCOS: every cell of a level predicts the object whose centre is near, without anchors.

As in torchvision, the distances to the sides are in cells and clipped at 0, and centerness is predicted from the boxes'
tower, as in the paper's second version.

Source: Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection", section 3; Tian et al. 2020, "FCOS: A
Simple and Strong Anchor-free Object Detector".
Shapes: N images, C channels, H W height and width of a level, M_l = H * W points of an image at one level, M at all,
G ground-truth boxes, K classes, T best scores of a level, D candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.boxes import areas
from detection.model.anchors import cell_points
from detection.model.losses import giou
from detection.model.matcher import MAX_ELEMENTS, Matches
from detection.model.one_stage import Dense, DenseHead, output_layer, pick
from detection.model.precision import at_least_single
from detection.model.select import gather_rows
from detection.padded import Found, Targets

__all__ = ["FCOSHead", "PointMatcher", "Points"]

FARTHEST = 8  # cells: a level takes objects whose farthest side is nearer than this, unless the level before does


@dataclass(frozen=True, slots=True)
class Points:
    """The cells of a level, or of all."""

    centers: Tensor  # (M, 2) x, y in pixels of the resized image
    strides: Tensor  # (M,) pixels
    near: Tensor  # (M,) pixels: the farthest side of an object is farther than this ...
    far: Tensor  # (M,) ... and nearer than this

    @property
    def boxes(self) -> Tensor:
        """(M, 4): a square of the stride around each."""
        half = self.strides[:, None] / 2
        return torch.cat([self.centers - half, self.centers + half], dim=1)


@dataclass(frozen=True)
class PointMatcher:
    """Labels points by the smallest object that contains them, whose centre is near and whose size fits their level.

    Attributes:
        radius: in cells; a point is near a centre if it is nearer than this along both axes.
    """

    radius: float = 1.5

    def __call__(self, points: Points, targets: Targets, usable: Tensor) -> Matches:
        """Returns the matches of ``points`` with ``targets``; points in ignored objects are never negative.

        Args:
            points: of all levels.
            targets: of the N images.
            usable: (N, M) bool; the others are ignored.
        """
        step = max(1, MAX_ELEMENTS // max(1, usable.numel()))
        starts = range(0, targets.boxes.shape[1], step)
        least, indices, covered = self._match(points, targets, slice(0, step))
        for start in starts[1:]:
            smaller, rows, hidden = self._match(points, targets, slice(start, start + step))
            indices = torch.where(smaller < least, rows + start, indices)
            least, covered = torch.minimum(least, smaller), covered | hidden
        positive = (least < torch.inf) & usable
        return Matches(positive, usable & ~(covered | positive), indices)

    def _match(self, points: Points, targets: Targets, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns area (N, M) and row of the smallest fitting object of ``part``, and being in an ignored one."""
        objects = targets.boxes[:, part]
        x, y = points.centers.unbind(1)
        x1, y1, x2, y2 = objects[..., None].unbind(2)  # (N, g, 1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # (N, g, M)
        within = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom)) > 0
        farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
        off_center = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
        fits = (off_center < self.radius * points.strides) & (farthest > points.near) & (farthest < points.far)
        wanted, ignored = targets.wanted[:, part, None], targets.ignore[:, part, None]
        least, rows = torch.where(within & fits & wanted, areas(objects)[..., None], torch.inf).min(dim=1)
        return least, rows, (within & ignored).any(dim=1)


class FCOSHead(DenseHead):
    """Scores, distances to the four sides and centerness of every cell of every level.

    Args:
        in_channels: C of every level.
        strides: of each level.
        num_classes: K.
        settings: settings of all one-stage detectors; convolutions have a bias before a norm too.
        matcher: assigns an object to each point.
        offset: where in its cell a point lies, 0 (top left) to 1.
        rounded: cells are whole pixels apart, as in torchvision.
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        *,
        num_classes: int,
        settings: Dense,
        matcher: PointMatcher,
        offset: float = 0.5,
        rounded: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes=num_classes, boxes=1, settings=settings, bias=True)
        self.centerness = output_layer(in_channels, 1)
        self.strides, self.matcher = tuple(strides), matcher
        self.offset, self.rounded = offset, rounded

    def describe(self) -> str:
        """Returns its layers and where it looks for an object."""
        convs = self.settings.convs
        return f"FCOS, {convs} + {convs} convolutions, points within {self.matcher.radius:g} cells of a centre"

    def forward(self, features: Sequence[Tensor], padded: tuple[int, int]) -> Found:
        """Returns the best boxes (N, D, 4) of each level with their class; not clipped, all valid.

        A score is the geometric mean of the class's probability and of centerness.
        """
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        labels: list[Tensor] = []
        for feature, points in zip(features, self._points(features, padded), strict=True):
            sides, centerness = self._sides(feature)
            picked = pick((self.logits(feature).sigmoid() * centerness.sigmoid()[..., None]).sqrt(), self.settings.best)
            boxes.append(_decode(gather_rows(sides, picked.rows), points.centers[picked.rows], points.strides[0]))
            scores.append(picked.scores)
            labels.append(picked.labels)
        valid = torch.ones_like(torch.cat(labels, dim=1), dtype=torch.bool)
        return Found(torch.cat(boxes, dim=1), valid, torch.cat(scores, dim=1), torch.cat(labels, dim=1))

    def losses(
        self, features: Sequence[Tensor], sizes: Tensor, padded: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """Returns the losses ``class``, of all points, and ``box`` and ``centerness`` of the positive ones."""
        logits = torch.cat([self.logits(feature) for feature in features], dim=1)  # (N, M, K)
        outputs = [self._sides(feature) for feature in features]
        sides, centerness = (torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True))
        points = _joined(self._points(features, padded))
        matches, labels, goals = self._match(points, sizes, targets)
        scale = self.scale(matches.positive)
        weight = matches.positive * scale
        boxes = _decode(sides, points.centers, points.strides[:, None])
        central = F.binary_cross_entropy_with_logits(
            centerness, _centerness(goals, points.centers).to(centerness.dtype), weight=weight, reduction="sum"
        )
        return {
            "class": self.settings.class_loss(logits, labels, matches, scale),
            "box": giou(boxes, goals, weight) * self.settings.box_loss_weight,
            "centerness": central,
        }

    def _sides(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Returns distances (N, M_l, 4) in cells to the left, top, right and bottom side, and logits (N, M_l)."""
        hidden = self.box_tower(feature)
        sides = F.relu(self.deltas(hidden)).permute(0, 2, 3, 1).flatten(1, 2)
        return at_least_single(sides), at_least_single(self.centerness(hidden).flatten(1))

    def _points(self, features: Sequence[Tensor], padded: tuple[int, int]) -> list[Points]:
        """Returns the points of every level."""
        levels = []
        for number, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            centers = cell_points(
                (feature.shape[-2], feature.shape[-1]),
                stride,
                offset=self.offset,
                padded=padded if self.rounded else None,
                device=feature.device,
            ).flatten(0, 1)
            last = number == len(self.strides) - 1
            near, far = FARTHEST * stride / 2 if number else 0.0, torch.inf if last else FARTHEST * stride
            levels.append(Points(centers, *(centers.new_full((len(centers),), v) for v in (stride, near, far))))
        return levels

    @torch.no_grad()
    def _match(self, points: Points, sizes: Tensor, targets: Targets) -> tuple[Matches, Tensor, Tensor]:
        """Returns the matches of ``points``, and the label (N, M) and box (N, M, 4) of the object of each.

        The box of a point that is not positive is the square around it.
        """
        usable = (points.centers < sizes.flip(1)[:, None]).all(dim=-1)  # not in the padding
        matches = self.matcher(points, targets, usable)
        objects = gather_rows(targets.boxes, matches.indices)
        goals = torch.where(matches.positive[..., None], objects, points.boxes)
        return matches, targets.labels.gather(1, matches.indices), goals


def _joined(levels: Sequence[Points]) -> Points:
    parts = ([getattr(level, name) for level in levels] for name in ("centers", "strides", "near", "far"))
    return Points(*(torch.cat(part) for part in parts))


def _decode(sides: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
    """Returns boxes (N, M, 4) whose sides are ``sides`` (N, M, 4) cells of ``strides`` pixels from ``centers``."""
    pixels = sides * strides
    return torch.cat([centers - pixels[..., :2], centers + pixels[..., 2:]], dim=-1)


def _centerness(boxes: Tensor, centers: Tensor) -> Tensor:
    """Returns 1 (N, M) where ``centers`` (M, 2) are those of ``boxes`` (N, M, 4) around them, less towards their sides.

    Source: FCOS, equation 3.
    """
    before, after = centers - boxes[..., :2], boxes[..., 2:] - centers
    return (torch.minimum(before, after) / torch.maximum(before, after)).prod(dim=-1).sqrt()
