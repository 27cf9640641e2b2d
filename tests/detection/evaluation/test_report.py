"""Mirrors report.py, metrics.py, printable.py and text_table.py: figures, what is kept of them, and how they print."""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detection.engine.evaluate import evaluate
from detection.evaluation import metrics
from detection.evaluation.coco import CocoResult
from detection.evaluation.metrics import METRICS, Metric, is_better, named, read_metric, shown_figures
from detection.evaluation.printable import printable
from detection.evaluation.record import Record
from detection.evaluation.report import format_tables, result_dict
from detection.evaluation.text_table import text_table
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


def test_content_and_golden_tables_also_from_a_file_without_nan() -> None:
    area, points = (result_dict(COCO, VOC, NAMES, voc_metric=metric) for metric in ("area", "11point"))
    assert (area["bbox"]["AP"], area["bbox"]["APs"]) == (0.2716, None)
    assert area["bbox"]["per_class"]["dining table"] == {"AP": 0.243, "AP50": 0.4, "AP75": 0.0}
    both = {"mAP_11point": pytest.approx(0.5), "mAP_area": pytest.approx(0.55)}
    of_classes = {"cat": 0.8, "dining table": 0.3, "unseen": None}
    assert area["voc"] == {"mAP": pytest.approx(0.55), "metric": "area", **both, "per_class": of_classes}
    voc = points["voc"]
    assert (voc["metric"], voc["mAP"], voc["per_class"]["cat"]) == ("11point", voc["mAP_11point"], 0.75)
    read = json.loads(json.dumps(points, allow_nan=False))  # raises at a NaN
    assert read == points
    assert format_tables(points) == format_tables(read) == TABLES
    long = format_tables(result_dict(COCO, VOC, ["cat", "x" * 200, "unseen"], voc_metric="area")).splitlines()
    assert max(map(len, long)) <= 80
    assert "24.3" in next(line for line in long if line.startswith("xxx"))


def test_masks_get_a_section_and_a_table_of_their_own_and_no_classes_a_mean() -> None:
    segm = replace(COCO, AP=0.2, class_ap=np.array([0.25, 0.15, np.nan]))
    result = result_dict(COCO, VOC, NAMES, voc_metric="11point", segm=segm)
    assert list(result) == ["bbox", "segm", "voc"]
    assert (result["segm"]["AP"], result["segm"]["per_class"]["dining table"]["AP"]) == (0.2, 0.15)
    boxes, voc = TABLES.split("VOC AP")
    masks = boxes.replace("box", "mask").replace("27.2", "20.0").replace("  24.3", "  15.0")
    masks = masks.replace(" 30.0    60", " 25.0    60")
    assert format_tables(result) == f"{boxes}{masks}VOC AP{voc}"
    none = np.empty(0)
    coco, voc = replace(COCO, class_ap=none, class_ap50=none, class_ap75=none), VocResult(ap_11point=none, ap_area=none)
    nothing = result_dict(coco, voc, [], voc_metric="area")
    assert nothing["voc"]["mAP"] is None
    assert format_tables(nothing).endswith("class      AP\nmean        -")
    with pytest.raises(ValueError, match="voc_metric is one of 11point, area, imagenet, got 'voc07'"):
        result_dict(COCO, VOC, NAMES, voc_metric="voc07")  # pyright: ignore[reportArgumentType]  # the mistake itself
    with pytest.raises(ValueError, match="zip"):
        result_dict(COCO, VOC, NAMES[:2], voc_metric="area")


RESULT = {"bbox": {"AP": 0.5, "AR": None, "per_class": {"cat": {"AP": 0.25}, "a.b": {"AP": 0.75}}}, "images": 3}


def test_figures_are_named_with_dots() -> None:
    keys = ("bbox.AP", "bbox.AR", "bbox.per_class.cat.AP", "bbox.per_class.a.b.AP", "images")
    assert [read_metric(RESULT, key) for key in keys] == [0.5, None, 0.25, 0.75, 3]
    for key in ("bbox.ap", "segm.AP", "bbox", "bbox.AP.x", "", "bbox.per_class", "voc.metric"):
        with pytest.raises(ValueError, match=r"solver\.best_metric .* It has bbox\.AP, bbox\.AR, images, voc\.mAP$"):
            read_metric(RESULT | {"voc": {"metric": "area", "mAP": 0.5}}, key)
    for key, near in (("bbox.ap50", "bbox.AP50"), ("bbox.per_class.cta.AP50", "bbox.per_class.cat.AP50")):
        with pytest.raises(ValueError, match=f"'{key}' names no .* did you mean '{near}'"):
            read_metric(evaluate([], ("cat",), "area"), key)
    assert named("segm.AP").name == "mask AP"
    with pytest.raises(KeyError, match=r"no metric 'bbox\.AP60'; known: bbox\.AP, "):
        named("bbox.AP60")
    assert (metrics.percent(0.5771), metrics.percent(None)) == ("57.7", "-")
    assert (named("bbox.AP").format(0.5771), named("seconds_per_image").format(0.5771)) == ("57.7", "0.577")


