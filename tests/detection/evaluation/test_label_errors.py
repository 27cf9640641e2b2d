"""Mirrors detection/evaluation/label_errors.py: errors put into right labels are found by what they are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.label_errors import Suspect, find_label_errors
from detection.evaluation.record import Record

Truth = list[tuple[np.ndarray, np.ndarray]]  # boxes and labels of each image
PLACES = np.array([(x, y) for x in (0, 100, 200) for y in (0, 100)][:5], float)  # of objects, which do not overlap


def make_truth(count: int = 40) -> Truth:
    """Images of five objects of three classes each, the last place free."""
    rng, truth = np.random.default_rng(0), Truth()
    for _ in range(count):
        corners, sides = PLACES + rng.uniform(5, 20, (5, 2)), rng.uniform(40, 60, (5, 2))
        truth.append((np.concatenate([corners, corners + sides], 1), rng.integers(0, 3, 5)))
    return truth


def spoiled(truth: Truth) -> tuple[Truth, set[tuple[str, int]]]:
    """``truth`` with four errors of each kind, and (kind, row) of each."""
    labelled, errors = list(truth), set[tuple[str, int]]()
    for row in range(16):
        kind, (boxes, labels) = ("missing", "class", "extra", "box")[row % 4], (part.copy() for part in truth[row])
        if kind == "missing":
            boxes, labels = boxes[1:], labels[1:]
        elif kind == "class":
            labels[2] = (labels[2] + 1) % 3
        elif kind == "extra":
            boxes, labels = np.concatenate([boxes, [[210, 110, 260, 160]]]), np.append(labels, 0)
        else:
            boxes[1] += np.array([22, 12, 22, 12])
        labelled[row] = boxes, labels
        errors.add((kind, row))
    return labelled, errors


@pytest.fixture
def detected(record):
    """What a fair detector finds of the truth, against the labels: most objects, a little moved, and false alarms."""

    def run(truth: Truth, labelled: Truth, *, seed: int, skill: float = 0.9) -> list[Record]:
        rng, records = np.random.default_rng((seed, 7)), list[Record]()
        for row, ((boxes, labels), known) in enumerate(zip(truth, labelled, strict=True)):
            kept = rng.random(5) < skill
            moved = (boxes + rng.normal(0, 2, (5, 4)))[kept]
            false = np.array([130, 20, 190, 95]) + rng.uniform(-20, 20, 4)
            found = list(zip(moved, labels[kept], rng.uniform(0.6, 1, kept.sum()), strict=True))
            score = rng.uniform(0, 0.5)
            found.append((false, rng.integers(3), score))
            records.append(record(list(zip(*known, strict=True)), found, image_id=row + 1))
        return records

    return run


def kinds(suspects: Sequence[Suspect]) -> set[tuple[str, int]]:
    return {(one.kind, one.row) for one in suspects}


def test_injected_errors_stand_first_and_by_their_kind(detected) -> None:
    truth = make_truth()
    labelled, errors = spoiled(truth)
    runs = [detected(truth, labelled, seed=seed) for seed in range(3)]
    suspects = find_label_errors(runs, min_score=0.4)
    assert kinds(suspects[: len(errors)]) == errors
    assert [one.score for one in suspects] == sorted((one.score for one in suspects), reverse=True)
    alone = find_label_errors(runs[:1], min_score=0.4)
    assert len(errors & kinds(alone[: 2 * len(errors)])) >= 13  # one run misses a tenth of the objects itself


def test_suggestions_are_what_was_there_before(detected) -> None:
    truth = make_truth()
    labelled, _ = spoiled(truth)
    runs = [detected(truth, labelled, seed=seed, skill=1.0) for seed in range(2)]
    for one in find_label_errors(runs, min_score=0.4)[:16]:
        boxes, labels = truth[one.row]
        assert one.object == {"missing": None, "class": 2, "box": 1, "extra": 5}[one.kind]
        if one.kind in ("missing", "class"):
            assert one.label == labels[one.object or 0]
        if one.kind in ("missing", "box"):
            assert one.box == pytest.approx(boxes[one.object or 0].tolist(), abs=9)


def test_what_one_run_alone_says_counts_less(record) -> None:
    box, other = [0.0, 0, 50, 50], [100, 100, 150, 150]
    seen, alarm = record([box], [(box, 1.0)]), record([box], [(box, 1.0), (other, 1, 0.9)])
    (one,) = find_label_errors([[alarm]], min_score=0.4)
    assert (one.kind, one.score) == ("missing", pytest.approx(0.9))
    (one,) = find_label_errors([[alarm], [seen]], min_score=0.4)
    assert one.score == pytest.approx(0.45)
    assert find_label_errors([[alarm], [seen]], min_score=0.5) == []


def test_ignored_objects_explain_detections_and_are_never_doubted(record) -> None:
    objects = [[0.0, 0, 100, 100], [150, 0, 200, 50]]
    ignoring = record(objects, [([10, 10, 40, 40], 1, 0.9), (objects[1], 1, 0.9)], ignore=[0, 1])
    assert find_label_errors([[ignoring]], min_score=0.4) == []
    counted = replace(ignoring, gt_ignore=np.array([False, False]))
    assert kinds(find_label_errors([[counted]], min_score=0.4)) == {("missing", 0), ("class", 0)}
    assert find_label_errors([], min_score=0.4) == find_label_errors([[record()], [record()]], min_score=0.4) == []
