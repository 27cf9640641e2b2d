"""Mirrors detection/evaluation/tide.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from detection.evaluation import tide
from detection.evaluation.record import Record
from detection.evaluation.tide import ERROR_TYPES, error_gains, match_errors

Box = tuple[float, float, float, float]

NAMES = ["cat", "dog"]
A, B, C = [(100.0 * i, 0.0, 100.0 * i + 10, 10.0) for i in range(3)]  # apart from each other
NOWHERE = (900.0, 900.0, 910.0, 910.0)
CAT, FOUND = (A, 0), (A, 0, 0.9)
FIVE = {"Cls", "Loc", "Both", "Dupe", "Bkg"}


def part(box: Box, share: float) -> Box:
    """The upper ``share`` of a box: its IoU with the whole."""
    return (*box[:3], box[1] + share * (box[3] - box[1]))


def errors_of(records: Sequence[Record]) -> dict[str, float]:
    """AP50 and all gains."""
    found = error_gains(match_errors(records, NAMES), np.ones((1, len(records)), np.int32))[0]
    return dict(zip(("AP50", *ERROR_TYPES), found.tolist(), strict=True))


@pytest.fixture
def easy(record) -> Record:
    """Gives each class an object and a hit; its cat scores below the wrong detections, which so cost something."""
    return record([(A, 0), (A, 1)], [(A, 0, 0.5), (A, 1, 0.5)], image_id=2)


@pytest.fixture
def gains(record, easy: Record):
    """AP50 and the gains that are not 0, of objects and detections."""

    def of(*parts: Any, **options: Any) -> dict[str, float]:
        points = errors_of([record(*parts, **options), easy])
        return {name: point for name, point in points.items() if abs(point) > 1e-12}

    return of


@pytest.fixture
def ap50(record, easy: Record, reference):
    """pycocotools' AP50 of objects and detections."""
    return lambda *parts, **options: reference([record(*parts, **options), easy], NAMES).AP50


WORSE = (part(B, 0.3), 0, 0.7)


@pytest.mark.parametrize(
    ("name", "objects", "wrong", "fixed"),  # objects beside the cat, wrong detections, and what the fix makes of them
    [
        ("Cls", [(B, 1)], [(B, 0, 0.95)], [(B, 1, 0.95)]),
        ("Loc", [(B, 0)], [(part(B, 0.3), 0, 0.95)], [(B, 0, 0.95)]),
        ("Both", [(B, 1)], [(part(B, 0.3), 0, 0.95)], []),
        ("Dupe", [], [(part(A, 0.9), 0, 0.8)], []),
        ("Bkg", [], [(NOWHERE, 0, 0.95)], []),
        # Two detections of the same lost cat: fixed, the better is a hit and the other is gone.
        ("Loc", [(B, 0)], [WORSE, (part(B, 0.4), 0, 0.95)], [(B, 0, 0.95)]),
        # The better one has the wrong class: fixing places removes the worse one and finds nothing.
        ("Loc", [(B, 0)], [WORSE, (B, 1, 0.95)], [(B, 1, 0.95)]),
        # Without false positives 2 of 3 cats and 1 of 2 dogs are found at precision 1.
        ("FP", [(B, 0), (B, 1)], [(NOWHERE, 0, 0.97), (NOWHERE, 1, 0.6)], []),
    ],
)
def test_each_type_is_what_its_fix_gains(name: str, objects: Any, wrong: Any, fixed: Any, gains, ap50) -> None:
    before = [CAT, *objects], [FOUND, *wrong]
    found = gains(*before)
    assert found["AP50"] == pytest.approx(ap50(*before))
    assert found[name] == pytest.approx(ap50([CAT, *objects], [FOUND, *fixed]) - ap50(*before))
    if len(wrong) == 1:
        assert found[name] > 0.05
        assert found.keys() & FIVE == {name}