def test_every_figure_of_an_evaluation_is_in_the_table_once() -> None:
    result = evaluate([], (), "area", fields=("masks", "keypoints"))
    del result["best_f1"]  # a threshold for pictures and predictions, with the F1 that it reaches
    found = {key for key in metrics.figures(result) if ".per_class" not in key}
    assert found == {m.key for m in METRICS if m.key.startswith(("bbox.", "segm.", "keypoints.", "voc."))}
    for names in ([metric.key for metric in METRICS], [metric.name for metric in metrics.shown_in("report")]):
        assert len(set(names)) == len(names)


@pytest.fixture
def _extra(monkeypatch) -> None:
    """A metric as a stranger would add it: one function and one line."""

    def extra_boxes(records: Sequence[Record], class_names: Sequence[str]) -> float:
        return float(np.mean([len(record.boxes) - len(record.gt_boxes) for record in records])) if records else math.nan

    options = {"lower_is_better": True, "is_fraction": False}
    extra = Metric("counts.extra", "extra boxes", ("log", "console"), extra_boxes, **options)
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, extra))


@pytest.mark.usefixtures("_extra")
def test_which_of_two_figures_is_better() -> None:
    better = [("bbox.AP", 0.5, 0.4), ("bbox.AP", 0.0, None), ("counts.extra", 0.3, 0.4)]
    better.append(("counts.per_class.cat.extra", 0.3, 0.4))
    worse = [("bbox.AP", 0.4, 0.4), ("bbox.AP", None, None), ("bbox.AP", None, 0.4), ("counts.extra", 0.5, 0.4)]
    worse.append(("voc.per_class.cat", 0.3, 0.4))
    assert [is_better(*case) for case in better + worse] == [True] * 4 + [False] * 5


@pytest.mark.usefixtures("_extra")
def test_a_metric_of_one_function_and_one_line_is_everywhere(record) -> None:
    box = [0, 0, 5, 5]
    result, nothing = (evaluate(found, ("cat",), "area") for found in ([record([box], [(box, 0.9)] * 3)], []))
    assert (result["counts"], nothing["counts"]) == ({"extra": 2.0}, {"extra": None})
    logged = shown_figures(result, "log")
    assert [logged[key] for key in ("bbox.AP", "bbox.AP50", "bbox.AP75", "voc.mAP")] == pytest.approx([1.0] * 4)
    assert logged["counts.extra"] == read_metric(result, "counts.extra") == 2
    assert "bbox.APs" not in logged
    for content, shown in ((result, "2.000"), (nothing, "-")):
        assert ["extra", "boxes", shown] in [line.split() for line in format_tables(content).splitlines()]


def test_words_of_all_scripts_stay_and_what_breaks_lines_or_files_is_escaped() -> None:
    for text in ("", "dining table", "кошка", "猫\u3000犬", "👨\u200d👩\u200d👧", "می\u200cروم", "a\u00a0b", "$x$"):
        assert printable(text) == text
    assert printable("a\nb\tc\r\0\x1b[31m\x85") == r"a\nb\tc\r\x00\x1b[31m\x85"
    assert printable("a\u2028b\u202ec\ud800\uffff") == r"a\u2028b\u202ec\ud800\uffff"


def test_table_by_hand() -> None:
    table = text_table(["run", "AP", "state"], [["a", "7.5", "done"], ["longer", "100.0", "to do"]], left=(0, 2))
    assert table.splitlines() == ["run         AP  state", "a          7.5  done", "longer   100.0  to do"]
    assert text_table(["class", "AP"], []) == "class      AP"


def test_long_names_go_on_below_and_numbers_stay_whole(monkeypatch) -> None:
    lines = text_table(["class", "AP"], [["word " * 30, "12.3"], ["x" * 100, "45.6"]]).splitlines()
    assert max(map(len, lines)) == 80
    assert [line.split()[-1] for line in lines if "12.3" in line or "45.6" in line] == ["12.3", "45.6"]
    assert (sum(line.count("x") for line in lines), sum(line.count("word") for line in lines)) == (100, 30)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((120, 20)))
    assert len(text_table(["class", "AP"], [["x" * 110, "1"]]).splitlines()) == 2  # a terminal gives the width


def test_names_of_rows_stay_whole_before_other_words() -> None:
    header, row = ["", *["AP"] * 5, "paper"], ["+ multi-scale testing", *["12.3"] * 5, "59.0 / 37.4 (test-dev)"]
    lines = text_table(header, [row], left=(0, 6)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["+", "(test-dev)"]
    assert lines[1].startswith("+ multi-scale testing ")


def test_markup_stays_text_and_control_characters_are_escaped() -> None:
    names = ["[red]a[/red] $x$ :smile:", "b\nc\0d\x1b[31m"]
    table = text_table(["class", "AP"], [[names[0], "1"], [names[1], "2"]])
    assert [line.rpartition("  ")[0].rstrip() for line in table.splitlines()[1:]] == [names[0], r"b\nc\x00d\x1b[31m"]
