"""Formats the numbers of an evaluation as JSON content and as plain-text tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.coco import COCO_CLASS_NUMBERS, COCO_NUMBERS, KEYPOINT_NUMBERS, CocoResult, KeypointResult
from detection.evaluation.label_maps import LABEL_NUMBERS, LabelClasses, LabelFigures
from detection.evaluation.matching import MAX_DETECTIONS
from detection.evaluation.metrics import figures, named, percent, shown_in
from detection.evaluation.panoptic import (
    PANOPTIC_CLASS_NUMBERS,
    PANOPTIC_NUMBERS,
    class_qualities,
    panoptic_figures,
)
from detection.evaluation.text_table import text_table
from detection.evaluation.voc import VocResult

__all__ = [
    "VocMetric",
    "describe_choice",
    "describe_left_out",
    "format_tables",
    "label_dict",
    "panoptic_dict",
    "result_dict",
]

VocMetric = Literal["11point", "area", "imagenet"]

_VOC_DEFINITIONS = {
    "11point": "11-point interpolation (VOC2007)",
    "area": "area under the curve (VOC2010 and later)",
    "imagenet": "area under the curve, ImageNet's matching",
}
_NUMBERS_PER_LINE = 6


def result_dict(
    coco: CocoResult,
    voc: VocResult,
    class_names: Sequence[str],
    *,
    voc_metric: VocMetric,
    segm: CocoResult | None = None,
    boundary: CocoResult | None = None,
    keypoints: KeypointResult | None = None,
) -> dict[str, Any]:
    """Returns the content of result.json: fractions 0..1, None for no value (JSON has no NaN).

    ``voc_metric`` defines "mAP" and "per_class" of the VOC section; the means by both interpolations are always
    included. For ImageNet's, the area is used, and ``voc`` has to come from its matching. ``segm`` is COCO's metric of
    masks, ``boundary`` of their boundaries, and ``keypoints`` of keypoints.

    Raises:
        ValueError: ``voc_metric`` is unknown, or results and ``class_names`` differ in the number of classes.
    """
    if voc_metric not in _VOC_DEFINITIONS:
        raise ValueError(f"voc_metric is one of {', '.join(_VOC_DEFINITIONS)}, got {voc_metric!r}")
    means = {"11point": _json_number(voc.mean_ap_11point), "area": _json_number(voc.mean_ap_area)}
    voc_ap = voc.ap_11point if voc_metric == "11point" else voc.ap_area
    return {
        "bbox": _coco_dict(coco, class_names),
        **({} if segm is None else {"segm": _coco_dict(segm, class_names)}),
        **({} if boundary is None else {"boundary": _coco_dict(boundary, class_names)}),
        **({} if keypoints is None else {"keypoints": _coco_dict(keypoints, class_names, KEYPOINT_NUMBERS)}),
        "voc": {
            "mAP": means["11point" if voc_metric == "11point" else "area"],
            "metric": voc_metric,
            "mAP_11point": means["11point"],
            "mAP_area": means["area"],
            "per_class": {name: _json_number(ap) for name, ap in zip(class_names, voc_ap, strict=True)},
        },
    }


def label_dict(figures: LabelFigures, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the section "semseg" of result.json from the ``figures`` of one set of images, of K ``class_names``."""
    (numbers,), (iou,) = figures.numbers.tolist(), figures.iou.tolist()
    return {
        **dict(zip(LABEL_NUMBERS, map(_json_number, numbers), strict=True)),
        "per_class": {name: {"IoU": _json_number(value)} for name, value in zip(class_names, iou, strict=True)},
    }


def panoptic_dict(counts: NDArray[np.float64], classes: LabelClasses) -> dict[str, Any]:
    """Returns the section "panoptic" of result.json from ``counts`` (K, 4), summed over the images."""
    numbers, qualities = panoptic_figures(counts, classes.num_things).tolist(), class_qualities(counts).tolist()
    return {
        **dict(zip(PANOPTIC_NUMBERS, map(_json_number, numbers), strict=True)),
        "per_class": {
            name: dict(zip(PANOPTIC_CLASS_NUMBERS, map(_json_number, values), strict=True))
            for name, values in zip(classes.names, qualities, strict=True)
        },
    }


