"""Mirrors detection/evaluation/report.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.coco import CocoResult
from detection.evaluation.report import format_tables, result_dict
from detection.evaluation.voc import VocResult

NAMES = ["cat", "dining table", "unseen"]
COCO = CocoResult(
    **{"AP": 0.2716, "AP50": 0.5, "AP75": 0.25, "APs": math.nan, "APm": 0.1, "APl": 1.0},
    **{"AR1": 0.3, "AR10": 0.4, "AR100": 0.45, "ARs": math.nan, "ARm": 0.0, "ARl": 1.0},
    class_ap=np.array([0.3, 0.243, np.nan]),
    class_ap50=np.array([0.6, 0.4, np.nan]),
    class_ap75=np.array([0.5, 0.0, np.nan]),
)
VOC = VocResult(ap_11point=np.array([0.75, 0.25, np.nan]), ap_area=np.array([0.8, 0.3, np.nan]))

TABLES = """\
COCO box AP and AR (%)
      AP    AP50    AP75     APs     APm     APl
    27.2    50.0    25.0       -    10.0   100.0
     AR1    AR10   AR100     ARs     ARm     ARl
    30.0    40.0    45.0       -     0.0   100.0

class             AP    AP50    AP75
cat             30.0    60.0    50.0
dining table    24.3    40.0     0.0
unseen             -       -       -

VOC AP (%), 11-point interpolation (VOC2007)
class             AP
cat             75.0
dining table    25.0
unseen             -
mean            50.0"""


def test_content_and_the_metric_that_chooses_the_voc_numbers() -> None:
    result = result_dict(COCO, VOC, NAMES, voc_metric="area")
    assert (result["bbox"]["AP"], result["bbox"]["APs"]) == (0.2716, None)
    assert result["bbox"]["per_class"]["dining table"] == {"AP": 0.243, "AP50": 0.4, "AP75": 0.0}
    both = {"mAP_11point": pytest.approx(0.5), "mAP_area": pytest.approx(0.55)}
    of_classes = {"cat": 0.8, "dining table": 0.3, "unseen": None}
    assert result["voc"] == {"mAP": pytest.approx(0.55), "metric": "area", **both, "per_class": of_classes}
    voc = result_dict(COCO, VOC, NAMES, voc_metric="11point")["voc"]
    assert (voc["metric"], voc["mAP"], voc["per_class"]["cat"]) == ("11point", voc["mAP_11point"], 0.75)


def test_golden_tables_also_from_a_file_without_nan() -> None:
    result = result_dict(COCO, VOC, NAMES, voc_metric="11point")
    read = json.loads(json.dumps(result, allow_nan=False))  # raises at a NaN
    assert read == result
    assert format_tables(result) == format_tables(read) == TABLES


def test_long_names_are_cut_at_80_columns() -> None:
    tables = format_tables(result_dict(COCO, VOC, ["cat", "x" * 200, "unseen"], voc_metric="area"))
    assert max(len(line) for line in tables.splitlines()) <= 80
    assert "24.3" in next(line for line in tables.splitlines() if line.startswith("xxx"))


def test_no_classes() -> None:
    nothing = np.empty(0)
    coco = replace(COCO, AP=math.nan, class_ap=nothing, class_ap50=nothing, class_ap75=nothing)
    result = result_dict(coco, VocResult(ap_11point=nothing, ap_area=nothing), [], voc_metric="area")
    assert result["voc"]["mAP"] is None
    assert format_tables(result).endswith("class      AP\nmean        -")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="voc_metric is one of 11point, area, imagenet, got 'voc07'"):
        result_dict(COCO, VOC, NAMES, voc_metric="voc07")  # pyright: ignore[reportArgumentType]  # the mistake itself
    with pytest.raises(ValueError, match="zip"):
        result_dict(COCO, VOC, NAMES[:2], voc_metric="area")


def test_masks_get_a_section_and_a_table_of_their_own() -> None:
    segm = replace(COCO, AP=0.2, class_ap=np.array([0.25, 0.15, np.nan]))
    result = result_dict(COCO, VOC, NAMES, voc_metric="11point", segm=segm)
    assert list(result) == ["bbox", "segm", "voc"]
    assert (result["segm"]["AP"], result["segm"]["per_class"]["dining table"]["AP"]) == (0.2, 0.15)
    boxes, voc = TABLES.split("VOC AP")
    masks = boxes.replace("box", "mask").replace("27.2", "20.0").replace("  24.3", "  15.0")
    masks = masks.replace(" 30.0    60", " 25.0    60")
    assert format_tables(result) == f"{boxes}{masks}VOC AP{voc}"
