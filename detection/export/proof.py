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
    """Counts and differences of what PyTorch and the export found in the same pixels.

    Attributes:
        images: compared.
        detections: PyTorch's.
        exported: the export's.
        matched: pairs of the same class that overlap by an IoU of 0.5 or more.
        box: greatest difference of a coordinate of a pair, pixels of the resized image.
        score: greatest difference of the probabilities of a pair.
        mask: greatest difference of a probability of their masks; None: no masks.
        keypoint: share of their keypoints that lie more than a pixel apart, as of equal maxima; None: no keypoints.
        pixels: share of the pixels that have another class; None: no label maps.
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
        """Share of the detections of both that have no match, or of pixels of another class if it is more, 0..1."""
        total = self.detections + self.exported
        return max(1 - 2 * self.matched / total if total else 0.0, self.pixels or 0.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """AP or mean IoU in PyTorch and in the export, fractions, and their paired difference."""

    images: int
    before: float
    after: float
    change: Claim  # after less before


def agreement(reference: Sequence[Detections], exported: Sequence[Detections]) -> Agreement:
    """Returns how far ``exported`` agrees with ``reference``, image by image."""
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
    """Returns the share of the pixels of all images that have another best class; None: there are no label maps."""
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
    # Among equal boxes of a class, the score says which is which.
    likeness = overlap - 0.01 * (own.scores[:, None] - other.scores).abs()
    rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    good = overlap.numpy()[rows, columns] >= MATCH_IOU
    return own[own.labels.new_tensor(rows[good])], other[other.labels.new_tensor(columns[good])]


def _moved(pairs: Sequence[tuple[Detections, Detections]]) -> float | None:
    """Returns the share of keypoints that lie more than a pixel apart; None: there are none."""
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
    """Returns what AP loses from ``before`` to ``after``, of the same images, with its paired 95 % interval."""
    return _loss(_sample(before, class_names, iou_type), _sample(after, class_names, iou_type), AP, len(before))


def miou_loss(before: Sequence[Record], after: Sequence[Record], classes: LabelClasses) -> Loss:
    """Returns what the mean IoU of label maps loses from ``before`` to ``after``, as ``ap_loss`` that of AP."""
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
