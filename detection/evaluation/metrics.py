"""The table of metrics: the figures of result.json, their printed names, their direction and where they appear.

A new metric is a function of the records and the class names, and a line in ``METRICS``.  Evaluation, logs, tables,
reports and ``solver.best_metric`` read the table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detection.evaluation.coco import COCO_CLASS_NUMBERS, COCO_NUMBERS, KEYPOINT_NUMBERS, IouType
from detection.evaluation.record import Record

__all__ = [
    "METRICS",
    "NONE",
    "Metric",
    "add_computed",
    "deciding_key",
    "figures",
    "is_better",
    "named",
    "percent",
    "read_metric",
    "shown_figures",
    "shown_in",
]

NONE = "-"  # printed for a figure without a value

Place = Literal["log", "console", "report"]
Compute = Callable[[Sequence[Record], Sequence[str]], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of result.json.

    Attributes:
        key: section and name in result.json, with a dot between them.
        name: as printed; unique among those of a report.
        shown: the log lines, metrics.jsonl and TensorBoard ("log"), the tables after a test ("console"), and the
            columns of reports and analyses ("report").
        compute: computes the figure from all records and the class names, NaN for no value.  None: the figure is one of
            many from the COCO, VOC or classification evaluation.
        lower_is_better: whether smaller values are better.
        is_fraction: whether the figure is a fraction 0..1, printed in percent.
    """

    key: str
    name: str
    shown: tuple[Place, ...] = ()
    compute: Compute | None = None
    lower_is_better: bool = False
    is_fraction: bool = True

    @property
    def short_name(self) -> str:
        """The name within the section."""
        return self.key.rpartition(".")[2]

    def format(self, value: float | None) -> str:
        """Returns ``value`` as printed: a fraction in percent, "-" for none."""
        return percent(value) if self.is_fraction or value is None else f"{value:.3f}"


def _coco(
    iou_type: IouType, prefix: str, reported: Sequence[str], numbers: Sequence[str] = COCO_NUMBERS
) -> list[Metric]:
    places: dict[Place, Sequence[str]] = {"log": COCO_CLASS_NUMBERS, "console": numbers, "report": reported}
    return [
        Metric(f"{iou_type}.{name}", f"{prefix}{name}", shown=tuple(place for place in places if name in places[place]))
        for name in numbers
    ]


_PANOPTIC_PLACES: dict[str, tuple[Place, ...]] = {
    "PQ": ("log", "console", "report"),
    "SQ": ("console", "report"),
    "RQ": ("console", "report"),
}

DECIDING = ("panoptic.PQ", "semseg.mIoU", "bbox.AP")  # networks are compared by the first one available
METRICS = (
    *_coco("bbox", "", reported=COCO_NUMBERS[:9]),
    *_coco("segm", "mask ", reported=()),
    *_coco("boundary", "boundary ", reported=()),
    *_coco("keypoints", "keypoint ", reported=(), numbers=KEYPOINT_NUMBERS),
    Metric("voc.mAP", "VOC mAP", shown=("log", "console", "report")),
    Metric("voc.mAP_11point", "VOC mAP, 11 points"),
    Metric("voc.mAP_area", "VOC mAP, area"),
    Metric("semseg.mIoU", "mIoU", shown=("log", "console", "report")),
    Metric("semseg.fwIoU", "fwIoU", shown=("console", "report")),
    Metric("semseg.pixel_accuracy", "pixel accuracy", shown=("log", "console", "report")),
    Metric("semseg.mean_accuracy", "mean accuracy", shown=("console", "report")),
    *(
        Metric(f"panoptic.{name}{group}", f"{name}{words}", shown=places)
        for group, words in (("", ""), ("_things", " things"), ("_stuff", " stuff"))
        for name, places in _PANOPTIC_PLACES.items()
    ),
    Metric("classification.top1", "top1", shown=("log", "console")),
    Metric("classification.top5", "top5", shown=("log", "console")),
    Metric("tags.F2", "F2", shown=("log", "console")),
    Metric("tags.precision", "precision", shown=("log", "console")),
    Metric("tags.recall", "recall", shown=("log", "console")),
    Metric("edges.ODS", "ODS", shown=("log", "console")),
    Metric("edges.OIS", "OIS", shown=("log", "console")),
    Metric("edges.AP", "edge AP", shown=("log", "console")),
    Metric("seconds_per_image", "s/image", lower_is_better=True, is_fraction=False),
)


def named(key: str) -> Metric:
    """Returns the metric of ``key``.

    Raises:
        KeyError: the table lacks ``key``.
    """
    found = next((metric for metric in METRICS if metric.key == key), None)
    if found is None:
        raise KeyError(f"no metric {key!r}; known: {', '.join(metric.key for metric in METRICS)}")
    return found


def shown_in(place: Place, section: str = "") -> list[Metric]:
    """Returns the metrics shown in ``place``, of one ``section`` of result.json or of all."""
    return [metric for metric in METRICS if place in metric.shown and metric.key.startswith(section)]


def figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns all figures of a result, also of classes, by dotted key; None if a figure could not be computed."""
    found: dict[str, float | None] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": figure for key, figure in figures(value).items()}
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            found[name] = value
    return found


def deciding_key(known: Container[str]) -> str:
    """Returns the key by which networks are compared, the first of ``DECIDING`` in ``known``."""
    return next(key for key in DECIDING if key in known)


def shown_figures(result: dict[str, Any], place: Place) -> dict[str, float | None]:
    """Returns the figures of ``result`` shown in ``place``, by key."""
    known = figures(result)
    return {metric.key: known[metric.key] for metric in shown_in(place) if metric.key in known}


def read_metric(result: dict[str, Any], key: str) -> float | None:
    """Returns the figure ``key`` of solver.best_metric, such as "bbox.AP"; None if it could not be computed.

    Raises:
        ValueError: ``result`` has no such figure; the message names the nearest.
    """
    known = figures(result)
    if key not in known:
        spelt = {name.lower(): name for name in known}
        nearest = difflib.get_close_matches(key.lower(), spelt, n=1)
        hint = f"did you mean {spelt[nearest[0]]!r}? " if nearest else ""
        listed = ", ".join(name for name in known if ".per_class." not in name)
        raise ValueError(f"solver.best_metric {key!r} names no figure of result.json; {hint}It has {listed}")
    return known[key]


def is_better(key: str, value: float | None, best: float | None) -> bool:
    """Returns whether ``value`` of the figure ``key`` is better than ``best``; any value is better than None."""
    if value is None or best is None:
        return value is not None
    return value < best if _lower_is_better(key) else value > best


def add_computed(result: dict[str, Any], records: Sequence[Record], class_names: Sequence[str]) -> None:
    """Adds the figures of metrics with their own function to ``result``."""
    for metric in METRICS:
        if metric.compute is not None:
            *sections, name = metric.key.split(".")
            place, value = result, float(metric.compute(records, class_names))
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = None if math.isnan(value) else value


def percent(fraction: float | None) -> str:
    """Returns ``fraction`` in percent, such as "57.7" for 0.577, or "-" for no value."""
    return NONE if fraction is None else f"{100 * fraction:.1f}"


def _lower_is_better(key: str) -> bool:
    """Returns whether smaller is better for ``key``, which may be of a class, such as "bbox.per_class.dog.AP50"."""
    section, _, rest = key.partition(".per_class.")
    keys = {key, f"{section}.{rest.rpartition('.')[2]}"}
    return any(metric.lower_is_better for metric in METRICS if metric.key in keys)
