"""Mirrors detection/evaluation/tide.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation import tide as errors
from detection.evaluation.coco import CocoResult
from detection.evaluation.record import Record
from detection.evaluation.tide import ERROR_TYPES, error_gains, match_errors

Box = tuple[float, float, float, float]
Detection = tuple[Box, int, float]  # box, label, score
AP50 = Callable[..., float]

NAMES = ["cat", "dog"]
A, B, C = [(100.0 * i, 0.0, 100.0 * i + 10, 10.0) for i in range(3)]  # apart from each other
NOWHERE = (900.0, 900.0, 910.0, 910.0)


def part(box: Box, share: float) -> Box:
    """The upper ``share`` of a box: its IoU with the whole."""
    return (*box[:3], box[1] + share * (box[3] - box[1]))


def record(
    objects: Sequence[tuple[Box, int]],
    detections: Sequence[Detection],
    *,
    image_id: int = 1,
    ignore: Sequence[int] = (),
) -> Record:
    """Objects are (box, label); ``ignore`` are rows of ignored ones."""
    gt_boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(1000, 1000),
        gt_boxes=gt_boxes,
        gt_labels=np.array([label for _, label in objects], np.int64),
        gt_ignore=np.isin(np.arange(len(objects)), ignore),
        gt_areas=(gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(axis=1),
        boxes=np.array([box for box, _, _ in detections], np.float32).reshape(-1, 4),
        scores=np.array([score for _, _, score in detections], np.float32),
        labels=np.array([label for _, label, _ in detections], np.int64),
    )


EASY = record([(A, 0), (A, 1)], [(A, 0, 0.5), (A, 1, 0.5)], image_id=2)  # so that each class has an object and a hit


def gains(*records: Record) -> dict[str, float]:
    """AP50 and the gains that are not 0."""
    points = errors_of([*records, EASY])
    return {name: point for name, point in points.items() if abs(point) > 1e-12}


def errors_of(records: Sequence[Record]) -> dict[str, float]:
    """AP50 and all gains."""
    found = error_gains(match_errors(records, NAMES), np.ones((1, len(records)), np.int32))[0]
    return dict(zip(("AP50", *ERROR_TYPES), found.tolist(), strict=True))


@pytest.fixture(name="ap50")
def ap50_of_pycocotools(reference: Callable[..., CocoResult]) -> AP50:
    return lambda *records: reference([*records, EASY], NAMES).AP50


# One error at a time.  What fixing it gives is COCO's AP50 of the records without it.

CAT, FOUND = (A, 0), (A, 0, 0.9)
CASES: dict[str, tuple[list[tuple[Box, int]], Detection, list[tuple[Box, int]], list[Detection]]] = {
    # type: objects beside the cat at A, the wrong detection; objects and detections (beside A's) after the fix
    "Cls": ([(B, 1)], (B, 0, 0.95), [(B, 1)], [(B, 1, 0.95)]),
    "Loc": ([(B, 0)], (part(B, 0.3), 0, 0.95), [(B, 0)], [(B, 0, 0.95)]),
    "Both": ([(B, 1)], (part(B, 0.3), 0, 0.95), [(B, 1)], []),
    "Dupe": ([], (part(A, 0.9), 0, 0.8), [], []),
    "Bkg": ([], (NOWHERE, 0, 0.95), [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_each_type_is_what_its_fix_gains(name: str, ap50: AP50) -> None:
    objects, wrong, fixed_objects, fixed_detections = CASES[name]
    # EASY's cat scores 0.5, below the wrong detection, which would otherwise cost nothing.
    before = record([CAT, *objects], [FOUND, wrong])
    found = gains(before)
    fixed = ap50(record([CAT, *fixed_objects], [FOUND, *fixed_detections]))
    assert found["AP50"] == pytest.approx(ap50(before))
    assert found[name] == pytest.approx(fixed - ap50(before))
    assert found[name] > 0.05
    others = set(CASES) - {name}
    assert not others & set(found)


def test_a_missed_object_is_fixed_by_taking_it_out() -> None:
    found = gains(record([CAT, (B, 0)], [FOUND]))
    assert found == pytest.approx({"AP50": (67 / 101 + 1) / 2, "Miss": 17 / 101, "FN": 17 / 101})


def test_an_object_that_another_fix_would_find_is_not_missed() -> None:
    # FN does count it: perfect recall wants it found.
    for wrong in ((part(B, 0.3), 0, 0.4), (B, 1, 0.4)):
        found = gains(record([CAT, (B, 0)], [FOUND, wrong]))
        assert "Miss" not in found
        assert found["FN"] > 0.1


@pytest.mark.parametrize(("overlap", "kind"), [(0.09, "Bkg"), (0.11, "Loc"), (0.49, "Loc"), (0.51, None)], ids=str)
def test_limits_of_a_wrong_place(overlap: float, kind: str | None) -> None:
    found = set(gains(record([CAT, (B, 0)], [FOUND, (part(B, overlap), 0, 0.95)])))
    assert found & set(CASES) == ({kind} if kind else set())


@pytest.mark.parametrize(("overlap", "kind"), [(0.09, "Bkg"), (0.11, "Both"), (0.49, "Both"), (0.51, "Cls")])
def test_limits_of_a_wrong_class(overlap: float, kind: str) -> None:
    found = set(gains(record([CAT, (B, 1)], [FOUND, (part(B, overlap), 0, 0.95)])))
    assert found & set(CASES) == {kind}


def test_of_two_types_place_goes_before_class() -> None:
    # IoU 0.3 with a free cat, 1 with a found dog.
    objects = [(B, 1), ((B[0], 0.0, B[2], 10 / 0.3), 0)]
    found = set(gains(record(objects, [(B, 1, 0.9), (B, 0, 0.95)])))
    assert found & set(CASES) == {"Loc"}


def test_one_fix_for_an_object_and_the_best_score_gets_it(ap50: AP50) -> None:
    # Two detections of the same lost cat: fixed, the better is a hit and the other is gone.
    before = record([CAT, (B, 0)], [FOUND, (part(B, 0.3), 0, 0.7), (part(B, 0.4), 0, 0.95)])
    fixed = record([CAT, (B, 0)], [FOUND, (B, 0, 0.95)])
    assert gains(before)["Loc"] == pytest.approx(ap50(fixed) - ap50(before))
    # The better one has the wrong class: fixing places removes the worse one and finds nothing.
    before = record([CAT, (B, 0)], [FOUND, (part(B, 0.3), 0, 0.7), (B, 1, 0.95)])
    without = record([CAT, (B, 0)], [FOUND, (B, 1, 0.95)])
    assert gains(before)["Loc"] == pytest.approx(ap50(without) - ap50(before))


def test_ignored_objects_and_what_is_found_of_them_are_no_errors() -> None:
    objects = [CAT, (B, 0), (C, 0)]
    found = gains(record(objects, [FOUND, (B, 0, 0.95), (B, 0, 0.94)], ignore=[1, 2]))
    assert found == pytest.approx({"AP50": 1.0})


def test_false_positives_and_negatives_at_once(ap50: AP50) -> None:
    image = record([CAT, (B, 0), (B, 1)], [(NOWHERE, 0, 0.97), (A, 0, 0.9), (NOWHERE, 1, 0.6)])
    # Without false positives: 2 of 3 cats and 1 of 2 dogs at precision 1.
    assert gains(image)["FP"] == pytest.approx((67 + 51) / 202 - ap50(image))
    # Without false negatives the lost cat and dog are no objects.
    found = replace(image, gt_ignore=np.array([False, True, True]))
    assert gains(image)["FN"] == pytest.approx(ap50(found) - ap50(image))


def test_perfect_and_empty_runs() -> None:
    assert gains(record([CAT], [FOUND])) == pytest.approx({"AP50": 1.0})
    assert gains(record([], [])) == pytest.approx({"AP50": 1.0})
    nothing = errors_of([record([], [], image_id=i) for i in (1, 2)])
    assert np.isnan(list(nothing.values())).all()


def test_a_class_that_is_never_found_keeps_ap_0_when_its_objects_go() -> None:
    dog = record([(A, 1)], [])
    cat = record([CAT], [FOUND], image_id=2)
    found = errors_of([dog, cat])
    assert (found["AP50"], found["Miss"], found["FN"]) == (0.5, 0, 0)


# Random sets


def random_records(seed: int, count: int = 40) -> list[Record]:
    """Cats and dogs with detections around them, beside them, twice, and of the wrong class."""
    rng = np.random.default_rng(seed)
    records = []
    for image_id in range(1, count + 1):
        objects, detections = [], []
        for x in range(int(rng.integers(0, 4))):
            box, label = (100.0 * x, 0.0, 100.0 * x + 50, 50.0), int(rng.integers(2))
            objects.append((box, label))
            for _ in range(int(rng.integers(0, 4))):
                shifted = tuple((np.array(box) + rng.choice([2, 10, 25, 45]) * rng.random()).tolist())
                detections.append((shifted, label if rng.random() < 0.7 else 1 - label, rng.random()))
        detections += [(NOWHERE, int(rng.integers(2)), 0.7 * rng.random())] * int(rng.integers(0, 2))
        records.append(record(objects, detections, image_id=image_id))
    return records


@pytest.mark.parametrize("seed", range(5))
def test_the_fixes_of_all_six_types_together_leave_nothing_wrong(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the paper has it, 1 - AP50 is the sum of what the fixes gain one upon the other.
    fix_one = errors._fix
    monkeypatch.setattr(
        errors, "_fix", lambda table, types: fix_one(table, set(ERROR_TYPES[:6]) if types == {"Cls"} else types)
    )
    run = errors_of(random_records(seed))
    assert run["AP50"] < 0.8
    assert run["AP50"] + run["Cls"] == pytest.approx(1)


def test_weights_give_the_gains_of_the_repeated_images() -> None:
    records = random_records(0)[:6]
    counts = [2, 0, 1, 3, 0, 1]
    repeated = [
        replace(record, image_id=100 * record.image_id + copy)
        for record, count in zip(records, counts, strict=True)
        for copy in range(count)
    ]
    found = error_gains(match_errors(records, NAMES), np.array([counts]))[0]
    np.testing.assert_allclose(found, list(errors_of(repeated).values()), rtol=0, atol=1e-12)


def test_calling_everything_a_cat_costs_ap50_as_wrong_classes() -> None:
    records = random_records(0)
    good, cats = errors_of(records), errors_of([replace(record, labels=record.labels * 0) for record in records])
    assert cats["AP50"] < good["AP50"]
    assert cats["Cls"] > good["Cls"]


def test_impossible_requests_are_named() -> None:
    records = random_records(0)
    with pytest.raises(ValueError, match="no records, expected those of at least 2 images"):
        match_errors([], NAMES)
    with pytest.raises(ValueError, match="image id 1 occurs twice"):
        match_errors([records[0], records[0]], NAMES)
    with pytest.raises(ValueError, match=r"label 1, expected 0\.\.0"):
        match_errors([EASY, records[0]], ["cat"])
