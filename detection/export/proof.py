"""Compares an exported detector with PyTorch: matched detections, their differences, and AP.

Shapes: D detections of PyTorch, E of the export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from detection.boxes import iou
from detection.evaluation.inference import Claim, compare_samples
from detection.evaluation.jackknife import Sample, jackknife
from detection.evaluation.label_maps import LabelClasses
from detection.evaluation.matching import IouType, match
from detection.evaluation.record import Record
from detection.evaluation.run_figures import label_statistics, statistic_of_boxes
from detection.structures import Detections

__all__ = ["AP", "Agreement", "Loss", "agreement", "ap_loss", "miou_loss"]

AP, MIOU = "bbox.AP", "semseg.mIoU"
MATCH_IOU = 0.5  # of the same object


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of the detections of PyTorch and of the export in the same pixels.

    Attributes:
        images: number of compared images.
        detections: number of detections of PyTorch.
        exported: number of detections of the export.
        matched: number of pairs of the same class with an IoU of at least 0.5.
        box: largest difference in a coordinate of a pair, pixels of the resized image.
        score: largest difference between the scores of a pair.
        mask: largest difference between mask probabilities of a pair; None without masks.
        keypoint: share of keypoints more than a pixel apart, as with equal maxima; None without keypoints.
        pixels: share of the pixels with different classes; None without label maps.
    """

    images: int
    detections: int
    exported: int
    matched: int
    box: float
    score: float
    mask: float | None
    keypoint: float | None = None
    pixels: float | None = None

    @property
    def unmatched(self) -> float:
        """Share of detections of either model without a match, or of pixels with different classes if larger, 0..1."""
        total = self.detections + self.exported
        return max(1 - 2 * self.matched / total if total else 0.0, self.pixels or 0.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """AP or mean IoU of PyTorch and of the export, as fractions, and their paired difference."""

    images: int
    before: float
    after: float
    change: Claim  # after minus before


def agreement(reference: Sequence[Detections], exported: Sequence[Detections]) -> Agreement:
    """Compares the detections ``exported`` with ``reference``, image by image."""
    pairs = [_matched(own, other) for own, other in zip(reference, exported, strict=True)]
    masks = [_greatest(own.masks, other.masks) for own, other in pairs if own.masks is not None]
    return Agreement(
        images=len(pairs),
        detections=sum(map(len, reference)),
        exported=sum(map(len, exported)),
        matched=sum(len(own) for own, _ in pairs),
        box=max((_greatest(own.boxes, other.boxes) for own, other in pairs), default=0.0),
        score=max((_greatest(own.scores, other.scores) for own, other in pairs), default=0.0),
        mask=max(masks, default=None),
        keypoint=_moved([pair for pair in pairs if pair[0].keypoints is not None]),
        pixels=_relabelled(reference, exported),
    )


def _relabelled(reference: Sequence[Detections], exported: Sequence[Detections]) -> float | None:
    """Returns the share of the pixels of all images with different best classes; None without label maps."""
    pairs = zip(reference, exported, strict=True)
    other = [
        (own.label_scores.argmax(dim=0) != found.label_scores.argmax(dim=0)).flatten()
        for own, found in pairs
        if own.label_scores is not None and found.label_scores is not None
    ]
    return float(torch.cat(other).double().mean()) if other else None


def _matched(own: Detections, other: Detections) -> tuple[Detections, Detections]:
    """Returns the detections of each that have a match in the other, in the same order."""
    overlap = iou(own.boxes, other.boxes) * (own.labels[:, None] == other.labels)  # (D, E)
    # Equal boxes of a class are matched by score.
    likeness = overlap - 0.01 * (own.scores[:, None] - other.scores).abs()
    rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    good = overlap.numpy()[rows, columns] >= MATCH_IOU
    return own[own.labels.new_tensor(rows[good])], other[other.labels.new_tensor(columns[good])]


def _moved(pairs: Sequence[tuple[Detections, Detections]]) -> float | None:
    """Returns the share of keypoints more than a pixel apart; None without keypoints."""
    found = [(own.keypoints, other.keypoints) for own, other in pairs]
    apart = [
        (own[..., :2] - other[..., :2]).norm(dim=-1).flatten() > 1
        for own, other in found
        if own is not None and other is not None
    ]
    return float(torch.cat(apart).double().mean().nan_to_num()) if apart else None


def _greatest(values: object, others: object) -> float:
    difference = np.abs(np.asarray(values, np.float64) - np.asarray(others, np.float64))
    return float(difference.max(initial=0.0))


def ap_loss(
    before: Sequence[Record], after: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox"
) -> Loss:
    """Returns the loss of AP from ``before`` to ``after`` on the same images, with its paired 95 % interval."""
    return _loss(_sample(before, class_names, iou_type), _sample(after, class_names, iou_type), AP, len(before))


def miou_loss(before: Sequence[Record], after: Sequence[Record], classes: LabelClasses) -> Loss:
    """Returns the loss of mean IoU from ``before`` to ``after``, as ``ap_loss`` for AP."""
    own, other = (
        jackknife(label_statistics(records, classes)[-1], len(records)) for records in (before, after)
    )  # the last is that of pixels
    return _loss(own, other, MIOU, len(before))


def _loss(before: Sample, after: Sample, key: str, images: int) -> Loss:
    comparison = compare_samples({"before": [before], "after": [after]})
    (pair,) = comparison.pairs
    arms = {name: arm.detectors[key].value for name, arm in comparison.variants.items()}
    return Loss(images, arms["before"], arms["after"], pair.detectors[key])


def _sample(records: Sequence[Record], class_names: Sequence[str], iou_type: IouType) -> Sample:
    return jackknife(statistic_of_boxes(match(records, class_names, iou_type=iou_type)), len(records))
