"""The numbers of an evaluation as JSON content and as plain-text tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from detection.evaluation.coco import COCO_NUMBERS, CocoResult
from detection.evaluation.voc import VocResult

__all__ = ["VocMetric", "format_tables", "result_dict"]

VocMetric = Literal["11point", "area", "imagenet"]

_CLASS_NUMBERS = ("AP", "AP50", "AP75")
_VOC_DEFINITIONS = {
    "11point": "11-point interpolation (VOC2007)",
    "area": "area under the curve (VOC2010 and later)",
    "imagenet": "area under the curve, ImageNet's matching",
}
_NAME_WIDTH, _CELL_WIDTH = 50, 8  # columns; longer class names are cut, so a row of three numbers stays within 80


def result_dict(
    coco: CocoResult,
    voc: VocResult,
    class_names: Sequence[str],
    *,
    voc_metric: VocMetric,
    segm: CocoResult | None = None,
) -> dict[str, Any]:
    """The content of result.json: fractions 0..1, None where there is no value (JSON knows no NaN).

    ``voc_metric`` is the definition behind "mAP" and "per_class" of the VOC part; the means by both interpolations are
    always there. ImageNet's is the area, and ``voc`` then comes from its matching. ``segm`` is COCO's metric of masks.

    Raises:
        ValueError: an unknown ``voc_metric``, or results of another number of classes than ``class_names``.
    """
    if voc_metric not in _VOC_DEFINITIONS:
        raise ValueError(f"voc_metric is one of {', '.join(_VOC_DEFINITIONS)}, got {voc_metric!r}")
    means = {"11point": _json_number(voc.mean_ap_11point), "area": _json_number(voc.mean_ap_area)}
    voc_ap = voc.ap_11point if voc_metric == "11point" else voc.ap_area
    return {
        "bbox": _coco_dict(coco, class_names),
        **({} if segm is None else {"segm": _coco_dict(segm, class_names)}),
        "voc": {
            "mAP": means["11point" if voc_metric == "11point" else "area"],
            "metric": voc_metric,
            "mAP_11point": means["11point"],
            "mAP_area": means["area"],
            "per_class": {name: _json_number(ap) for name, ap in zip(class_names, voc_ap, strict=True)},
        },
    }


def _coco_dict(coco: CocoResult, class_names: Sequence[str]) -> dict[str, Any]:
    classes = zip(class_names, coco.class_ap, coco.class_ap50, coco.class_ap75, strict=True)
    return {
        **{name: _json_number(getattr(coco, name)) for name in COCO_NUMBERS},
        "per_class": {
            name: dict(zip(_CLASS_NUMBERS, map(_json_number, values), strict=True)) for name, *values in classes
        },
    }


def format_tables(result: dict[str, Any]) -> str:
    """The COCO and VOC tables of a ``result_dict`` in percent, "-" for no value, at most 80 columns wide."""
    voc = result["voc"]
    voc_rows = [(name, [ap]) for name, ap in voc["per_class"].items()]
    return "\n".join(
        [
            *_coco_tables("box", result["bbox"]),
            *(_coco_tables("mask", result["segm"]) if "segm" in result else []),
            f"VOC AP (%), {_VOC_DEFINITIONS[voc['metric']]}",
            *_table([*voc_rows, ("mean", [voc["mAP"]])], ["AP"], corner="class"),
        ]
    )


def _coco_tables(what: str, numbers: dict[str, Any]) -> list[str]:
    class_rows = [(name, [values[key] for key in _CLASS_NUMBERS]) for name, values in numbers["per_class"].items()]
    return [
        f"COCO {what} AP and AR (%)",
        *_table([("", [numbers[name] for name in COCO_NUMBERS[:6]])], COCO_NUMBERS[:6]),
        *_table([("", [numbers[name] for name in COCO_NUMBERS[6:]])], COCO_NUMBERS[6:]),
        "",
        *_table(class_rows, _CLASS_NUMBERS, corner="class"),
        "",
    ]


def _table(
    rows: Sequence[tuple[str, Sequence[float | None]]], columns: Sequence[str], *, corner: str = ""
) -> list[str]:
    """Lines of a table: names on the left, fractions as percent under right-aligned ``columns``."""
    width = min(max(len(name) for name in (corner, *(name for name, _ in rows))), _NAME_WIDTH)
    cells = [(corner, columns), *((name, [_percent(value) for value in values]) for name, values in rows)]
    return [name[:width].ljust(width) + "".join(text.rjust(_CELL_WIDTH) for text in texts) for name, texts in cells]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
