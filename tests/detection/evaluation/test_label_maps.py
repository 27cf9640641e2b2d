"""Mirrors detection/evaluation/label_maps.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from detection.evaluation.jackknife import jackknife
from detection.evaluation.label_maps import (
    LABEL_NUMBERS,
    LabelClasses,
    check_comparable_maps,
    label_counts,
    label_figures,
    pixel_totals,
)
from detection.evaluation.record import Record
from detection.evaluation.run_figures import run_statistic
from detection.structures import VOID

NAMES = ("road", "sky", "car", "unseen")


def make_record(
    image_id: int, counts: csr_array | NDArray[np.integer], panoptic: NDArray[np.float64] | None = None
) -> Record:
    """An image without objects, whose labels were counted."""
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.png",
        size=(8, 9),
        gt_boxes=np.zeros((0, 4), np.float32),
        gt_labels=np.zeros(0, np.int64),
        gt_ignore=np.zeros(0, np.bool_),
        gt_areas=np.zeros(0, np.float32),
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int64),
        label_counts=csr_array(counts),
        panoptic_counts=panoptic,
        gt_masks=None if panoptic is None else (),
        masks=None if panoptic is None else (),
    )


def random_maps(seed: int, images: int = 5) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pairs of true and predicted labels, void and none included; class 3 is never true, and class 2 is rare."""
    rng = np.random.default_rng(seed)
    true = rng.choice(np.array([0, 1, 2, VOID], np.uint8), (images, 8, 9), p=[0.5, 0.38, 0.02, 0.1])
    wrong = rng.choice(np.array([0, 1, 2, VOID], np.uint8), true.shape)
    predicted = np.where((rng.random(true.shape) < 0.3) | (true == VOID), wrong, true)
    return list(zip(true, predicted, strict=True))


def brute_force(maps: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> tuple[list[float], list[float]]:
    """The figures and the IoU of each class, by sets of pixels."""
    true, predicted = dict[int, set[int]](), dict[int, set[int]]()
    place = 0
    for of_true, of_predicted in maps:
        for t, p in zip(of_true.ravel().tolist(), of_predicted.ravel().tolist(), strict=True):
            place += 1
            if t != VOID:
                true.setdefault(t, set()).add(place)
                predicted.setdefault(p, set()).add(place)
    ious, accuracies, weighted, hits, judged = [], [], 0.0, 0, sum(map(len, true.values()))
    for label in range(len(NAMES)):
        t, p = true.get(label, set()), predicted.get(label, set())
        ious.append(len(t & p) / len(t | p) if t | p else math.nan)
        if t:
            accuracies.append(len(t & p) / len(t))
            weighted += len(t) / judged * ious[-1]
        hits += len(t & p)
    known = [iou for iou in ious if not math.isnan(iou)]
    return [sum(known) / len(known), weighted, hits / judged, sum(accuracies) / len(accuracies)], ious


def test_figures_by_hand() -> None:
    true = np.array([[0, 0, 1, 1], [0, 0, 1, VOID]], np.uint8)
    predicted = np.array([[0, 0, 1, 2], [0, 1, VOID, 2]], np.uint8)
    counts = label_counts(true, predicted, 3)
    assert counts.toarray().tolist() == [[3, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    found = label_figures(pixel_totals([make_record(1, counts)], 3))
    assert found.iou[0].tolist() == [0.75, 0.25, 0]  # class 2 is predicted, and never true
    assert dict(zip(LABEL_NUMBERS, found.numbers[0].tolist(), strict=True)) == {
        "mIoU": pytest.approx(1 / 3),
        "fwIoU": pytest.approx((4 * 0.75 + 3 * 0.25) / 7),
        "pixel_accuracy": pytest.approx(4 / 7),
        "mean_accuracy": pytest.approx((3 / 4 + 1 / 3) / 2),
    }


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_brute_force(seed: int) -> None:
    maps = random_maps(seed)
    records = [make_record(number, label_counts(*pair, len(NAMES))) for number, pair in enumerate(maps, start=1)]
    found = label_figures(pixel_totals(records, len(NAMES)).sum(axis=0, keepdims=True))
    numbers, ious = brute_force(maps)
    np.testing.assert_allclose(found.numbers[0], numbers, rtol=1e-12)
    np.testing.assert_allclose(found.iou[0], ious, rtol=1e-12)


def test_an_image_of_void_alone_has_no_figures() -> None:
    void = np.full((2, 3), VOID, np.uint8)
    found = label_figures(pixel_totals([make_record(1, label_counts(void, np.zeros_like(void), 2))], 2))
    assert np.isnan(found.numbers).all()
    assert np.isnan(found.iou).all()


def test_maps_that_cannot_be_judged_are_named() -> None:
    true = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        label_counts(true, true.T, 2)
    with pytest.raises(ValueError, match="7"):
        label_counts(true, np.full_like(true, 7), 2)
    with pytest.raises(ValueError, match=r"9\.png.*3 classes.*2"):
        pixel_totals([make_record(9, np.zeros((3, 4), np.int32))], 2)


def test_statistic_is_that_of_any_choice_of_images() -> None:
    maps = random_maps(7)
    records = [make_record(number, label_counts(*pair, len(NAMES))) for number, pair in enumerate(maps, start=1)]
    statistic = run_statistic(records[::-1], NAMES)  # images are numbered by id, whatever the order
    assert statistic.names[:5] == (*(f"semseg.{name}" for name in LABEL_NUMBERS), "semseg.per_class.road.IoU")
    found = statistic.compute(np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 0]]))
    for row, chosen in enumerate((maps, [maps[0], maps[0], maps[2]])):
        numbers, ious = brute_force(chosen)
        np.testing.assert_allclose(found[row], [*numbers, *ious], rtol=1e-12)
    assert statistic.images[0] == 5
    assert statistic.images[-1] == 0  # no image has the class "unseen"
    sample = jackknife(statistic, len(records))
    assert not np.isnan(sample.influence[:, :4]).any()
    assert np.isnan(sample.influence[:, -1]).all()


def test_a_panoptic_run_has_all_figures() -> None:
    rng = np.random.default_rng(0)
    records = [
        make_record(number, label_counts(*pair, len(NAMES)), rng.integers(1, 5, (4, 4)).astype(float))
        for number, pair in enumerate(random_maps(1), start=1)
    ]
    statistic = run_statistic(records, NAMES[:2], labels=LabelClasses(NAMES, num_things=2))
    sections = {name.partition(".")[0] for name in statistic.names}
    assert sections == {"bbox", "segm", "voc", "tide", "semseg", "panoptic"}
    values = dict(zip(statistic.names, statistic.compute(np.ones((1, 5), int))[0], strict=True))
    assert values["panoptic.PQ"] == pytest.approx(np.mean([values[f"panoptic.per_class.{name}.PQ"] for name in NAMES]))


def test_runs_that_were_judged_by_other_label_maps_are_not_compared() -> None:
    rows = [(1, [[2, 0, 1], [0, 3, 0]]), (2, [[4, 1, 0], [2, 2, 0]])]
    records = [make_record(number, np.array(counts)) for number, counts in rows]
    found_else = [make_record(number, np.array(counts)[:, [1, 0, 2]]) for number, counts in rows]
    check_comparable_maps({"a": records, "b": found_else[::-1]})
    with pytest.raises(ValueError, match=r"a and b .*2\.png"):
        check_comparable_maps({"a": records, "b": [records[0], make_record(2, np.array([[4, 0, 0], [2, 2, 0]]))]})
    with pytest.raises(ValueError, match="a and b"):
        check_comparable_maps({"a": records, "b": [replace(record, label_counts=None) for record in records]})
