"""Mirrors detection/evaluation/oks.py: keypoint AP against pycocotools, from files in COCO's formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.coco import KEYPOINT_NUMBERS, KeypointResult, coco_results, evaluate_keypoints
from detection.evaluation.jackknife import jackknife
from detection.evaluation.record import Record
from detection.evaluation.run_figures import run_statistic
from detection.keypoints import COCO_SIGMAS, KeypointSpec
from detection.tasks.evaluate import read_judged

Array = np.ndarray[Any, Any]

SETS = 60
PERSON = KeypointSpec(tuple(COCO_SIGMAS))
FOUR = KeypointSpec(("a", "b", "c", "d"), sigmas=(0.1, 0.05, 0.2, 0.3))
CLASSES = ("cat", "dog", "none")


def truth_of(rng: np.random.Generator, spec: KeypointSpec) -> dict[str, Any]:
    """Objects of two of three classes, some crowds, some without a labelled keypoint, keypoints or an area."""
    annotations = []
    for image in range(1, int(rng.integers(2, 6))):
        for _ in range(int(rng.integers(0, 7))):
            x, y = rng.integers(0, 40, 2).tolist()
            width, height = rng.integers(10, 160, 2).tolist()
            places = rng.uniform(0, 1, (len(spec), 2)) * [width, height] + [x, y]
            seen = rng.integers(0, 3, len(spec)) * (rng.random() > 0.2)
            places *= seen[:, None] > 0
            points = np.column_stack([places.round(1), seen])
            own = {"keypoints": points.ravel().tolist(), "num_keypoints": int((seen > 0).sum())}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": [x, y, width, height],
                    "area": float(width * height * rng.choice([0.4, 1.0])),
                    "iscrowd": int(rng.random() < 0.1),
                    **own,
                }
            )
    return {
        "images": [{"id": image, "file_name": f"{image}.jpg", "height": 200, "width": 200} for image in range(1, 7)],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "keypoints": list(spec.names)} for number, name in enumerate(CLASSES, start=1)
        ],
    }


def results_of(rng: np.random.Generator, truth: dict[str, Any], spec: KeypointSpec) -> list[dict[str, Any]]:
    """Up to 25 detections of an object, about where it is, with tied scores; and others anywhere."""
    found = []
    for annotation in truth["annotations"]:
        points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
        side = annotation["area"] ** 0.5
        for _ in range(int(rng.choice([0, 1, 1, 2, 25]))):
            moved = points[:, :2] + rng.normal(0, side * float(rng.choice([0.01, 0.1, 0.3])), (len(spec), 2))
            found.append((annotation["image_id"], annotation["category_id"], moved))
    for image in range(1, 7):
        found.append((image, int(rng.integers(1, 4)), rng.uniform(0, 200, (len(spec), 2))))
    return [
        {
            "image_id": image,
            "category_id": category,
            "score": float(rng.integers(0, 10) / 10),
            "keypoints": np.column_stack([moved, np.ones(len(spec))]).ravel().tolist(),
        }
        for image, category, moved in found
    ]


def reference(truth: Path, results: Path, spec: KeypointSpec) -> tuple[Array, Array]:
    """pycocotools' ten numbers and its AP of each class, NaN for -1."""
    with redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluation: Any = COCOeval(known, known.loadRes(str(results)), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(spec.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, 0]  # (thresholds, recalls, K) of all areas
    numbers, of_classes = evaluation.stats, precision.mean(axis=(0, 1))
    return np.where(numbers < 0, np.nan, numbers), np.where(of_classes < 0, np.nan, of_classes)


def numbers(result: KeypointResult) -> Array:
    return np.array([getattr(result, name) for name in KEYPOINT_NUMBERS])


Written = tuple[Path, Path]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any], list[dict[str, Any]]], Written]:
    def files(truth: dict[str, Any], results: list[dict[str, Any]]) -> Written:
        paths = tmp_path / "truth.json", tmp_path / "results.json"
        for path, content in zip(paths, (truth, results), strict=True):
            path.write_text(json.dumps(content))
        return paths

    return files


def read(paths: Written, spec: KeypointSpec) -> list[Record]:
    (records,) = read_judged(paths[0], {"run": [paths[1]]}).runs["run"]
    return [replace(record, keypoint_spec=spec) for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [PERSON, FOUR], ids=["person", "four"])
