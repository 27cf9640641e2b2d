"""Mirrors detection/evaluation/metrics.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

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

RESULT = {"bbox": {"AP": 0.5, "AR": None, "per_class": {"cat": {"AP": 0.25}, "a.b": {"AP": 0.75}}}, "images": 3}


def extra_boxes(records: Sequence[Record], class_names: Sequence[str]) -> float:
    """Detections less objects, per image: a metric as a stranger would add it."""
    return float(np.mean([len(record.boxes) - len(record.gt_boxes) for record in records])) if records else math.nan


EXTRA = Metric("counts.extra", "extra boxes", ("log", "console"), extra_boxes, lower_is_better=True, is_fraction=False)


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, EXTRA))


def make_record(detections: int) -> Record:
    return Record(
        image_id=1,
        file_name="a.jpg",
        size=(10, 10),
        gt_boxes=np.array([[0, 0, 5, 5]], np.float32),
        gt_labels=np.zeros(1, np.int64),
        gt_ignore=np.zeros(1, np.bool_),
        gt_areas=np.array([25], np.float32),
        boxes=np.tile(np.array([[0, 0, 5, 5]], np.float32), (detections, 1)),
        scores=np.linspace(0.9, 0.8, detections, dtype=np.float32),
        labels=np.zeros(detections, np.int64),
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("bbox.AP", 0.5),
        ("bbox.AR", None),
        ("bbox.per_class.cat.AP", 0.25),
        ("bbox.per_class.a.b.AP", 0.75),
        ("images", 3),
    ],
)
def test_figures_are_named_with_dots(key: str, expected: float | None) -> None:
    assert read_metric(RESULT, key) == expected


@pytest.mark.parametrize("key", ["bbox.ap", "segm.AP", "bbox", "bbox.AP.x", "", "bbox.per_class", "voc.metric"])
def test_names_of_no_figure_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"solver\.best_metric .* It has bbox\.AP, bbox\.AR, images, voc\.mAP$"):
        read_metric(RESULT | {"voc": {"metric": "area", "mAP": 0.5}}, key)


def test_the_nearest_name_is_proposed() -> None:
    with pytest.raises(ValueError, match=r"'bbox\.ap50' names no .* did you mean 'bbox\.AP50'\? "):
        read_metric(evaluate([], ("cat",), "area"), "bbox.ap50")
    with pytest.raises(ValueError, match=r"did you mean 'bbox\.per_class\.cat\.AP50'\? "):
        read_metric(evaluate([], ("cat",), "area"), "bbox.per_class.cta.AP50")


def test_every_figure_of_an_evaluation_is_in_the_table() -> None:
    result = evaluate([], (), "area", fields=("masks", "keypoints"))
    del result["best_f1"]  # a threshold for pictures and predictions, with the F1 that it reaches
    found = {key for key in figures(result) if ".per_class" not in key}
    assert found == {
        metric.key for metric in METRICS if metric.key.startswith(("bbox.", "segm.", "keypoints.", "voc."))
    }


def test_names_in_reports_and_keys_are_unique() -> None:
    for names in ([metric.key for metric in METRICS], [metric.name for metric in shown_in("report")]):
        assert len(set(names)) == len(names)


def test_logs_get_the_main_figures() -> None:
    logged = shown_figures(evaluate([make_record(1)], ("cat",), "area"), "log")
    main = {"bbox.AP": 1.0, "bbox.AP50": 1.0, "bbox.AP75": 1.0, "voc.mAP": 1.0}
    assert {key: logged[key] for key in main} == pytest.approx(main)
    assert "bbox.APs" not in logged


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
def test_a_metric_of_one_function_and_one_line_is_everywhere() -> None:
    result = evaluate([make_record(3)], ("cat",), "area")
    assert result["counts"] == {"extra": 2.0}
    assert read_metric(result, "counts.extra") == 2
    assert shown_figures(result, "log")["counts.extra"] == 2
    assert ["extra", "boxes", "2.000"] in [line.split() for line in format_tables(result).splitlines()]
    nothing = evaluate([], ("cat",), "area")
    assert nothing["counts"] == {"extra": None}
    assert ["extra", "boxes", "-"] in [line.split() for line in format_tables(nothing).splitlines()]


def test_a_key_that_the_table_lacks_is_named() -> None:
    assert named("segm.AP").name == "mask AP"
    with pytest.raises(KeyError, match=r"no metric 'bbox\.AP60'; known: bbox\.AP, "):
        named("bbox.AP60")


def test_fractions_are_printed_in_percent() -> None:
    assert (percent(0.5771), percent(None)) == ("57.7", "-")
    assert (named("bbox.AP").format(0.5771), named("seconds_per_image").format(0.5771)) == ("57.7", "0.577")
