"""Mirrors detection/evaluation/label_maps.py."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from detection.evaluation import label_maps
from detection.evaluation.jackknife import jackknife
from detection.evaluation.label_maps import LABEL_NUMBERS, label_counts, label_figures, pixel_totals
from detection.evaluation.run_figures import run_statistic
from detection.structures import VOID

Maps = Sequence[tuple[np.ndarray, np.ndarray]]
NAMES = ("road", "sky", "car", "unseen")


def random_maps(seed: int, images: int = 5) -> Maps:
    """Pairs of true and predicted labels, void and none included; class 3 is never true, and class 2 is rare."""
    rng = np.random.default_rng(seed)
    true = rng.choice(np.array([0, 1, 2, VOID], np.uint8), (images, 8, 9), p=[0.5, 0.38, 0.02, 0.1])
    wrong = rng.choice(np.array([0, 1, 2, VOID], np.uint8), true.shape)
    return list(zip(true, np.where((rng.random(true.shape) < 0.3) | (true == VOID), wrong, true), strict=True))


@pytest.fixture
def counted(record):
    """Images without objects, whose labels were counted."""
    return lambda counts: [record(image_id=n, label_counts=own) for n, own in enumerate(counts, start=1)]


def brute_force(maps: Maps) -> list[Any]:
    """The figures, and the IoU of each class, by sets of pixels."""
    true, predicted, place = dict[int, set[int]](), dict[int, set[int]](), 0
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
    return [np.nanmean(ious), weighted, hits / judged, sum(accuracies) / len(accuracies), *ious]


def test_figures_by_hand(record) -> None:
    true = np.array([[0, 0, 1, 1], [0, 0, 1, VOID]], np.uint8)
    counts = label_counts(true, np.array([[0, 0, 1, 2], [0, 1, VOID, 2]], np.uint8), 3)
    assert counts.toarray().tolist() == [[3, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    found = label_figures(pixel_totals([record(label_counts=counts)], 3))
    assert found.iou[0].tolist() == [0.75, 0.25, 0]  # class 2 is predicted, and never true
    by_hand = {"mIoU": 1 / 3, "fwIoU": (4 * 0.75 + 3 * 0.25) / 7, "pixel_accuracy": 4 / 7}
    by_hand["mean_accuracy"] = (3 / 4 + 1 / 3) / 2
    assert dict(zip(LABEL_NUMBERS, found.numbers[0].tolist(), strict=True)) == pytest.approx(by_hand)
    void = np.full((2, 3), VOID, np.uint8)
    found = label_figures(pixel_totals([record(label_counts=label_counts(void, np.zeros_like(void), 2))], 2))
    assert np.isnan([*found.numbers[0], *found.iou[0]]).all()


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_brute_force_on_any_choice_of_images(seed: int, counted) -> None:
    maps = random_maps(seed)
    records = counted([label_counts(*pair, len(NAMES)) for pair in maps])
    found = label_figures(pixel_totals(records, len(NAMES)).sum(axis=0, keepdims=True))
    np.testing.assert_allclose([*found.numbers[0], *found.iou[0]], brute_force(maps), rtol=1e-12)
    statistic = run_statistic(records[::-1], NAMES)  # images are numbered by id, whatever the order
    assert statistic.names[:5] == (*(f"semseg.{name}" for name in LABEL_NUMBERS), "semseg.per_class.road.IoU")
    values = statistic.compute(np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 0]]))
    for row, chosen in zip(values, (maps, [maps[0], maps[0], maps[2]]), strict=True):
        np.testing.assert_allclose(row, brute_force(chosen), rtol=1e-12)
    assert (statistic.images[0], statistic.images[-1]) == (5, 0)  # no image has the class "unseen"
    influence = jackknife(statistic, len(records)).influence
    assert not np.isnan(influence[:, :4]).any()
    assert np.isnan(influence[:, -1]).all()


def test_maps_that_cannot_be_judged_are_named(record) -> None:
    true = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        label_counts(true, true.T, 2)
    with pytest.raises(ValueError, match="7"):
        label_counts(true, np.full_like(true, 7), 2)
    with pytest.raises(ValueError, match=r"9\.jpg.*3 classes.*2"):
        pixel_totals([record(image_id=9, label_counts=csr_array(np.zeros((3, 4), np.int32)))], 2)


def test_a_panoptic_run_has_all_figures(record) -> None:
    rng, own = np.random.default_rng(0), {"gt_masks": (), "masks": ()}
    counts = [label_counts(*pair, len(NAMES)) for pair in random_maps(1)]
    records = [
        record(image_id=i, label_counts=of, panoptic_counts=rng.integers(1, 5, (4, 4)).astype(float), **own)
        for i, of in enumerate(counts)
    ]
    statistic = run_statistic(records, NAMES[:2], labels=label_maps.LabelClasses(NAMES, num_things=2))
    sections = {name.partition(".")[0] for name in statistic.names}
    assert sections == {"bbox", "segm", "voc", "tide", "semseg", "panoptic"}
    values = dict(zip(statistic.names, statistic.compute(np.ones((1, 5), int))[0], strict=True))
    assert values["panoptic.PQ"] == pytest.approx(np.mean([values[f"panoptic.per_class.{name}.PQ"] for name in NAMES]))


def test_runs_that_were_judged_by_other_label_maps_are_not_compared(counted) -> None:
    counts = np.array([[[2, 0, 1], [0, 3, 0]], [[4, 1, 0], [2, 2, 0]]])
    ours, others, lacking, plain = (
        counted([None if part is None else csr_array(part) for part in parts])
        for parts in (counts, counts[..., [1, 0, 2]], [counts[0], np.array([[4, 0, 0], [2, 2, 0]])], [None, None])
    )
    label_maps.check_comparable_maps({"a": ours, "b": others[::-1]})
    with pytest.raises(ValueError, match=r"a and b .*2\.jpg"):
        label_maps.check_comparable_maps({"a": ours, "b": lacking})
    with pytest.raises(ValueError, match="a and b"):
        label_maps.check_comparable_maps({"a": ours, "b": plain})
