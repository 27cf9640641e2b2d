"""Mirrors detection/evaluation/metrics.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from detection.engine.evaluate import evaluate
from detection.evaluation import metrics
from detection.evaluation.metrics import (
    METRICS,
    Metric,
    figures,
    is_better,
    named,
    percent,
    read_metric,
    shown_figures,
    shown_in,
)
from detection.evaluation.record import Record
from detection.evaluation.report import format_tables

BOX = [0, 0, 5, 5]
RESULT = {"bbox": {"AP": 0.5, "AR": None, "per_class": {"cat": {"AP": 0.25}, "a.b": {"AP": 0.75}}}, "images": 3}


def extra_boxes(records: Sequence[Record], class_names: Sequence[str]) -> float:
    """Detections less objects, per image: a metric as a stranger would add it."""
    return float(np.mean([len(record.boxes) - len(record.gt_boxes) for record in records])) if records else math.nan


EXTRA = Metric("counts.extra", "extra boxes", ("log", "console"), extra_boxes, lower_is_better=True, is_fraction=False)


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, EXTRA))


def test_figures_are_named_with_dots() -> None:
    keys = ("bbox.AP", "bbox.AR", "bbox.per_class.cat.AP", "bbox.per_class.a.b.AP", "images")
    assert [read_metric(RESULT, key) for key in keys] == [0.5, None, 0.25, 0.75, 3]


@pytest.mark.parametrize("key", ["bbox.ap", "segm.AP", "bbox", "bbox.AP.x", "", "bbox.per_class", "voc.metric"])
def test_names_of_no_figure_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"solver\.best_metric .* It has bbox\.AP, bbox\.AR, images, voc\.mAP$"):
        read_metric(RESULT | {"voc": {"metric": "area", "mAP": 0.5}}, key)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("bbox.ap50", r"bbox\.AP50"), ("bbox.per_class.cta.AP50", r"bbox\.per_class\.cat\.AP50")],
)
def test_the_nearest_name_is_proposed(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"'{key}' names no .* did you mean '{nearest}'\? "):
        read_metric(evaluate([], ("cat",), "area"), key)


def test_every_figure_of_an_evaluation_is_in_the_table_once() -> None:
    result = evaluate([], (), "area", fields=("masks", "keypoints"))
    del result["best_f1"]  # a threshold for pictures and predictions, with the F1 that it reaches
    found = {key for key in figures(result) if ".per_class" not in key}
    assert found == {m.key for m in METRICS if m.key.startswith(("bbox.", "segm.", "keypoints.", "voc."))}
    for names in ([metric.key for metric in METRICS], [metric.name for metric in shown_in("report")]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("key", "value", "best", "expected"),
    [
        ("bbox.AP", 0.5, 0.4, True),
        ("bbox.AP", 0.4, 0.4, False),
        ("bbox.AP", 0.0, None, True),
        ("bbox.AP", None, None, False),
        ("bbox.AP", None, 0.4, False),
        ("counts.extra", 0.5, 0.4, False),
        ("counts.extra", 0.3, 0.4, True),
        ("counts.per_class.cat.extra", 0.3, 0.4, True),
        ("voc.per_class.cat", 0.3, 0.4, False),
    ],
)
@pytest.mark.usefixtures("extra")
def test_which_of_two_figures_is_better(key: str, value: float | None, best: float | None, expected: bool) -> None:
    assert is_better(key, value, best) is expected


@pytest.mark.usefixtures("extra")
def test_a_metric_of_one_function_and_one_line_is_everywhere(record: Callable[..., Record]) -> None:
    result = evaluate([record([BOX], [(BOX, 0.9)] * 3)], ("cat",), "area")
    assert result["counts"] == {"extra": 2.0}
    assert read_metric(result, "counts.extra") == 2
    logged = shown_figures(result, "log")
    assert {key: logged[key] for key in ("bbox.AP", "bbox.AP50", "bbox.AP75", "voc.mAP", "counts.extra")} == {
        **dict.fromkeys(("bbox.AP", "bbox.AP50", "bbox.AP75", "voc.mAP"), pytest.approx(1.0)),
        "counts.extra": 2,
    }
    assert "bbox.APs" not in logged
    assert ["extra", "boxes", "2.000"] in [line.split() for line in format_tables(result).splitlines()]
    nothing = evaluate([], ("cat",), "area")
    assert nothing["counts"] == {"extra": None}
    assert ["extra", "boxes", "-"] in [line.split() for line in format_tables(nothing).splitlines()]


def test_figures_are_printed_as_the_table_says() -> None:
    assert named("segm.AP").name == "mask AP"
    with pytest.raises(KeyError, match=r"no metric 'bbox\.AP60'; known: bbox\.AP, "):
        named("bbox.AP60")
    assert (percent(0.5771), percent(None)) == ("57.7", "-")
    assert (named("bbox.AP").format(0.5771), named("seconds_per_image").format(0.5771)) == ("57.7", "0.577")