def _coco_dict(
    coco: CocoResult | KeypointResult, class_names: Sequence[str], numbers: Sequence[str] = COCO_NUMBERS
) -> dict[str, Any]:
    classes = zip(class_names, coco.class_ap, coco.class_ap50, coco.class_ap75, strict=True)
    return {
        **{name: _json_number(getattr(coco, name)) for name in numbers},
        "per_class": {
            name: dict(zip(COCO_CLASS_NUMBERS, map(_json_number, values), strict=True)) for name, *values in classes
        },
    }


def format_tables(result: dict[str, Any]) -> str:
    """Returns a table for each section of a result, with fractions in percent and "-" for no value."""
    return "\n".join(
        [
            *_section_tables("panoptic", "Panoptic quality", PANOPTIC_CLASS_NUMBERS, result),
            *_section_tables("semseg", "Label maps", ("IoU",), result),
            *_coco_tables("box", "bbox", result),
            *_coco_tables("mask", "segm", result),
            *_coco_tables("boundary", "boundary", result),
            *_coco_tables("keypoint", "keypoints", result),
            *_voc_table(result),
            *_computed_table(result),
            *([describe_left_out(result["left_out"])] if "left_out" in result else []),
            *([describe_choice(result)] if "weights" in result else []),
        ]
    )


def describe_left_out(count: int) -> str:
    """Returns the sentence on ``count`` detections that COCO's numbers leave out."""
    several = f"{count:,} detections come" if count > 1 else "1 detection comes"
    return (
        f"{several} after the {MAX_DETECTIONS}th of a class in an image: COCO's AP and AR leave them out, VOC's AP "
        "counts them"
    )


def describe_choice(result: dict[str, Any]) -> str:
    """Returns which weights were tested, with a warning if they were chosen on the test images."""
    weights = result["weights"]
    if weights["chosen_by"] is None:
        last = ", the last" if result.get("trained") == weights["iteration"] else ""
        return f"weights of iteration {weights['iteration']}{last}"
    chosen = f"{weights['chosen_by']} on {', '.join(weights['chosen_on'])}"
    warning = "; chosen on the test set itself: the figures are too high" if weights["chosen_on_test"] else ""
    return f"weights of iteration {weights['iteration']}, the best {chosen}{warning}"


def _coco_tables(what: str, section: str, result: dict[str, Any]) -> list[str]:
    return _section_tables(section, f"COCO {what} AP and AR", COCO_CLASS_NUMBERS, result)


def _section_tables(section: str, what: str, class_numbers: Sequence[str], result: dict[str, Any]) -> list[str]:
    """Returns the tables of ``section`` and of its classes; nothing if ``result`` lacks it."""
    if section not in result:
        return []
    numbers = result[section]
    metrics = [metric for metric in shown_in("console", f"{section}.") if metric.compute is None]
    lines: list[list[str]] = []
    for start in range(0, len(metrics), _NUMBERS_PER_LINE):
        part = metrics[start : start + _NUMBERS_PER_LINE]
        lines.append(["", *(metric.short_name for metric in part)])
        lines.append(["", *(metric.format(numbers[metric.short_name]) for metric in part)])
    class_rows = [
        [name, *(percent(values[key]) for key in class_numbers)] for name, values in numbers["per_class"].items()
    ]
    return [
        f"{what} (%)",
        text_table(lines[0], lines[1:]),
        "",
        text_table(["class", *class_numbers], class_rows),
        "",
    ]


def _voc_table(result: dict[str, Any]) -> list[str]:
    if "voc" not in result:
        return []
    voc, mean = result["voc"], named("voc.mAP")
    rows = [*voc["per_class"].items(), ("mean", voc[mean.short_name])]
    return [
        f"VOC AP (%), {_VOC_DEFINITIONS[voc['metric']]}",
        text_table(["class", "AP"], [[name, mean.format(ap)] for name, ap in rows]),
    ]


def _computed_table(result: dict[str, Any]) -> list[str]:
    """Returns the table of metrics with their own function."""
    known = figures(result)
    shown = [metric for metric in shown_in("console") if metric.compute is not None and metric.key in known]
    rows = [
        [f"{metric.name}{' (%)' if metric.is_fraction else ''}", metric.format(known[metric.key])] for metric in shown
    ]
    return ["", text_table(["metric", "value"], rows)] if rows else []


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
