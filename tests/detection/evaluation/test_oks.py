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
Content = Any  # of a JSON file

PERSON = KeypointSpec(tuple(COCO_SIGMAS))
FOUR = KeypointSpec(("a", "b", "c", "d"), sigmas=(0.1, 0.05, 0.2, 0.3))
CLASSES = ("cat", "dog", "none")


def truth_of(rng: np.random.Generator, spec: KeypointSpec) -> Content:
    """Objects of two of three classes, some crowds, some without a labelled keypoint, keypoints or an area."""
    annotations = list[dict[str, Any]]()
    for image in range(1, int(rng.integers(2, 6))):
        for _ in range(int(rng.integers(0, 7))):
            corner, sides = rng.integers(0, 40, 2), rng.integers(10, 160, 2)
            seen = rng.integers(0, 3, len(spec)) * (rng.random() > 0.2)
            places = (rng.uniform(0, 1, (len(spec), 2)) * sides + corner) * (seen[:, None] > 0)
            points = np.column_stack([places.round(1), seen])
            own = {"keypoints": points.ravel().tolist(), "num_keypoints": int((seen > 0).sum())}
            own |= {"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, 3))}
            own |= {"bbox": [*corner.tolist(), *sides.tolist()], "iscrowd": int(rng.random() < 0.1)}
            annotations.append(own | {"area": float(sides.prod() * rng.choice([0.4, 1.0]))})
    images = [{"id": image, "file_name": f"{image}.jpg", "height": 200, "width": 200} for image in range(1, 7)]
    categories = [{"id": i, "name": name, "keypoints": [*spec.names]} for i, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def results_of(rng: np.random.Generator, truth: Content, spec: KeypointSpec) -> Content:
    """Up to 25 detections of an object, about where it is, with tied scores; and others anywhere."""
    found = [(image, int(rng.integers(1, 4)), rng.uniform(0, 200, (len(spec), 2))) for image in range(1, 7)]
    for annotation in truth["annotations"]:
        points, side = np.array(annotation["keypoints"], np.float64).reshape(-1, 3), annotation["area"] ** 0.5
        for _ in range(int(rng.choice([0, 1, 1, 2, 25]))):
            moved = points[:, :2] + rng.normal(0, side * float(rng.choice([0.01, 0.1, 0.3])), (len(spec), 2))
            found.append((annotation["image_id"], annotation["category_id"], moved))
    return [
        {"image_id": image, "category_id": category, "score": float(rng.integers(0, 10) / 10)}
        | {"keypoints": np.column_stack([moved, np.ones(len(spec))]).ravel().tolist()}
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
    of_classes = evaluation.eval["precision"][..., 0, 0].mean(axis=(0, 1))  # (thresholds, recalls, K) of all areas
    return tuple(np.where(numbers < 0, np.nan, numbers) for numbers in (evaluation.stats, of_classes))


def numbers(result: KeypointResult) -> Array:
    return np.array([getattr(result, name) for name in KEYPOINT_NUMBERS])


def write(folder: Path, truth: Content, results: Content) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def read(paths: tuple[Path, Path], spec: KeypointSpec) -> list[Record]:
    (records,) = read_judged(paths[0], {"run": [paths[1]]}).runs["run"]
    return [replace(record, keypoint_spec=spec) for record in records]


@pytest.mark.parametrize("sets", [12, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", [PERSON, FOUR], ids=["person", "four"])
def test_keypoints_give_the_numbers_of_pycocotools(spec: KeypointSpec, sets: int, tmp_path: Path) -> None:
    some = np.zeros(len(KEYPOINT_NUMBERS), np.int64)
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        truth = truth_of(rng, spec)
        paths = write(tmp_path, truth, results_of(rng, truth, spec))
        expected, of_classes = reference(*paths, spec)
        result = evaluate_keypoints(read(paths, spec), CLASSES)
        np.testing.assert_allclose(numbers(result), expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        np.testing.assert_allclose(result.class_ap, of_classes, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        some += (expected > 0) & (expected < 1)
    assert (some > 0).all()


def test_files_and_intervals_have_the_figures_of_the_metric(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = truth_of(rng, FOUR)
    records = read(write(tmp_path, truth, results_of(rng, truth, FOUR)), FOUR)
    result = evaluate_keypoints(records, CLASSES)
    again = read(write(tmp_path, truth, coco_results(records, (1, 2, 3))), FOUR)  # what is written is read again
    for one, other in zip(records, again, strict=True):
        assert one.keypoints is not None
        assert other.keypoints is not None
        order, theirs = np.lexsort(one.keypoints[:, 0].T), np.lexsort(other.keypoints[:, 0].T)
        np.testing.assert_allclose(one.keypoints[order], other.keypoints[theirs], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(numbers(result), numbers(evaluate_keypoints(again, CLASSES)))
    statistic = run_statistic(records, CLASSES)
    values = dict(zip(statistic.names, statistic.compute(np.ones((1, len(records)), np.int64))[0], strict=True))
    expected = {f"keypoints.{name}": getattr(result, name) for name in KEYPOINT_NUMBERS}
    expected |= {f"keypoints.per_class.{name}.AP": ap for name, ap in zip(CLASSES, result.class_ap, strict=True)}
    assert {name: values[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert jackknife(statistic, len(records)).names == statistic.names


@pytest.fixture
def one(record: Callable[..., Record]) -> Callable[..., Record]:
    """One object of 100 square pixels and one detection of it, with two keypoints each."""
    box, spec = [0.0, 0.0, 10.0, 10.0], KeypointSpec(("a", "b"), sigmas=(0.1, 0.2))

    def make(points: Any, found: Any, **others: Any) -> Record:
        own = {"gt_keypoints": np.array([points]), "keypoints": np.array([found]), "keypoint_spec": spec}
        return record([box], [(box, 1.0)], **own | others)

    return make


def test_oks_by_hand(one: Any) -> None:
    # 2 pixels off, area 100, sigma 0.1: exp(-4 / (2 * 0.2**2 * 100)) = exp(-0.5) = 0.607 passes 0.5, 0.55 and 0.6;
    # the other keypoint is not labelled.  With both: (0.607 + 1) / 2 = 0.803 passes seven thresholds.
    alone, both = (
        one([[3, 3, 2], [0, 0, 0]], [[5, 3, 1], [90, 90, 1]]),
        one([[3, 3, 2], [7, 7, 1]], [[5, 3, 1], [7, 7, 1]]),
    )
    found = [evaluate_keypoints([image], ("dog",)).AP for image in (alone, both)]
    assert found == pytest.approx([0.3, 0.7])


def test_nothing_to_find_has_no_value(one: Any) -> None:
    for records in ([], [one([[0, 0, 0], [0, 0, 0]], [[5, 3, 1], [7, 7, 1]])]):
        assert np.isnan(numbers(evaluate_keypoints(records, ("dog",)))).all()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"keypoints": None}, r"1\.jpg: no keypoints of its detections"),
        ({"keypoint_spec": None}, r"1\.jpg: no keypoints of its objects"),
        ({"keypoints": np.zeros((1, 3, 3))}, r"1\.jpg: 3 keypoints of its detections, expected 2: a, b"),
    ],
)
def test_records_without_what_it_needs_are_named(others: dict[str, Any], message: str, one: Any) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_keypoints([one([[3, 3, 2], [7, 7, 1]], [[5, 3, 1], [7, 7, 1]], **others)], ("dog",))