def test_keypoints_give_the_numbers_of_pycocotools(spec: KeypointSpec, write: Callable[..., Written]) -> None:
    some = np.zeros(len(KEYPOINT_NUMBERS), np.int64)
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        truth = truth_of(rng, spec)
        paths = write(truth, results_of(rng, truth, spec))
        expected, of_classes = reference(*paths, spec)
        result = evaluate_keypoints(read(paths, spec), CLASSES)
        np.testing.assert_allclose(numbers(result), expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        np.testing.assert_allclose(result.class_ap, of_classes, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        some += (expected > 0) & (expected < 1)
    assert (some > 0).all()


def test_what_is_written_is_read_again_and_gives_the_same(write: Callable[..., Written]) -> None:
    rng = np.random.default_rng(1)
    truth = truth_of(rng, PERSON)
    records = read(write(truth, results_of(rng, truth, PERSON)), PERSON)
    again = read(write(truth, coco_results(records, (1, 2, 3))), PERSON)
    for record, other in zip(records, again, strict=True):
        assert record.keypoints is not None
        assert other.keypoints is not None
        order, theirs = np.lexsort(record.keypoints[:, 0].T), np.lexsort(other.keypoints[:, 0].T)
        np.testing.assert_allclose(record.keypoints[order], other.keypoints[theirs], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(
        numbers(evaluate_keypoints(records, CLASSES)), numbers(evaluate_keypoints(again, CLASSES))
    )


def test_intervals_have_the_figures_of_the_metric(write: Callable[..., Written]) -> None:
    rng = np.random.default_rng(2)
    truth = truth_of(rng, FOUR)
    records = read(write(truth, results_of(rng, truth, FOUR)), FOUR)
    statistic, result = run_statistic(records, CLASSES), evaluate_keypoints(records, CLASSES)
    values = dict(zip(statistic.names, statistic.compute(np.ones((1, len(records)), np.int64))[0], strict=True))
    expected = {f"keypoints.{name}": getattr(result, name) for name in KEYPOINT_NUMBERS}
    expected |= {f"keypoints.per_class.{name}.AP": ap for name, ap in zip(CLASSES, result.class_ap, strict=True)}
    assert {name: values[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert jackknife(statistic, len(records)) is not None


def one(points: list[list[float]], found: list[list[float]], **others: Any) -> Record:
    """One object of 100 square pixels and one detection of it."""
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    return Record(
        image_id=1,
        file_name="1.jpg",
        size=(20, 20),
        gt_boxes=box,
        gt_labels=np.zeros(1, np.int64),
        gt_ignore=np.zeros(1, np.bool_),
        gt_areas=np.array([100.0]),
        boxes=box,
        scores=np.ones(1),
        labels=np.zeros(1, np.int64),
        **{
            "gt_keypoints": np.array([points]),
            "keypoints": np.array([found]),
            "keypoint_spec": KeypointSpec(("a", "b"), sigmas=(0.1, 0.2)),
            **others,
        },
    )


def test_oks_by_hand() -> None:
    # 2 pixels off, area 100, sigma 0.1: exp(-4 / (2 * 0.2**2 * 100)) = exp(-0.5) = 0.607 passes 0.5, 0.55 and 0.6;
    # the other keypoint is not labelled.
    record = one([[3, 3, 2], [0, 0, 0]], [[5, 3, 1], [90, 90, 1]])
    assert pytest.approx(0.3) == evaluate_keypoints([record], ("dog",)).AP
    # With both: (0.607 + 1) / 2 = 0.803 passes seven thresholds.
    record = one([[3, 3, 2], [7, 7, 1]], [[5, 3, 1], [7, 7, 1]])
    assert pytest.approx(0.7) == evaluate_keypoints([record], ("dog",)).AP


def test_nothing_to_find_has_no_value() -> None:
    hidden = one([[0, 0, 0], [0, 0, 0]], [[5, 3, 1], [7, 7, 1]])
    for records in ([], [hidden]):
        assert np.isnan(numbers(evaluate_keypoints(records, ("dog",)))).all()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"keypoints": None}, r"1\.jpg: no keypoints of its detections"),
        ({"keypoint_spec": None}, r"1\.jpg: no keypoints of its objects"),
        ({"keypoints": np.zeros((1, 3, 3))}, r"1\.jpg: 3 keypoints of its detections, expected 2: a, b"),
    ],
)
def test_records_without_what_it_needs_are_named(others: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_keypoints([one([[3, 3, 2], [7, 7, 1]], [[5, 3, 1], [7, 7, 1]], **others)], ("dog",))