def test_a_missed_object_is_fixed_by_taking_it_out(gains, ap50) -> None:
    expected = {"AP50": (67 / 101 + 1) / 2, "Miss": 17 / 101, "FN": 17 / 101}
    assert gains([CAT, (B, 0)], [FOUND]) == pytest.approx(expected)
    # One that another fix would find is not missed; FN does count it, as perfect recall wants it found.
    for wrong in ((part(B, 0.3), 0, 0.4), (B, 1, 0.4)):
        found = gains([CAT, (B, 0)], [FOUND, wrong])
        assert "Miss" not in found
        assert found["FN"] > 0.1
    lost = [CAT, (B, 0), (B, 1)], [(NOWHERE, 0, 0.97), FOUND]  # without false negatives these are no objects
    assert gains(*lost)["FN"] == pytest.approx(ap50(*lost, ignore=[1, 2]) - ap50(*lost))


@pytest.mark.parametrize(
    ("label", "overlap", "kinds"),
    [
        *((0, 0.09, {"Bkg"}), (0, 0.11, {"Loc"}), (0, 0.49, {"Loc"}), (0, 0.51, set())),
        *((1, 0.09, {"Bkg"}), (1, 0.11, {"Both"}), (1, 0.49, {"Both"}), (1, 0.51, {"Cls"})),
    ],
)
def test_limits_of_a_wrong_place(label: int, overlap: float, kinds: set[str], gains) -> None:
    assert gains([CAT, (B, label)], [FOUND, (part(B, overlap), 0, 0.95)]).keys() & FIVE == kinds


def test_place_goes_before_class_and_ignored_perfect_and_empty_sets_have_no_errors(gains, record) -> None:
    objects = [(B, 1), ((B[0], 0.0, B[2], 10 / 0.3), 0)]  # IoU 0.3 with a free cat, 1 with a found dog
    assert gains(objects, [(B, 1, 0.9), (B, 0, 0.95)]).keys() & FIVE == {"Loc"}
    found = gains([CAT, (B, 0), (C, 0)], [FOUND, (B, 0, 0.95), (B, 0, 0.94)], ignore=[1, 2])
    assert found == gains([CAT], [FOUND]) == gains([], []) == pytest.approx({"AP50": 1.0})
    assert np.isnan(list(errors_of([record(), record(image_id=2)]).values())).all()
    # A class that is never found keeps AP 0 when its objects go.
    found = errors_of([record([(A, 1)]), record([CAT], [FOUND], image_id=2)])
    assert (found["AP50"], found["Miss"], found["FN"]) == (0.5, 0, 0)


@pytest.fixture
def mixed(record):
    """Cats and dogs with detections around them, beside them, twice, and of the wrong class."""

    def make(seed: int, count: int = 40) -> list[Record]:
        rng, records = np.random.default_rng(seed), list[Record]()
        for image_id in range(1, count + 1):
            objects, detections = [], []
            for x in range(int(rng.integers(0, 4))):
                box, label = np.array([100.0 * x, 0.0, 100.0 * x + 50, 50.0]), int(rng.integers(2))
                objects.append((box, label))
                for _ in range(int(rng.integers(0, 4))):
                    shifted = box + rng.choice([2, 10, 25, 45]) * rng.random()
                    detections.append((shifted, label if rng.random() < 0.7 else 1 - label, rng.random()))
            detections += [(NOWHERE, int(rng.integers(2)), 0.7 * rng.random())] * int(rng.integers(0, 2))
            records.append(record(objects, detections, image_id=image_id))
        return records

    return make


def test_the_fixes_of_all_six_types_together_leave_nothing_wrong(mixed, monkeypatch) -> None:
    # As the paper has it, 1 - AP50 is the sum of what the fixes gain one upon the other.
    six: Any = set(ERROR_TYPES[:6])
    fix = tide._fix
    monkeypatch.setattr(tide, "_fix", lambda table, types: fix(table, six if types == {"Cls"} else types))
    for seed in range(5):
        run = errors_of(mixed(seed))
        assert run["AP50"] < 0.8
        assert run["AP50"] + run["Cls"] == pytest.approx(1)


def test_impossible_requests_are_named(easy: Record) -> None:
    with pytest.raises(ValueError, match="no records, expected those of at least 2 images"):
        match_errors([], NAMES)
    with pytest.raises(ValueError, match="image id 2 occurs twice"):
        match_errors([easy, easy], NAMES)
    with pytest.raises(ValueError, match=r"label 1, expected 0\.\.0"):
        match_errors([easy], ["cat"])
