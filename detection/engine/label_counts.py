"""Counts of label maps for evaluation; predictors do not need them."""

from __future__ import annotations

from dataclasses import replace

from detection.data.index import AnnotationIndex
from detection.engine.label_maps import Labelled, read_labelled
from detection.evaluation.label_maps import LabelClasses, label_counts
from detection.evaluation.panoptic import panoptic_counts
from detection.evaluation.record import Record

__all__ = ["label_classes", "with_counts"]


def with_counts(record: Record, index: AnnotationIndex, row: int, found: Labelled) -> Record:
    """Returns ``record`` of image ``row`` with counts of ``found``; unchanged if the image's labels are unknown.

    Raises:
        ImageError: the label image can't be read or does not fit.
    """
    maps = index.label_maps
    if maps is None or not index.has_ground_truth:
        return record
    num_classes, true = len(maps.class_names), read_labelled(maps, row, record.size)
    record = replace(record, label_counts=label_counts(true.labels, found.labels, num_classes))
    if found.segments is None:
        return record
    assert true.segments is not None
    return replace(record, panoptic_counts=panoptic_counts(true.segments, found.segments, num_classes))


def label_classes(index: AnnotationIndex) -> LabelClasses | None:
    """Returns the classes of the label maps of ``index``; None where it has none."""
    maps = index.label_maps
    return None if maps is None else LabelClasses(maps.class_names, maps.num_things)
